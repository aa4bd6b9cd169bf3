"""The DAG run in the workspace: by ``kfp.local`` in a second process, whose progress is followed."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.context import RunContext
from ...components.common.errors import UserError
from ...components.common.launch.process import spawn
from ...components.common.storage.manifest import Manifest
from ...components.common.storage.names import fingerprint
from ...components.common.storage.s3 import Storage
from . import dag
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
    parent_run_id: str
    """MLflow run of the pipeline."""
    stages: Mapping[Stage, StageProgress]
    manifests: Mapping[Stage, Manifest]
    """What the stages left, as far as they ran."""


def run_pipeline(
    opened: Session, restart: Stage | None, on_change: Callable[[Mapping[Stage, StageProgress]], None]
) -> Outcome:
    """Run the DAG in the workspace.

    Args:
        restart: do this stage and all after it afresh, though finished output is there.
        on_change: called a few times a second with the progress of all stages.

    Raises:
        StageFailedError: one line with the stage, its reason and its log.
    """
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
    job.write_text(dag.LocalRunJob(config=config, context=context).model_dump_json(), "utf-8")

    keys = stage_keys(config, state)
    watcher = LocalRunWatcher(printed, tasks, logs, [stage for stage in STAGES if not is_enabled(config, stage)])
    started = datetime.now(UTC).replace(microsecond=0)  # manifests tell whole seconds
    manifests: dict[Stage, Manifest] = {}
    # Unbuffered, so that a stage's lines arrive when they are printed.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with spawn([sys.executable, "-m", dag.__name__, str(job)], environment, printed) as process:
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
    return Outcome(run_id, dag.parent_file(job).read_text("utf-8"), watcher.stages, manifests)


def _read_manifest(
    storage: Storage, context: RunContext, progress: StageProgress, before: Mapping[Stage, Manifest]
) -> Manifest:
    """What a finished stage left. The gate returns a verdict, and keeps its manifest where the evaluation tells."""
    if progress.stage == "gate":
        from ...components.evaluation.gate import read_gate

        return read_gate(storage, context, before["evaluate"].manifest_uri)
    return Manifest.read(storage, progress.output)
