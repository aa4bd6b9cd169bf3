"""A training's job file, with everything that its processes are told, and what it leaves: a manifest, or why not."""

import os
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from ..config import Section, Stage
from ..context import RunContext
from ..storage.config import StorageConfig
from ..storage.manifest import Manifest
from ..storage.names import as_prefix, join
from ..storage.s3 import Storage
from .process import LaunchError

STORAGE = "VTHINK_STORAGE"
"""Environment variable with the storage section (JSON), by which a training process finds its job."""
WORK_DIR, ROLLOUT_URL = "VTHINK_WORK_DIR", "VTHINK_ROLLOUT_URL"
"""Environment variables of a training node, see `NodeSettings`."""
_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")

_ADVICE = (
    (re.compile(r"out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate", re.I),
     "out of memory: lower the batch, the number of frames or video.max_pixels, or use more processes"),
    (re.compile(r"No space left on device", re.I), "the disk is full: free space under the work folder"),
    (re.compile(r"NCCL (error|timeout)|ncclUnhandled|ncclSystemError|collective operation timeout", re.I),
     "the GPUs stopped talking to each other: see which rank printed an error first, then NCCL_DEBUG=INFO"),
    (re.compile(r"Cannot re-initialize CUDA|no CUDA-capable device|CUDA driver version", re.I),
     "the GPU cannot be used: check the driver and CUDA_VISIBLE_DEVICES"),
    (re.compile(r"No module named", re.I), "a package is missing: install vthink[train]"),
)  # fmt: skip


class NodeSettings(Section):
    """What only the machine that trains knows; null where it is as the job file says."""

    work_dir: str | None = None
    """Scratch folder of this node, instead of ``run.work_dir``."""
    rollout_url: str | None = None
    """Address of the rollout server that the job brought along, instead of ``grpo.vllm.server_url``, which is written
    before the job has a name."""


class TrainingJob(Section):
    """What a training process is told: written by the stage's launcher as ``<prefix>job.json``."""

    stage: Stage
    """Which stage trains."""
    worker: str
    """Module that torchrun starts, once per process, as ``-m <worker> --job <uri>``."""
    fingerprint: str
    """Identity of the stage's configuration and inputs; the manifest that the training leaves must have it."""
    prefix: Annotated[str, AfterValidator(as_prefix)]
    """Where the stage's output goes, ending in ``/``."""
    run: RunContext
    """The run that it belongs to."""
    config: dict[str, Any]
    """The stage's section; typed where it is read."""
    model: dict[str, Any]
    """The base model's section; typed where it is read."""
    data: str
    """URI of the prepared data's manifest."""
    policy: str = ""
    """URI of the manifest whose model training starts from; empty: the base model."""
    processes: int = Field(ge=1)
    """Processes that the batch was planned for, over all nodes."""
    node: NodeSettings = NodeSettings()
    """Empty in the file; `on_this_node` fills it in."""

    @property
    def uri(self) -> str:
        """Where the job file is."""
        return join(self.prefix, "job.json")

    def write(self, storage: Storage) -> None:
        """Write the job file."""
        storage.write_json(self.uri, self.model_dump(mode="json"))

    @classmethod
    def read(cls, uri: str) -> Self:
        """Read a job file from the store that ``VTHINK_STORAGE`` names."""
        text = os.environ.get(STORAGE)
        storage = Storage(StorageConfig.load(text, source=STORAGE) if text else StorageConfig())
        return cls.load(storage.read_json(uri), source=uri)

    def on_this_node(self, environ: Mapping[str, str] = os.environ) -> Self:
        """The job with what only this node knows, each of which is printed and recorded on the MLflow run."""
        node = NodeSettings(work_dir=environ.get(WORK_DIR), rollout_url=environ.get(ROLLOUT_URL))
        if environ.get("RANK", "0") == "0":
            for name, value in node.model_dump(exclude_none=True).items():
                print(f"{self.stage}: {name} of this node: {value}", flush=True)
        return self.model_copy(update={"node": node})

    def result(self, storage: Storage) -> Manifest | None:
        """The manifest that this training left; None where it has not ended, or another one wrote there."""
        manifest = Manifest.find(storage, self.prefix)
        return manifest if manifest is not None and manifest.fingerprint == self.fingerprint else None

    def required_result(self, storage: Storage, printed: Iterable[str]) -> Manifest:
        """`result` of a training that has ended well, and has ``printed`` these lines."""
        if (manifest := self.result(storage)) is None:
            what = f"the training ended without writing its manifest to {self.prefix}"
            raise LaunchError(f"{self.stage}: {what}", printed)
        return manifest

    def environment(self) -> dict[str, str]:
        """The variables that a training process needs, here and in a TrainJob, besides credentials."""
        env = {STORAGE: self.run.storage.to_json(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.run.launch.threads:
            env["OMP_NUM_THREADS"] = str(self.run.launch.threads)
        return env

    def worker_command(self) -> list[str]:
        """What torchrun is told to start, here and in a TrainJob."""
        return ["-m", self.worker, "--job", self.uri]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a training failed; empty parts are not known."""

    reason: str  # what happened
    advice: str  # what to do about it
    machines_lost: bool = False
    """The machines were taken away; the training itself did nothing wrong, and another attempt may succeed."""

    def __str__(self) -> str:
        return "; ".join(filter(None, [self.reason, self.advice]))


def explain_failure(code: int, lines: Sequence[str]) -> str:
    """One line about why a training failed, from its exit code and what it printed."""
    failure = explain_output(lines)
    killed = code == 128 + signal.SIGKILL or any(re.search(r"exitcode\s*:\s*-9|Signal 9 ", line) for line in lines)
    if killed and not failure.reason:
        advice = failure.advice or "often the machine or container ran out of memory"
        failure = Failure("a worker was killed (SIGKILL)", advice)
    return "; ".join(filter(None, [f"the training failed with exit code {code}", str(failure)]))


def explain_output(lines: Sequence[str]) -> Failure:
    """The last error that a training printed, and what to do about it."""
    reason = ""
    for line in lines:
        match = _EXCEPTION.search(line)
        # torchrun reports the worker's failure once more, in its own words.
        if match and "torch.distributed.elastic" not in line and not match[1].endswith("ChildFailedError"):
            reason = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    advice = (text for pattern, text in _ADVICE if any(pattern.search(line) for line in lines))
    return Failure(reason, next(advice, ""))
