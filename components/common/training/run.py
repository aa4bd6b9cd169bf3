"""One training as one of its processes sees it: what it works with, from the job file to the manifest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from ..compat.deepspeed import repartition
from ..launch.job import TrainingJob
from ..model.config import ModelConfig
from ..model.folder import Lineage
from ..model.load import load_model
from ..model.store import ensure_base_model, fetch_model
from ..provenance import git_commit
from ..rows.prepared import PreparedSet
from ..storage.manifest import Manifest
from ..storage.names import join
from ..storage.s3 import Storage
from ..tracking.run import Tracker
from .arguments import freeze, trainer_arguments
from .callbacks import CheckpointCallback, StopOnSignal
from .checkpoints import CheckpointStore
from .config import TrainingConfig
from .export import export
from .processes import first_of_node_first, leave_group, rank
from .progress import ProgressCallback
from .validation import Validation, pick_rows

_BASE_MODEL_WAIT_S = 3600.0
"""How long other ranks wait for the first to bring the base model into the store: a hub's 7B takes minutes."""


class TrainingRun:
    """What a training process works with, opened from the job that the stage's launcher wrote."""

    def __init__(self, job: TrainingJob, config: TrainingConfig) -> None:
        """Fetch data and model (verified), freeze what is to stay as it is, and start tracking on rank 0.

        Args:
            config: the stage's section, as the job has it.
        """
        self.job, self.config, self.started = job, config, time.monotonic()
        self.model_config = ModelConfig.load(job.model, "job")
        self.storage = Storage(job.run.storage)
        scratch = Path(job.node.work_dir or job.run.work_dir or tempfile.mkdtemp(prefix="vthink-"))
        with first_of_node_first():
            data = PreparedSet.open(self.storage, job.data, scratch / "data")
            wait_s = None if rank() == 0 else _BASE_MODEL_WAIT_S
            self.base_uri = ensure_base_model(self.storage, self.model_config, data.video, wait_s)
            self.start_uri = Manifest.read(self.storage, job.policy).files["model"] if job.policy else self.base_uri
            folder = fetch_model(self.storage, self.start_uri, scratch)
        # A step of 1e-6 is lost in bfloat16: the weights are float32, unless DeepSpeed keeps such a copy of its own.
        dtype = self.model_config.dtype if config.deepspeed != "none" else "float32"
        self.loaded = load_model(folder, dtype=dtype, attention=self.model_config.attention)
        self.model, self.encoder = self.loaded.model, self.loaded.encoder
        freeze(self.model, config)
        self.train = data.split("train")
        self.rows = pick_rows(self.train, config.kinds, config.images)  # those of them that are trained on
        self.validation = Validation(self.encoder, data.split("validation"), config.validation)
        self.work = scratch / job.stage / job.fingerprint  # it outlives a killed process
        self.store = CheckpointStore(self.storage, join(job.prefix, "checkpoints") + "/", self.work / "checkpoints")
        self.tracker: Tracker | None = None
        if rank() == 0:
            inputs = {"data": job.data, "model": self.start_uri}
            self.tracker = Tracker.start(job.run, job.stage, job.fingerprint, job.config, inputs)
            self.tracker.log_params({"node": job.node.model_dump(exclude_none=True)})

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments that TRL's SFTConfig and GRPOConfig share."""
        on_cpu = self.loaded.device.type == "cpu"
        return trainer_arguments(self.config, self.store.folder, on_cpu, self.model_config.dtype, self.job.processes)

    def callbacks(self, stop_every_steps: int = 1) -> list[TrainerCallback]:
        """Checkpoints, SIGTERM and metrics, in the order in which they must be called.

        Args:
            stop_every_steps: see `StopOnSignal`.
        """
        return [
            CheckpointCallback(self.store),
            StopOnSignal(self.store, stop_every_steps),
            ProgressCallback(self.job.stage, self.tracker),
        ]

    def fit(self, trainer: Any) -> None:
        """Train from the newest checkpoint, if there is one, to the end."""
        trainer.remove_callback(PrinterCallback)  # `ProgressCallback` prints, in one line
        checkpoint = self.store.newest()
        if checkpoint is not None:
            if self.tracker is not None:
                print(f"{self.job.stage}: going on from {checkpoint.name}", flush=True)
            repartition(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self, trainer: Any, counts: dict[str, int], details: dict[str, Any] | None = None) -> None:
        """Validate once more, write the model to the store, and the manifest last. Every rank must call it."""
        score = trainer.evaluate()
        job = self.job
        lineage = Lineage(
            stage=job.stage,
            fingerprint=job.fingerprint,
            base=self.base_uri,
            start=self.start_uri,
            data=job.data,
            run_id=job.run.run_id,
        )
        export(trainer, self.loaded, self.work / "model", lineage, self.model_config.dtype)
        leave_group()
        if self.tracker is None:
            return
        model_uri = join(job.prefix, "model") + "/"
        self.storage.upload_dir(self.work / "model", model_uri)
        seconds = time.monotonic() - self.started
        self.tracker.log_metrics({"time/total_s": seconds}, step=trainer.state.global_step)
        self.tracker.finish()
        Manifest(
            stage=job.stage,
            fingerprint=job.fingerprint,
            uri=job.prefix,
            inputs={"data": job.data, "base": self.base_uri, "start": self.start_uri},
            counts={"steps": trainer.state.global_step, "validation_items": len(self.validation.rows), **counts},
            metrics={name.replace("eval_", "validation/"): value for name, value in score.items()},
            files={"model": model_uri},
            config=job.config,
            details=details or {},
            mlflow_run_id=self.tracker.run_id,
            seconds=seconds,
            git_commit=git_commit(),
        ).write(self.storage)
