"""Whether this machine, the model and the stores are fit for a run, as far as seconds can tell."""

import json
import os
import shutil
import subprocess
from collections.abc import Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from ...components.common.config import ConfigError, Stage
from ...components.common.errors import UserError, first_line
from ...components.common.model.folder import check_folder
from ...components.common.model.shapes import SHAPES, Shape, read_shape, shape_of
from ...components.common.storage.config import StorageConfig
from ...components.common.storage.names import StorageError, join
from ...components.common.storage.s3 import Storage
from ...components.common.tracking.client import registry_client, short_timeouts, tracking_uri, without_password
from ...components.common.tracking.config import TrackingConfig
from ..config import Config
from ..plan.footage import Footage, visual_tokens
from ..plan.memory import GIB, Accelerator
from ..plan.stage import StagePlan, fastest, layouts, stored_bytes
from .finding import NotSeenError, settings

_HUB_TIMEOUT_S = 10.0
_TYPICAL = Footage()
_SMALL = 200_000_000  # parameters that a CPU trains in a sensible time


def _shape(config: Config) -> Shape:
    return shape_of(config.model, config.storage, config.video.size_multiple)


def check_model(config: Config, storage: Storage | None) -> str:
    """The base model: that it can be reached, is of a known family, and takes frames of the size there will be."""
    told = _reach_model(config, storage)
    with suppress(ConfigError):
        shape = _shape(config)
        side, multiple = shape.patch * shape.merge, config.video.size_multiple
        if multiple % side:
            raise UserError(
                f"{config.model.name} takes frames whose sides are multiples of {side}, and video.size_multiple is "
                f"{multiple}; {settings(f'video.size_multiple={side}')}"
            )
    return told


def _reach_model(config: Config, storage: Storage | None) -> str:
    name, store = config.model.name, storage or Storage(config.storage)
    if name == "tiny":
        return f"tiny, {_shape(config).parameters / 1e6:.2f} M parameters, built here"
    if name.startswith("s3://"):
        uri = join(name if name.endswith("/") else name + "/", "config.json")
        try:
            read_shape(store.read_json(uri), uri)
        except StorageError as error:
            raise UserError(f"{error}; see model.name") from error
        return name
    if Path(name).is_dir():
        if config.launch.backend != "local":
            raise UserError(f"model.name={name} is a folder here, which pods cannot read; copy it to an s3://… prefix")
        check_folder(Path(name))
        return name
    if config.launch.backend != "local":
        raise NotSeenError(f"{name}: the cluster fetches it from the hub")
    return _check_hub(config)


def _check_hub(config: Config) -> str:
    from huggingface_hub import hf_hub_download

    name = config.model.name
    try:
        path = hf_hub_download(name, "config.json", revision=config.model.revision, etag_timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSError
        raise UserError(
            f"'{name}' is neither a folder here nor reachable on the hub ({first_line(error, 150)}); set model.name to "
            "a folder, an s3://…/ prefix, or a model that you can reach (HF_ENDPOINT, HF_TOKEN)"
        ) from None
    read_shape(json.loads(Path(path).read_text("utf-8")), name)
    return name


def check_accelerators(config: Config, stages: Collection[Stage]) -> str:
    """GPUs of this machine for its training processes, and their memory, or that of the machine."""
    training = [stage for stage in ("sft", "grpo") if stage in stages]
    if config.launch.backend != "local":
        raise NotSeenError(f"{config.launch.processes * config.launch.nodes} on the cluster")
    if not training:
        return "no training"
    if config.launch.nodes != 1:
        raise UserError(f"launch.nodes={config.launch.nodes}, and this is one machine; {settings('launch.nodes=1')}")
    vllm = config.grpo.vllm if "grpo" in training else None
    if vllm is not None and vllm.mode == "colocate" and find_spec("vllm") is None:
        raise UserError(
            f"grpo.vllm needs vLLM, which is not installed here; {settings('grpo.vllm=null')}, or install it"
        )
    try:
        shape = _shape(config)
    except ConfigError as error:
        raise NotSeenError(str(error)) from None
    wanted, memory_gib = config.launch.processes, gpu_memory_gib()
    if not memory_gib:
        return _check_cpu(config, shape)
    if wanted > len(memory_gib):
        there = len(memory_gib)
        raise UserError(f"{wanted} training processes, and {there} GPUs here; {settings(f'launch.processes={there}')}")
    accelerator = Accelerator(312, min(memory_gib), 2039, 300)
    for stage in training:
        sample = visual_tokens(_TYPICAL, config.video, shape)
        plans = layouts(config, "sft" if stage == "sft" else "grpo", shape, sample, accelerator, 1000, wanted)
        if not plans[0].fits:
            raise UserError(_too_large(plans, accelerator))
    return f"{len(memory_gib)} GPUs of {min(memory_gib):.0f} GiB, {wanted} used"


def _too_large(plans: list[StagePlan], accelerator: Accelerator) -> str:
    own, best = plans[0], fastest(plans)
    what = f"{own.stage} needs {own.memory.total / GIB:.0f} GiB a GPU, and one has {accelerator.memory_gib:.0f}"
    if best is not None:
        return f"{what}; {settings(f'{own.stage}.deepspeed={best.zero}')}"
    adapters = settings(f"{own.stage}.lora={{}}", f"{own.stage}.deepspeed=zero2")
    return f"{what}; a smaller model, {adapters}, or more GPUs"


def _check_cpu(config: Config, shape: Shape) -> str:
    if shape.parameters <= _SMALL:
        return f"no NVIDIA GPU; {config.launch.processes} process(es) on the CPU, which is enough for this model"
    raise UserError(
        f"no NVIDIA GPU here, and {config.model.name} has {shape.parameters / 1e9:.2g} B parameters; train on a "
        f"cluster (vthink submit), or try it with a small model ({settings('model.name=tiny')}, --preset laptop)"
    )


def gpu_memory_gib() -> list[float]:
    """Memory of each NVIDIA GPU that this process may use; empty where there is none."""
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return [float(line) / 1024 for line in answer.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def check_disk(config: Config, folder: Path, rows: int) -> str:
    """Room for what a run writes into a store on this machine."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if config.model.name != "tiny" and config.model.name not in SHAPES and not Path(config.model.name).is_dir():
        raise NotSeenError(f"{free / 1e9:.0f} GB free")
    shape = _shape(config)
    stored = stored_bytes(config, shape, visual_tokens(_TYPICAL, config.video, shape), rows)
    needed = stored.model + stored.data + sum(kept for _, kept in stored.checkpoints.values())
    if needed > free:
        raise UserError(
            f"a run writes about {needed / 1e9:.0f} GB (vthink plan), and {free / 1e9:.0f} GB are free in {folder}; "
            "--workspace names a folder on a larger disk, storage.endpoint_url another store"
        )
    return f"{free / 1e9:.0f} GB free, about {needed / 1e9:.1f} needed"


def check_storage(config: StorageConfig) -> str:
    """The object store, by writing, reading and deleting."""
    Storage(config.model_copy(update={"outage_s": 0.0})).check()
    return f"wrote, read and deleted an object below {config.root_uri}"


def check_tracking(tracking: TrackingConfig, storage: StorageConfig) -> str:
    """MLflow; a database on this machine is made when it is first used."""
    uri = tracking_uri(tracking)
    if uri.startswith("sqlite:"):
        return uri
    try:
        with short_timeouts():
            registry_client(tracking, storage).search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # MLflow passes on what its HTTP library raises
        text = f"does not answer ({first_line(error, 200)}); check tracking.uri, MLFLOW_TRACKING_URI"
        raise UserError(text) from error
    return without_password(uri)
