"""The job file: everything that a training process is told, and how a process that has it is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from ..config import Section, Stage
from ..context import RunContext
from ..storage.config import StorageConfig
from ..storage.manifest import Manifest
from ..storage.names import as_prefix, join
from ..storage.s3 import Storage

STORAGE = "VTHINK_STORAGE"
"""Environment variable with the storage section (JSON), by which a training process finds its job."""

WORK_DIR = "VTHINK_WORK_DIR"
"""Environment variable of a training node, see `NodeSettings.work_dir`."""

ROLLOUT_URL = "VTHINK_ROLLOUT_URL"
"""Environment variable of a training node, see `NodeSettings.rollout_url`."""


class NodeSettings(Section):
    """What only the machine that trains knows; null where it is as the job file says."""

    work_dir: str | None = None
    """Scratch folder of this node, instead of ``run.work_dir``."""
    rollout_url: str | None = None
    """Address of the rollout server that the job brought along, instead of ``grpo.vllm.server_url``, which is written
    before the job has a name."""


class NodeResources(Section):
    """What a node's pod asks for, accelerators left out (`training.resources`)."""

    cpus: int
    """CPUs."""
    memory_gib: int
    """Memory, GiB."""
    scratch_gib: int
    """Disk of the scratch folder, GiB."""


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
    resources: NodeResources | None = None
    """What each node needs; null: the model's size is not known before training has fetched it."""
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

    def environment(self) -> dict[str, str]:
        """The variables that a training process needs, here and in a TrainJob, besides credentials."""
        env = {STORAGE: self.run.storage.to_json(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.run.launch.threads:
            env["OMP_NUM_THREADS"] = str(self.run.launch.threads)
        return env

    def worker_command(self) -> list[str]:
        """What torchrun is told to start, here and in a TrainJob."""
        return ["-m", self.worker, "--job", self.uri]
