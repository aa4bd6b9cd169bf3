"""The typed configuration that stages share, and the error a mistake in it gives.

Each stage owns its section in ``components/<stage>/config.py``; ``pipelines/config.py`` assembles them. What two or
more stages need (the model, how a video becomes frames, where bytes and metrics go, how processes are started)
stands here. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Stage = Literal["prepare", "sft", "grpo", "evaluate", "gate", "register", "deploy"]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)
"""The stages in the order of the pipeline."""


class ConfigError(ValueError):
    """A mistake in a configuration, in one line that names the source, the key and what to do."""


class Section(BaseModel):
    """One part of the configuration: immutable, typed, and closed (an unknown key is an error)."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def load(cls, data: str | Mapping[str, Any], source: str = "configuration") -> Self:
        """Read a section from JSON text or a mapping.

        Raises:
            ConfigError: in one line, naming ``source``, the key and the nearest known key.
        """
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{source}: not JSON (line {error.lineno}: {error.msg})") from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source}: expected a mapping of keys to values, got {type(data).__name__}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error, cls)}") from error

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so that equal sections have equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that are allowed at ``path`` below ``model`` (empty when the path leaves the typed part)."""
    current: Any = model
    for part in path:
        if isinstance(part, int) or not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        field = current.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake of a pydantic error as one line for a person."""
    errors = error.errors()
    # Of a union every branch complains; the one that got furthest into the value is the one that was meant.
    beside = errors[0]["loc"][:-1]
    first = max((e for e in errors if e["loc"][: len(beside)] == beside), key=lambda e: len(e["loc"]))
    path = key_path(model, first["loc"])
    key = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        known = known_keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first.get("input"))
    return f"'{key}': {message} (got {given[:80]})" if key else message


def key_path(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys of a pydantic error's location, without the names that it inserts for the branches of a union."""
    path: tuple[str | int, ...] = ()
    for index, part in enumerate(location):
        known = known_keys(model, path)
        tag = isinstance(part, str) and part not in known and ("[" in part or index + 1 < len(location))
        if not (known and tag):
            path = (*path, part)
    return path


class TinyModelConfig(Section):
    """A small Qwen2.5-VL or Qwen3-VL that is built from this description, for laptops and tests."""

    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    """Architecture."""
    hidden_size: int = 64
    """Width of the language model and of the vision tower."""
    num_layers: int = 2
    """Layers of the language model."""
    num_vision_layers: int = 2
    """Layers of the vision tower."""
    num_heads: int = 4
    """Attention heads of both."""
    initializer_range: float = 0.08
    """Standard deviation of the initial weights; 0.08 leaves the plateau of the demo's task soonest."""


class ModelConfig(Section):
    """The base model and the prompt it is asked with."""

    name: str = "tiny"
    """``tiny`` (built from the `tiny` section), a hub id, a local folder, or an ``s3://…/`` prefix."""
    revision: str | None = None
    """Commit of the hub repository; set it, so that a run can be repeated."""
    seed: int = 0
    """Seed of the weights when ``name`` is ``tiny``."""
    tiny: TinyModelConfig = TinyModelConfig()
    """Shape of the tiny model; ignored for every other name."""
    prompt: str = "video_thinker/1"
    """Prompt template and its version; the same in SFT, rollouts, evaluation and the server."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the accelerator has it, float32 on a CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels."""


class VideoConfig(Section):
    """How a video or image becomes frames. It travels with the prepared data and with every model trained on it."""

    num_frames: int | None = Field(default=8, ge=1, le=1024)
    """Frames per video, spread uniformly; set to null to sample by ``fps`` instead."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second to sample (between ``min_frames`` and ``max_frames``) when ``num_frames`` is null."""
    min_frames: int = Field(default=4, ge=1)
    """Fewest frames with ``fps``."""
    max_frames: int = Field(default=16, ge=1)
    """Most frames with ``fps``."""
    min_pixels: int = Field(default=4 * 28 * 28, ge=1)
    """Fewest pixels per frame after resizing."""
    max_pixels: int = Field(default=128 * 28 * 28, ge=1)
    """Most pixels per frame after resizing (Video-R1 and Video-Thinker train with 128·28·28)."""
    size_multiple: int = Field(default=28, ge=1)
    """Height and width become multiples of this: patch size × merge size (28 Qwen2.5-VL, 32 Qwen3-VL)."""
    temporal_multiple: int = Field(default=2, ge=1)
    """The number of frames becomes a multiple of this (temporal patch size)."""
    frame_codec: Literal["jpeg", "png"] = "jpeg"
    """How prepared frames are stored; the server applies the same codec, so that it sees what training saw."""
    frame_quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality (4:4:4); ignored for PNG."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """A decode that takes longer is killed and its file quarantined."""
    decode_memory_mib: int = Field(default=4096, ge=256)
    """A decoder that needs more address space than this beyond its start is killed and its file quarantined."""
    max_duration_s: float = Field(default=4 * 3600, gt=0)
    """Longer videos are refused."""
    max_file_bytes: int = Field(default=8 * 2**30, gt=0)
    """Larger files are refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError("set exactly one of num_frames and fps")
        if self.min_frames > self.max_frames:
            raise ValueError("min_frames must not exceed max_frames")
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        if self.max_pixels < self.size_multiple**2:
            raise ValueError("max_pixels must hold at least one size_multiple × size_multiple square")
        return self


class StorageConfig(Section):
    """The S3-compatible store. Keys come from the environment or the platform's identity, never from here."""

    endpoint_url: str | None = None
    """Endpoint, e.g. ``http://127.0.0.1:9000``; null: the SDK's default (or ``AWS_ENDPOINT_URL_S3``)."""
    bucket: str = "vthink"
    """Bucket for everything a run writes."""
    prefix: str = ""
    """Prefix inside the bucket, without a leading slash; empty, or ends in ``/``."""
    region: str = "us-east-1"
    """Region; most S3-compatible stores ignore it."""
    path_style: bool = True
    """Address buckets by path, not by host name (MinIO, Ceph, rclone)."""
    ca_bundle: str | None = None
    """PEM file with the certificate authority of the endpoint."""
    outage_s: float = Field(default=600.0, ge=0)
    """How long a store that has answered before may be away, busy, or refuse expired keys, before work fails."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prefix.startswith("/") or (self.prefix and not self.prefix.endswith("/")):
            raise ValueError("prefix must not start with '/' and must end with '/'")
        return self

    @property
    def root_uri(self) -> str:
        """``s3://bucket/prefix``, ending in ``/``."""
        return f"s3://{self.bucket}/{self.prefix}"


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; null: ``MLFLOW_TRACKING_URI``, or the workspace's SQLite file in `vthink run`."""
    experiment: str = "vthink"
    """Experiment name."""
    registered_model: str = "vthink"
    """Name in the model registry."""
    outage_s: float = Field(default=600.0, ge=0)
    """How long MLflow may be away at the end of a stage, before the stage fails. Until then nobody waits for it."""


POOL_LABEL = "vthink.dev/pool"
"""Label, and taint, of a pool's nodes."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"


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

    labels: dict[str, str] = {}
    """For Kueue, on the TrainJob or, for a single pod, on the pod."""
    node_selector: dict[str, str] = {}
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the pod accepts."""


class ClusterConfig(Section):
    """Training jobs and pods on a Kubernetes cluster. No cloud is named here; `k8s/` defines the names."""

    namespace: str | None = Field(default=None, pattern=_DNS_LABEL)
    """Namespace of training jobs and served models; null: that of the pod this runs in, or of the kubeconfig."""
    queues: bool = True
    """A pool is a LocalQueue of Kueue, which places the pods; false: the pool's node label and taint do."""
    priority: str | None = Field(default=None, pattern=_DNS_LABEL)
    """WorkloadPriorityClass of training jobs; null: the cluster's default."""
    topology: str | None = None
    """Node label, e.g. ``topology.kubernetes.io/zone``, within one value of which Kueue must place a training job."""
    tolerations: tuple[Toleration, ...] = ()
    """Further taints to accept where no queue places the pods."""
    accelerator: str | None = "nvidia.com/gpu"
    """Resource name of an accelerator, one per training process; null: train on CPUs."""
    cpu: str = Field(default="8", pattern=_QUANTITY)
    """CPUs of a training node's pod, a Kubernetes quantity."""
    memory: str = Field(default="64Gi", pattern=_QUANTITY)
    """Memory of a training node's pod, a Kubernetes quantity."""
    nodes: int | None = Field(default=None, ge=1)
    """Nodes to train on now, where they are not the ``launch.nodes`` that the batch was planned for: a running job is
    replaced, and goes on from its last checkpoint with the same batch. Null: as planned."""
    runtime: str = Field(default="vthink-torch", pattern=_DNS_LABEL)
    """ClusterTrainingRuntime of training jobs."""
    image: str | None = None
    """Image of training pods; null: ``VTHINK_IMAGE_TRAIN``, or this version's."""
    service_account: str = Field(default="vthink-train", pattern=_DNS_LABEL)
    """Service account of training pods."""
    s3_secret: str | None = Field(default="vthink-s3", pattern=_DNS_LABEL)
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
    """CPU threads per training process (``OMP_NUM_THREADS``); 0: the library's default."""
    pool: dict[Stage, str] = {}
    """Pool of machines per stage on a cluster, e.g. ``{sft: gpu, grpo: gpu-spot, evaluate: gpu, deploy: gpu}``."""
    cluster: ClusterConfig = ClusterConfig()
    """What a cluster needs to know besides."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for stage, pool in self.pool.items():
            if not re.match(_DNS_LABEL, pool):
                raise ValueError(f"pool.{stage}: '{pool}' is not a name of lower-case letters, digits and '-'")
        return self

    def placement(self, stage: Stage, queued: bool = True) -> Placement:
        """Where a stage's pods go.

        Args:
            stage: the stage; without a pool it goes anywhere.
            queued: whether a queue applies to this kind of object (never to a served model).
        """
        pool = self.pool.get(stage)
        if pool is None:
            return Placement()
        if queued and self.cluster.queues:
            labels = {QUEUE_LABEL: pool}
            if self.cluster.priority is not None:
                labels[PRIORITY_LABEL] = self.cluster.priority
            return Placement(labels=labels)
        accepted = [Toleration(key=POOL_LABEL, value=pool, effect="NoSchedule")]
        if self.cluster.accelerator is not None:
            accepted.append(Toleration(key=self.cluster.accelerator, operator="Exists", effect="NoSchedule"))
        return Placement(node_selector={POOL_LABEL: pool}, tolerations=(*accepted, *self.cluster.tolerations))


class LoraConfig(Section):
    """Low-rank adapters; merged into the weights before the model leaves training."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


class ValidationConfig(Section):
    """Accuracy on the validation split while training; the test split is not touched."""

    every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between validations."""
    num_items: int = Field(default=256, ge=1)
    """Questions asked (the first of the split, after the filter below)."""
    kinds: tuple[str, ...] = ()
    """Only questions whose ``metadata.kind`` is listed; empty: all."""
    batch_size: int = Field(default=64, ge=1)
    """Questions decoded at once."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response."""


class TrainingConfig(Section):
    """What SFT and GRPO have in common."""

    enabled: bool = True
    """Whether the stage runs."""
    seed: int = 0
    """Seed of data order and sampling."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1: as `num_epochs` says."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training split, when ``max_steps`` is -1."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the schedule after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second-moment decay."""
    max_grad_norm: float = Field(default=5.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass, to save memory."""
    deepspeed: Literal["none", "zero2", "zero3"] = "none"
    """DeepSpeed ZeRO stage."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    freeze_vision: bool = False
    """Keep the vision tower as it is."""
    freeze_projector: bool = False
    """Keep the projector between vision tower and language model as it is."""
    kinds: tuple[str, ...] = ()
    """Train only on questions whose ``metadata.kind`` is listed; empty: all."""
    images: bool = True
    """Train on image rows too."""
    shuffle: bool = True
    """Draw the rows in random order; false: in the order of the prepared set, for a curriculum (``data.order``)."""
    save_every_steps: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, besides the best."""
    log_every_steps: int = Field(default=10, ge=1)
    """Optimiser steps between logged metrics."""
    validation: ValidationConfig = ValidationConfig()
    """Validation while training."""

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if self.lora is not None and self.deepspeed == "zero3":
            raise ValueError("lora with deepspeed=zero3 is not supported yet; use zero2 or none")
        return self


class RunContext(Section):
    """What every stage is told besides its own section: which run it belongs to and where things are."""

    run_id: str
    """Identifies the pipeline run; also the MLflow tag ``vthink.run_id``."""
    parent_run_id: str | None = None
    """MLflow run of the pipeline; the stages' runs are its children."""
    redo: dict[str, int] = {}
    """How often each stage was asked to start afresh (`--from`); part of its fingerprint."""
    work_dir: str | None = None
    """Scratch folder on this machine; null: a temporary one."""
    storage: StorageConfig = StorageConfig()
    """Where artifacts go."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    launch: LaunchConfig = LaunchConfig()
    """How training starts."""
