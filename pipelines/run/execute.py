"""The DAG run in the workspace: by ``kfp.local`` in a second process, this module, whose progress is followed."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from ... import __version__
from ...components.common.compat.kfp import TaskFailedError, run_here
from ...components.common.config import STAGES, Stage
from ...components.common.context import RunContext
from ...components.common.errors import UserError
from ...components.common.launch.process import end_with_owner, spawn
from ...components.common.storage.manifest import Manifest
from ...components.common.storage.names import fingerprint
from ...components.common.storage.s3 import Storage
from ...components.common.tracking import pipeline
from ...components.evaluation.gate import read_gate
from ..config import Config, to_yaml
from .progress import LocalRunWatcher, StageProgress
from .session import Session, shown_path
from .state import State, is_enabled, stage_keys

_POLL_S = 0.2


class StageFailedError(UserError):
    """A stage failed: which, why, where its log is, and what it printed last."""

    def __init__(self, message: str, last_lines: Sequence[str]):
        super().__init__(message)
        self.last_lines = tuple(last_lines)


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_id: str
    parent_run_id: str  # MLflow run of the pipeline
    stages: Mapping[Stage, StageProgress]
    manifests: Mapping[Stage, Manifest]  # what the stages left, as far as they ran


def run_pipeline(
    opened: Session, restart: Stage | None, on_change: Callable[[Mapping[Stage, StageProgress]], None]
) -> Outcome:
    """Run the DAG in the workspace.

    Args:
        restart: do this stage and all after it afresh, though finished output is there.
        on_change: called a few times a second with the progress of all stages.

    Raises:
        StageFailedError: one line with the stage, its reason and its log."""
    config, workspace = opened.config, opened.workspace
    state = State.read(workspace.root, restart)
    key = fingerprint(config.to_json(), state.redo, __version__)
    run_id = state.runs.setdefault(key, f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{key[:4]}")
    state.write(workspace.root)

    logs, tasks = workspace.logs_dir, workspace.root / "kfp"
    shutil.rmtree(tasks, ignore_errors=True)
    tasks.mkdir()
    printed, job = logs / "pipeline.log", tasks / "job.json"
    printed.write_text("", "utf-8")
    context = opened.context.model_copy(update={"run_id": run_id, "redo": dict(state.redo)})
    job.write_text(LocalRunJob(config=config, context=context).model_dump_json(), "utf-8")

    keys = stage_keys(config, state)
    watcher = LocalRunWatcher(printed, tasks, logs, [stage for stage in STAGES if not is_enabled(config, stage)])
    started = datetime.now(UTC).replace(microsecond=0)  # manifests tell whole seconds
    manifests: dict[Stage, Manifest] = {}
    # Unbuffered, so that a stage's lines arrive when they are printed.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with spawn([sys.executable, "-m", __name__, str(job)], environment, printed) as process:
        while True:
            ended = process.poll() is not None
            watcher.poll()
            for stage, progress in watcher.stages.items():
                if progress.output and stage not in manifests:
                    manifests[stage] = manifest = _read_manifest(opened.storage, context, progress, manifests)
                    if progress.status == "done" and datetime.fromisoformat(manifest.created) < started:
                        progress.status = "reused"
                    state.finished.setdefault(stage, {})[keys[stage]] = manifest.manifest_uri
                    state.write(workspace.root)
            on_change(watcher.stages)
            if ended:
                break
            time.sleep(_POLL_S)
    if code := process.poll():
        failed = watcher.fail()
        on_change(watcher.stages)
        reason, subject, log = watcher.last_exception or f"ended with exit code {code}", "the pipeline", printed
        if failed is not None:
            subject, log = f"stage {failed.stage}", logs / f"{failed.stage}.log"
            reason = reason.removeprefix(f"{failed.stage}: ")
        raise StageFailedError(f"{subject}: {reason} (log: {shown_path(log)})", watcher.last_lines)
    return Outcome(run_id, parent_file(job).read_text("utf-8"), watcher.stages, manifests)


def _read_manifest(
    storage: Storage, context: RunContext, progress: StageProgress, before: Mapping[Stage, Manifest]
) -> Manifest:
    """What a finished stage left. The gate returns a verdict, and keeps its manifest where the evaluation tells."""
    if progress.stage == "gate":
        return read_gate(storage, context, before["evaluate"].manifest_uri)
    return Manifest.read(storage, progress.output)


# --- the second process: the pipeline's MLflow run, and in it the DAG


class LocalRunJob(BaseModel):
    """``job.json``: what the first process tells the second one."""

    config: Config
    context: RunContext


def parent_file(job_file: Path) -> Path:
    """File by which the second process tells the first one the MLflow run of the pipeline."""
    return job_file.with_name("parent_run_id")


def run_dag(job_file: Path) -> None:
    """Run the DAG of a job; its folder becomes the ``pipeline_root``."""
    from ..pipeline import arguments, build

    end_with_owner()
    job = LocalRunJob.model_validate_json(job_file.read_text("utf-8"))
    context, run_id = job.context, job.context.run_id
    root = context.storage.root_uri + "mlflow"
    parent = pipeline.start_parent(context.tracking, run_id, to_yaml(job.config), run_id, root, context.storage)
    parent_file(job_file).write_text(parent, "utf-8")
    context = context.model_copy(update={"parent_run_id": parent})
    try:
        run_here(build(), arguments(job.config, context), job_file.parent)
    except RuntimeError as error:
        pipeline.finish_parent(context.tracking, parent, "FAILED")
        if isinstance(error, TaskFailedError):
            sys.exit(str(error))
        raise
    pipeline.finish_parent(context.tracking, parent)


if __name__ == "__main__":
    run_dag(Path(sys.argv[1]))
