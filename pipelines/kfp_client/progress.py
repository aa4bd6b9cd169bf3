"""How far a run on Kubeflow Pipelines is, from the states of its tasks.

The names by which stages are recognised in a run's ``task_details`` were read in KFP's source
(backend/src/apiserver); no KFP server was available to check them against.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from ...components.common.config import STAGES, ConfigError, Stage
from ...components.common.context import RunContext
from ..run.progress import LAST_TASK, STAGE_OF_TASK, StageProgress

if TYPE_CHECKING:
    from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

Ending = Literal["succeeded", "refused", "failed", "canceled"]
"""How a run ended; ``refused``: all stages worked, and the gate refused the model."""


def run_context(run: V2beta1Run) -> RunContext | None:
    """The context of a run of our pipeline; None: of another pipeline, or of another version of ours."""
    parameters = run.runtime_config.parameters if run.runtime_config else None
    try:
        return RunContext.load((parameters or {})["run"], "run")
    except (ConfigError, KeyError, TypeError):
        return None


def ending(run: V2beta1Run) -> Ending | None:
    """How a run ended; None: it has not."""
    if run.state == "SUCCEEDED":
        return "refused" if stage_progress(run)["gate"].status == "refused" else "succeeded"
    if run.state in ("FAILED", "CANCELED"):
        return "canceled" if run.state == "CANCELED" else "failed"
    return None


def _tasks(run: V2beta1Run) -> list[V2beta1PipelineTaskDetail]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def stage_progress(run: V2beta1Run) -> dict[Stage, StageProgress]:
    """How far each stage of a run is, from the states of its tasks."""
    over = run.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
    stages: dict[Stage, StageProgress] = {}
    for stage in STAGES:
        tasks = [task for task in _tasks(run) if STAGE_OF_TASK.get(task.display_name) == stage]
        states = {task.state for task in tasks} - {None, "RUNTIME_STATE_UNSPECIFIED"}
        last = {task.state for task in tasks if task.display_name == LAST_TASK[stage]}
        progress = stages[stage] = StageProgress(stage)
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
    return stages


def stage_pods(run: V2beta1Run, stage: Stage) -> list[tuple[str, str]]:
    """(pod, day of its creation) of a stage's tasks, in the order in which KFP lists them."""
    tasks = _tasks(run)
    by_pod = {task.pod_name: task for task in tasks if task.pod_name}
    days: dict[str, str] = {}
    waiting = [task for task in tasks if STAGE_OF_TASK.get(task.display_name) == stage]
    while waiting:
        task = waiting.pop(0)
        below = [by_pod[child.pod_name] for child in task.child_tasks or [] if child.pod_name in by_pod]
        # A task is a driver, which decides whether it runs, and an executor, maybe with attempts `executor(0)`, ….
        # The children of those are the tasks that come next.
        attempts = [child for child in below if child.display_name.startswith("executor") and child is not task]
        if attempts and task.display_name != attempts[0].display_name:
            waiting += [child for child in attempts if child.pod_name not in days]
        elif task.pod_name:
            days[task.pod_name] = f"{task.create_time:%Y-%m-%d}" if task.create_time else ""
    return list(days.items())
