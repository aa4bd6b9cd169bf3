"""Runs as Kubeflow Pipelines tells of them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ...components.common.config import STAGES, ConfigError, Stage
from ...components.common.context import RunContext
from ...components.common.storage.names import fingerprint, sha256_file
from ...components.common.storage.s3 import Storage
from ..config import Config
from ..run.watch import LAST_TASK, STAGE_OF_TASK, StageProgress

Ending = Literal["succeeded", "refused", "failed", "canceled"]
"""How a run ended; ``refused``: all stages worked, and the gate refused the model."""


@dataclass(frozen=True)
class SubmittedRun:
    """A run, or a recurring run, that Kubeflow Pipelines has accepted."""

    run_id: str
    """KFP's id."""
    url: str
    """Its page."""
    name: str
    """Its name."""


def _predicate(operation: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": "display_name", "string_value": value}]})


def _named(name: str) -> str:
    return _predicate("EQUALS", name)


def _containing(name: str) -> str:
    return _predicate("IS_SUBSTRING", name)


def cron_expression(text: str) -> str:
    """KFP's six fields, of which the first is the second, from the usual five or from six.

    Raises:
        ConfigError: there are more or fewer.
    """
    fields = text.split()
    if len(fields) not in (5, 6):
        raise ConfigError(f"--cron '{text}': expected five fields, for example '0 3 * * *' (every night at three)")
    return " ".join(["0", *fields] if len(fields) == 5 else fields)


def rows_fingerprint(config: Config) -> str:
    """Identifies the rows that a run would prepare: their contents, not their name.

    Raises:
        StorageError: they cannot be read.
    """
    source = config.data.source
    if source == "synthesize":
        return fingerprint(config.data.synthesize)
    if not source.startswith("s3://"):
        return sha256_file(Path(source))[:16]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        Storage(config.storage).download_file(source, path)
        return sha256_file(path)[:16]


def _context(run: Any) -> RunContext | None:
    """The context of a run of our pipeline; None: of another pipeline, or of another version of ours."""
    parameters = run.runtime_config.parameters if run.runtime_config else None
    try:
        return RunContext.load((parameters or {})["run"], "run")
    except (ConfigError, KeyError, TypeError):
        return None


def ending(run: Any) -> Ending | None:
    """How a run ended; None: it has not."""
    if run.state == "SUCCEEDED":
        return "refused" if stages(run)["gate"].status == "refused" else "succeeded"
    if run.state in ("FAILED", "CANCELED"):
        return "canceled" if run.state == "CANCELED" else "failed"
    return None


def _tasks(run: Any) -> list[Any]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def stages(run: Any) -> dict[Stage, StageProgress]:
    """How far each stage of a run is, from the states of its tasks."""
    over = run.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
    found: dict[Stage, StageProgress] = {}
    for stage in STAGES:
        tasks = [task for task in _tasks(run) if STAGE_OF_TASK.get(task.display_name) == stage]
        states = {task.state for task in tasks} - {None, "RUNTIME_STATE_UNSPECIFIED"}
        last = {task.state for task in tasks if task.display_name == LAST_TASK[stage]}
        progress = found[stage] = StageProgress(stage)
        errors = [task.error.message for task in tasks if task.error and task.error.message]
        if "FAILED" in states or states & {"CANCELED", "CANCELING"}:
            progress.status, progress.line = "failed", errors[0] if errors else "stopped"
        elif stage == "gate" and any(t.display_name == "refuse" and t.state == "SUCCEEDED" for t in tasks):
            progress.status = "refused"
        elif "SUCCEEDED" in last:
            progress.status = "done"
        elif states and states <= {"SKIPPED"}:
            progress.status = "skipped"
        elif states:
            progress.status = "running"
            progress.line = "waits for a place" if states <= {"PENDING", "PAUSED"} else ""
        elif over:
            progress.status = "skipped"
        started = [task.start_time or task.create_time for task in tasks if task.start_time or task.create_time]
        if started:
            ended = [task.end_time for task in tasks if task.end_time and task.end_time.year > 1970]
            until = max(ended) if len(ended) == len(tasks) else datetime.now(UTC)
            progress.started, progress.seconds = 0.0, max(0.0, (until - min(started)).total_seconds())
    return found


def _pods(run: Any, stage: Stage) -> list[tuple[str, str]]:
    """(pod, day of its creation) of a stage's tasks, in the order in which KFP lists them."""
    tasks = _tasks(run)
    by_pod = {task.pod_name: task for task in tasks if task.pod_name}
    found: dict[str, str] = {}
    waiting = [task for task in tasks if STAGE_OF_TASK.get(task.display_name) == stage]
    while waiting:
        task = waiting.pop(0)
        below = [by_pod[child.pod_name] for child in task.child_tasks or [] if child.pod_name in by_pod]
        # A task is a driver, which decides whether it runs, and an executor, maybe with attempts `executor(0)`, ….
        # The children of those are the tasks that come next.
        attempts = [child for child in below if child.display_name.startswith("executor") and child is not task]
        if attempts and task.display_name != attempts[0].display_name:
            waiting += [child for child in attempts if child.pod_name not in found]
        elif task.pod_name:
            found[task.pod_name] = f"{task.create_time:%Y-%m-%d}" if task.create_time else ""
    return list(found.items())
