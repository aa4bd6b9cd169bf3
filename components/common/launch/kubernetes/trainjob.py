"""The `TrainJob` of a training job: its name, command, environment and place in the cluster."""

import os
import re

from ..... import __version__
from ...storage.names import fingerprint
from ..config import LaunchConfig, Placement
from ..job import ROLLOUT_URL, WORK_DIR, TrainingJob
from .client import TRAIN_JOB, Object

JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL, ATTEMPT_LABEL = "vthink.dev/job", "vthink.dev/attempt"

SHAPE = "vthink.dev/shape"  # annotation: fingerprint of what a running job must not differ in
_FORWARDED = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "NO_PROXY",
              "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "http_proxy", "https_proxy", "VTHINK_GIT_COMMIT")  # fmt: skip
_FORWARDED_PREFIXES = ("MLFLOW_", "NCCL_", "HF_")
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|USERNAME|_KEY$|AUTH")


def job_name(job: TrainingJob) -> str:
    """Name of a stage's TrainJobs, the same whenever the stage is started again: run, stage, hash of the settings. The
    number of ranks is not part of it: a run that goes on with other nodes must find the job it replaces. Short enough
    for what JobSet appends to it, also with an attempt."""
    run = job.run
    settings = job.model_dump(mode="json", include={"config", "model", "data", "policy"})
    key = fingerprint("trainjob", run.run_id, job.stage, settings, run.redo.get(job.stage, 0))
    readable = re.sub(r"[^a-z0-9]+", "-", run.run_id.lower()).strip("-")[:20].strip("-")
    readable = readable if readable[:1].isalpha() else f"r-{readable}".rstrip("-")
    return f"{readable}-{job.stage}-{key[:8]}"


def nodes(launch: LaunchConfig) -> int:
    """Nodes that a job gets."""
    return launch.cluster.nodes or launch.nodes


def image(launch: LaunchConfig) -> str:
    """Image of the training pods."""
    default = os.environ.get("VTHINK_IMAGE_TRAIN", f"ghcr.io/vthink/vthink-train-python:{__version__}")
    return launch.cluster.image or default


def _environment(job: TrainingJob) -> list[Object]:
    """The training container's variables. Keys are never copied into the object, which every reader of the namespace
    sees: they come from the secret."""
    cluster = job.run.launch.cluster
    values = {
        name: value
        for name, value in os.environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not _SECRET.search(name))
    }
    # Which rank of the whole job printed a line; torchrun's own mark counts per node.
    values |= {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank${rank}]:", WORK_DIR: cluster.work_dir}
    entries: list[Object] = [{"name": k, "value": v} for k, v in sorted((values | job.environment()).items())]
    if cluster.s3_secret is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            reference = {"name": cluster.s3_secret, "key": name, "optional": True}
            entries.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return entries


def _torchrun_command(job: TrainingJob) -> list[str]:
    """What a node runs; the runtime's ``PET_*`` say how many nodes there are and where they meet. Only torchrun itself
    heeds them: ``accelerate launch`` and the ``trl`` command would silently train with one process."""
    launch = job.run.launch
    # Workers get nearly all of the grace period to write their checkpoint; torchrun's own limit is 30 s.
    command = ["torchrun", "--max-restarts=0", f"--shutdown-timeout={max(10, launch.cluster.grace_period_s - 20)}"]
    if nodes(launch) * launch.processes > 1:
        command += ["--tee=3", f"--log-dir={launch.cluster.work_dir}/logs"]
    return [*command, *job.worker_command()]


def train_job(job: TrainingJob, attempt: int, owner: Object | None = None) -> Object:
    """The `TrainJob` of an attempt, from 1; when its ``owner`` (a reference) is deleted, so is the job."""
    launch, cluster = job.run.launch, job.run.launch.cluster
    placement, command, env = launch.placement(job.stage), _torchrun_command(job), _environment(job)
    resources: Object = {"cpu": cluster.cpu, "memory": cluster.memory}
    if cluster.accelerator is not None:
        resources[cluster.accelerator] = launch.processes
    grace = {"terminationGracePeriodSeconds": cluster.grace_period_s}
    pod: Object = {"spec": {"serviceAccountName": cluster.service_account, **grace, **pod_placement(placement)}}
    if cluster.topology is not None and placement.labels:
        pod["metadata"] = {"annotations": {"kueue.x-k8s.io/podset-required-topology": cluster.topology}}
    replicated = [{"name": "node", "template": {"spec": {"template": pod}}}]
    runtime, name = cluster.runtime, job_name(job)
    full_name = name if attempt == 1 else f"{name}-a{attempt}"
    if cluster.rollout_servers and job.stage == "grpo":
        # The second replicated job is the runtime's; a patch can place its pods and set variables. Not run here.
        runtime = f"{cluster.runtime}-vllm"
        server = pod_placement(placement)
        if (base := job.model.get("name")) is not None:  # it gets the policy's weights later
            server["containers"] = [{"name": "vllm", "env": [{"name": "VTHINK_ROLLOUT_MODEL", "value": base}]}]
        if server:
            replicated.append({"name": "vllm", "template": {"spec": {"template": {"spec": server}}}})
        env.append({"name": ROLLOUT_URL, "value": f"http://{full_name}-vllm-0-0.{full_name}:8000"})
    shape = [nodes(launch), launch.processes, image(launch), runtime, command, resources, placement.model_dump()]
    labels = {JOB_LABEL: name, "vthink.dev/stage": job.stage, ATTEMPT_LABEL: str(attempt), **placement.labels}
    # The run's id is an annotation: it may be longer than a label's value.
    annotations = {SHAPE: fingerprint("shape", shape), "vthink.dev/run": job.run.run_id}
    # The manager is who wrote a patch; Kueue writes one of its own.
    patch = {"trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": replicated}}}}
    return {
        "apiVersion": TRAIN_JOB.api_version,
        "kind": TRAIN_JOB.name,
        "metadata": {
            "name": full_name,
            "labels": {"app.kubernetes.io/part-of": "vthink", **labels},
            "annotations": annotations,
            **({"ownerReferences": [owner]} if owner is not None else {}),
        },
        "spec": {
            "runtimeRef": {"apiGroup": TRAIN_JOB.group, "kind": "ClusterTrainingRuntime", "name": runtime},
            "trainer": {
                "image": image(launch),
                "numNodes": nodes(launch),
                "numProcPerNode": launch.processes,
                "command": command,
                "env": env,
                "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
            },
            "runtimePatches": [{"manager": "vthink.dev/launcher", **patch}],
        },
    }


def pod_placement(placement: Placement) -> Object:
    """A `Placement` as fields of a pod's spec."""
    fields: Object = {}
    if placement.node_selector:
        fields["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        fields["tolerations"] = [entry.model_dump(exclude_none=True) for entry in placement.tolerations]
    return fields
