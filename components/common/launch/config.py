"""How training processes are started, and on which machines."""

from typing import Annotated, Literal

from pydantic import Field

from ..config import Section, Stage

POOL_LABEL = "vthink.dev/pool"  # label, and taint, of a pool's nodes
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name in Kubernetes: lower-case letters, digits and '-'."""

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
"""An amount in Kubernetes, e.g. ``500m`` or ``64Gi``."""


class Toleration(Section):
    """A taint that a pod accepts, in Kubernetes' own words."""

    key: str | None = None
    """Key of the taint; null with ``Exists``: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether ``value`` must be equal, or the key only exist."""
    value: str | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; null: any."""


class Placement(Section):
    """Where in a cluster a stage's pods may run: what a pool's name comes down to."""

    labels: dict[str, str] = Field(default_factory=dict)
    """For Kueue, on the TrainJob or, for a single pod, on the pod."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the pod accepts."""


class ClusterConfig(Section):
    """Training jobs and pods on a Kubernetes cluster. No cloud is named here; `k8s/` defines the names."""

    namespace: DnsLabel | None = None
    """Namespace of training jobs and served models; null: that of the pod this runs in, or of the kubeconfig."""
    queues: bool = True
    """A pool is a LocalQueue of Kueue, which places the pods; false: the pool's node label and taint do."""
    priority: DnsLabel | None = None
    """WorkloadPriorityClass of training jobs; null: the cluster's default."""
    topology: str | None = None
    """Node label, e.g. ``topology.kubernetes.io/zone``, within one value of which Kueue must place a training job."""
    tolerations: tuple[Toleration, ...] = ()
    """Further taints to accept where no queue places the pods."""
    accelerator: str | None = "nvidia.com/gpu"
    """Resource name of an accelerator, one per training process; null: train on CPUs."""
    cpu: Quantity = "8"
    """CPUs of a training node's pod."""
    memory: Quantity = "64Gi"
    """Memory of a training node's pod."""
    nodes: int | None = Field(default=None, ge=1)
    """Nodes to train on now, where they are not the ``launch.nodes`` that the batch was planned for: a running job is
    replaced, and goes on from its last checkpoint with the same batch. Null: as planned."""
    runtime: DnsLabel = "vthink-torch"
    """ClusterTrainingRuntime of training jobs."""
    image: str | None = None
    """Image of training pods; null: ``VTHINK_IMAGE_TRAIN``, or this version's."""
    service_account: DnsLabel = "vthink-train"
    """Service account of training pods."""
    s3_secret: DnsLabel | None = "vthink-s3"
    """Secret with ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``; null, or no such secret: workload identity."""
    work_dir: str = Field(default="/scratch", pattern=r"^/")
    """Scratch folder in the training pod; a volume of the runtime."""
    grace_period_s: int = Field(default=300, ge=30)
    """Seconds between SIGTERM and SIGKILL: a checkpoint must be written and sent in it. A reclaimed spot machine may
    give less (often 30 to 120 s)."""
    attempts: int = Field(default=3, ge=1)
    """Training jobs that a stage may use up when machines are taken away; a fault of the training is not repeated."""
    pull_timeout_s: float = Field(default=600.0, gt=0)
    """An image that cannot be pulled for this long ends the stage. Waiting for quota or machines never does."""
    rollout_servers: int = Field(default=0, ge=0, le=1)
    """vLLM servers beside GRPO's trainers, as a second replicated job (runtime ``<runtime>-vllm``), for
    ``grpo.vllm.mode: server``; not run here."""


class LaunchConfig(Section):
    """How training processes are started, and on which machines stages run."""

    backend: Literal["local", "trainjob"] = "local"
    """``local``: torchrun on this machine; ``trainjob``: Kubeflow Trainer."""
    processes: int = Field(default=1, ge=1)
    """Processes (one per GPU) on each node."""
    nodes: int = Field(default=1, ge=1)
    """Nodes; `local` has one."""
    threads: int = Field(default=1, ge=0)
    """CPU threads of each process that runs a model (``OMP_NUM_THREADS``); 0: the library's default."""
    pool: dict[Stage, DnsLabel] = Field(default_factory=dict)
    """Pool of machines per stage on a cluster, e.g. ``{sft: gpu, grpo: gpu-spot, evaluate: gpu, deploy: gpu}``."""
    cluster: ClusterConfig = ClusterConfig()
    """What a cluster needs to know besides."""

    def placement(self, stage: Stage, queued: bool = True) -> Placement:
        """Where a stage's pods go: anywhere without a pool. A queue never applies to a served model (``queued``)."""
        pool = self.pool.get(stage)
        if pool is None:
            return Placement()
        if queued and self.cluster.queues:
            priority = self.cluster.priority
            return Placement(labels={QUEUE_LABEL: pool} | ({PRIORITY_LABEL: priority} if priority is not None else {}))
        tolerations = [Toleration(key=POOL_LABEL, value=pool, effect="NoSchedule")]
        if self.cluster.accelerator is not None:
            tolerations.append(Toleration(key=self.cluster.accelerator, operator="Exists", effect="NoSchedule"))
        return Placement(node_selector={POOL_LABEL: pool}, tolerations=(*tolerations, *self.cluster.tolerations))
