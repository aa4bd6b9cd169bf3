"""One training as one of its processes sees it: from the job file to the manifest, and what it logs on the way."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from ..compat.deepspeed import repartition
from ..launch.job import TrainingJob
from ..model.config import ModelConfig
from ..model.folder import Lineage, save_model
from ..model.load import load_model, pick_dtype
from ..model.store import ensure_base_model, fetch_model
from ..rows.prepared import PreparedSet
from ..storage.manifest import Manifest
from ..storage.names import join
from ..storage.s3 import Storage
from ..tracking.run import Tracker
from .checkpoints import CheckpointCallback, CheckpointStore
from .config import TrainingConfig
from .processes import first_of_node_first, leave_group, rank
from .trainer import Validation, adapter_config, freeze, pick_rows, trainer_arguments

_BASE_MODEL_WAIT_S = 3600.0  # how long other ranks wait for the first to bring it: a hub's 7B takes minutes
_RENAMED = {"mean_token_accuracy": "token_accuracy"}  # metrics that we document under another name than the trainers
_ENDINGS_NOT_PRINTED = ("learning_rate", "grad_norm", "epoch", "num_tokens", "step_time")


class TrainingRun:
    """What a training process works with, opened from the job that the stage's launcher wrote."""

    def __init__(self, job: TrainingJob, config: TrainingConfig) -> None:
        """Fetch data and model (verified), freeze what is to stay as it is, and start tracking on rank 0."""
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

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that TRL's SFTConfig and GRPOConfig share."""
        on_cpu = self.loaded.device.type == "cpu"
        return trainer_arguments(self.config, self.store.folder, on_cpu, self.model_config.dtype, self.job.processes)

    def keywords(self, stop_every_steps: int = 1) -> dict[str, Any]:
        """Keyword arguments that both trainers share; ``stop_every_steps``: see `CheckpointCallback`."""
        checkpoints = CheckpointCallback(self.store, stop_every_steps)
        return {
            "model": self.model,
            "processing_class": self.encoder.processor,
            "peft_config": adapter_config(self.model, self.config),
            "callbacks": [checkpoints, ProgressCallback(self.job.stage, self.tracker)],
            "validation": self.validation,
        }

    def complete(self, trainer: Any, counts: dict[str, int]) -> None:
        """Train to the end, from the newest checkpoint if any; write model and manifest. Every rank must call it."""
        trainer.remove_callback(PrinterCallback)  # `ProgressCallback` prints, in one line
        job, checkpoint = self.job, self.store.newest()
        if checkpoint is not None:
            if self.tracker is not None:
                print(f"{job.stage}: going on from {checkpoint.name}", flush=True)
            repartition(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        score, state = trainer.evaluate(), trainer.state
        self._export(trainer)
        leave_group()
        if self.tracker is None:
            return
        model_uri = join(job.prefix, "model") + "/"
        self.storage.upload_dir(self.work / "model", model_uri)
        seconds = time.monotonic() - self.started
        self.tracker.log_metrics({"time/total_s": seconds}, step=state.global_step)
        self.tracker.finish()
        best = {"best_step": state.best_global_step, "best_accuracy": state.best_metric}
        Manifest(
            stage=job.stage,
            fingerprint=job.fingerprint,
            uri=job.prefix,
            inputs={"data": job.data, "base": self.base_uri, "start": self.start_uri},
            counts={"steps": state.global_step, "validation_items": len(self.validation.rows), **counts},
            metrics={name.replace("eval_", "validation/"): value for name, value in score.items()},
            files={"model": model_uri},
            config=job.config,
            details=best if trainer.args.load_best_model_at_end else {},
            mlflow_run_id=self.tracker.run_id,
            seconds=seconds,
        ).write(self.storage)

    def _export(self, trainer: Any) -> None:
        """Write the model as a servable folder: adapters merged, sharded weights gathered, in the configured dtype."""
        sharded = trainer.is_deepspeed_enabled
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped if sharded else trainer.model)
        if not trainer.accelerator.is_main_process:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        merged = hasattr(model, "merge_and_unload")
        if merged:
            model = model.merge_and_unload()
        if not sharded:
            model = model.to(pick_dtype(self.model_config.dtype, self.loaded.device))
        if merged or not sharded:
            state = model.state_dict()
        job, folder = self.job, self.work / "model"
        trained = {"stage": job.stage, "fingerprint": job.fingerprint, "data": job.data, "run_id": job.run.run_id}
        lineage = Lineage(base=self.base_uri, start=self.start_uri, **trained)
        shutil.rmtree(folder, ignore_errors=True)
        card = self.loaded.card.model_copy(update={"lineage": lineage})
        save_model(folder, model, self.encoder.processor, card, state_dict=state)


def metric_names(stage: str, logs: Mapping[str, object]) -> dict[str, float]:
    """What the trainer logged, by name in MLflow; what is not a number (TRL's None for "no value") has none.
    ``validation/…`` for the validation split, ``time/…`` for seconds, ``<stage>/…`` for everything else."""
    metrics: dict[str, float] = {}
    for name, value in logs.items():
        if not isinstance(value, int | float):
            continue
        if name.startswith("eval_"):
            name = f"validation/{name.removeprefix('eval_')}"
        elif not name.startswith((f"{stage}/", "time/")):
            name = f"{stage}/{_RENAMED.get(name, name)}"
        metrics[name] = value
    return metrics


class ProgressCallback(TrainerCallback):
    """Sends everything that the trainer logs to MLflow, and prints a line."""

    def __init__(self, stage: str, tracker: Tracker | None) -> None:
        """Args: ``tracker``: None on every rank but the first."""
        self.stage, self.tracker = stage, tracker
        self.started, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Track, and print where training stands."""
        if self.tracker is None or not logs:
            return
        metrics = metric_names(self.stage, logs)
        self.tracker.log_metrics(metrics, step=state.global_step)
        if "train_runtime" in logs:  # the trainer's summary at the end
            return
        done = state.global_step - self.first_step
        pace = (time.monotonic() - self.started) / done if done else 0.0
        left = pace * (state.max_steps - state.global_step)
        hidden = ("time/", f"{self.stage}/clip_ratio")
        shown = " · ".join(
            f"{name.removeprefix(self.stage + '/')} {value:.3g}"
            for name, value in metrics.items()
            if not name.endswith(_ENDINGS_NOT_PRINTED) and not name.startswith(hidden)
        )
        line = f"{self.stage} {state.global_step}/{state.max_steps} · {shown} · {pace:.2f} s/step · {left:.0f} s left"
        print(line, flush=True)
