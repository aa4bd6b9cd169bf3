"""What a training process works with."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from ..compat.deepspeed import repartition
from ..context import RunContext
from ..model.config import ModelConfig
from ..model.load import LoadedModel, load_model
from ..model.store import ensure_base_model, fetch_model
from ..provenance import git_commit
from ..rows.prepared import PreparedSet
from ..storage.manifest import Manifest
from ..storage.names import join
from ..storage.s3 import Storage
from ..tracking.run import Tracker
from .checkpoints import _BASE_MODEL_WAIT_S, CheckpointStore
from .export import export


@dataclass(slots=True)
class TrainingJob:
    """What a training process works with, opened from the job that the stage's launcher wrote."""

    stage: str
    job: dict[str, Any]
    context: RunContext
    storage: Storage
    work: Path
    """Scratch folder of this job; it outlives a killed process."""
    data: PreparedSet
    base_uri: str
    """Prefix of the base model."""
    start_uri: str
    """Prefix of the model that training starts from."""
    loaded: LoadedModel
    store: CheckpointStore
    tracker: Tracker | None
    """MLflow run; only on rank 0."""
    started: float

    @classmethod
    def open(cls, stage: str, job: dict[str, Any]) -> TrainingJob:
        """Fetch data and model (verified), and start tracking."""
        started = time.monotonic()
        context = RunContext.load(job["run"], "job")
        model = ModelConfig.load(job["model"], "job")
        storage = Storage(context.storage)
        scratch = Path(context.work_dir or tempfile.mkdtemp(prefix="vthink-"))
        rank = int(os.environ.get("RANK", "0"))
        # Ranks of one machine share the caches: the first fills them, the others find them full.
        with first_rank_first():
            data = PreparedSet.open(storage, job["data"], scratch / "data")
            base_uri = ensure_base_model(storage, model, data.video, None if rank == 0 else _BASE_MODEL_WAIT_S)
            policy = job.get("policy") or ""
            start_uri = Manifest.read(storage, policy).files["model"] if policy else base_uri
            folder = fetch_model(storage, start_uri, scratch)
        # A step of 1e-6 is lost in bfloat16: the weights are float32, unless DeepSpeed keeps such a copy of its own.
        dtype = model.dtype if job["config"]["deepspeed"] != "none" else "float32"
        loaded = load_model(folder, dtype=dtype, attention=model.attention)
        work = scratch / stage / job["fingerprint"]
        store = CheckpointStore(storage, join(job["prefix"], "checkpoints") + "/", work / "checkpoints")
        tracker = None
        if rank == 0:
            inputs = {"data": job["data"], "model": start_uri}
            tracker = Tracker.start(context, stage, job["fingerprint"], job["config"], inputs)
        return cls(stage, job, context, storage, work, data, base_uri, start_uri, loaded, store, tracker, started)

    def run(self, trainer: Any) -> None:
        """Train from the newest checkpoint, if there is one, to the end."""
        trainer.remove_callback(PrinterCallback)  # `ProgressCallback` prints, in one line
        checkpoint = self.store.newest()
        if checkpoint is not None and self.tracker is not None:
            print(f"{self.stage}: going on from {checkpoint.name}", flush=True)
        if checkpoint is not None:
            repartition(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self, trainer: Any, counts: dict[str, int], details: dict[str, Any] | None = None) -> None:
        """Validate once more, write the model to the store, and the manifest last. Every rank must call it."""
        score = trainer.evaluate()
        key, prefix = self.job["fingerprint"], self.job["prefix"]
        lineage = {
            "stage": self.stage,
            "fingerprint": key,
            "base": self.base_uri,
            "start": self.start_uri,
            "data": self.job["data"],
            "run_id": self.context.run_id,
        }
        export(trainer, self.loaded, self.work / "model", lineage, self.job["model"]["dtype"])
        leave_process_group()
        if self.tracker is None:
            return
        model_uri = join(prefix, "model") + "/"
        self.storage.upload_dir(self.work / "model", model_uri)
        seconds = time.monotonic() - self.started
        metrics = {name.replace("eval_", "validation/"): value for name, value in score.items()}
        self.tracker.log_metrics({"time/total_s": seconds}, step=trainer.state.global_step)
        self.tracker.finish()
        Manifest(
            stage=self.stage,
            fingerprint=key,
            uri=prefix,
            inputs={"data": self.job["data"], "base": self.base_uri, "start": self.start_uri},
            counts={"steps": trainer.state.global_step, **counts},
            metrics=metrics,
            files={"model": model_uri},
            config=self.job["config"],
            details=details or {},
            mlflow_run_id=self.tracker.run_id,
            seconds=seconds,
            git_commit=git_commit(),
        ).write(self.storage)


def leave_process_group() -> None:
    """End this process's part in the group, after the last exchange between the ranks.

    Left to the interpreter's end, a rank's communication threads may abort it there (SIGABRT), and torchrun would take
    the first rank down with it, in the middle of its upload.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let local rank 0 pass alone, then the others. Needs no process group: a file of torchrun's run is the signal."""
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    name = f"vthink-{os.environ.get('TORCHELASTIC_RUN_ID', 'run')}-{os.environ.get('MASTER_PORT', '0')}-{os.getppid()}"
    flag = Path(tempfile.gettempdir()) / name
    if rank == 0:
        yield
        flag.touch()
        return
    while not flag.exists():
        time.sleep(0.1)
    yield
