"""Runs on Kubeflow Pipelines: find, follow, stop and continue them, and read how far they are and their logs.

How tasks are named in a run's ``task_details`` (backend/src/apiserver) and where KFP's page gives their logs
(frontend/server) was read in KFP's source; no KFP server was available to check it.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from ...components.common.config import STAGES, ConfigError, Stage
from ...components.common.context import RunContext
from ..run.progress import LAST_TASK, STAGE_OF_TASK, StageProgress
from .connection import TIMEOUT_S, KfpConnection, KfpError

Ending = Literal["succeeded", "refused", "failed", "canceled"]
"""How a run ended; ``refused``: all stages worked, and the gate refused the model."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What must not reach the terminal of a person who reads a log."""
_ROWS = re.compile(r"\brows ([0-9a-f]{16})\b")
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class SubmittedRun:
    """A run, or a recurring run, that Kubeflow Pipelines has accepted: KFP's id, its page, its name."""

    run_id: str
    url: str
    name: str


def page_of(kfp: KfpConnection, run_id: str) -> str:
    """Address of a run's page."""
    return f"{kfp.host}/#/runs/details/{run_id}"


# --- how far a run is


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


# --- looking for runs


def named(name: str, operation: str = "EQUALS") -> str:
    """KFP's filter for what has this name."""
    return json.dumps({"predicates": [{"operation": operation, "key": "display_name", "string_value": name}]})


def newest(kfp: KfpConnection, listing: Callable[..., Any], key: str, condition: str) -> Any | None:
    """The newest entry of one of KFP's lists that meets a condition; None where none does."""
    answer = listing(filter=condition, sort_by="created_at desc", page_size=1, **kfp.scope)
    return next(iter(getattr(answer, key) or []), None)


def recent_runs(kfp: KfpConnection, name: str = "", count: int = 10) -> list[V2beta1Run]:
    """The newest runs of our pipeline whose name contains ``name``, newest first."""
    query = {"filter": named(name, "IS_SUBSTRING"), "sort_by": "created_at desc", "page_size": count, **kfp.scope}
    listed = kfp.call("list runs", kfp.apis.runs.run_service_list_runs, **query)
    return [run for run in listed.runs or [] if run_context(run) is not None]


def redo_counts(kfp: KfpConnection, config_name: str) -> dict[Stage, int]:
    """How often each stage was asked to start afresh, as the newest run of a configuration says."""
    for run in recent_runs(kfp, f"{config_name}-"):
        if run.display_name.startswith(f"{config_name}-") and (context := run_context(run)) is not None:
            return {stage: context.redo[stage] for stage in STAGES if stage in context.redo}
    return {}


def last_rows(kfp: KfpConnection, config_name: str) -> str | None:
    """Fingerprint of the rows that the newest run of a configuration was started for; None: not known."""
    for run in recent_runs(kfp, f"{config_name}-", count=50):
        if run.display_name.startswith(f"{config_name}-") and (match := _ROWS.search(run.description or "")):
            return match[1]
    return None


def find_run(kfp: KfpConnection, name: str) -> V2beta1Run:
    """A run by KFP's id, or by its name; a `KfpError` where there is none."""
    if not _RUN_ID.fullmatch(name):
        for run in recent_runs(kfp, name):
            if run.display_name == name:
                return get_run(kfp, run.run_id)
    try:
        return get_run(kfp, name)
    except KfpError as error:
        if error.status != 404:
            raise
        raise KfpError(f"no run '{name}' in {kfp.host}; `vthink status` lists the newest", 404) from error


def get_run(kfp: KfpConnection, run_id: str) -> V2beta1Run:
    """A run with the states of its tasks."""
    return kfp.call(f"read run {run_id}", kfp.apis.runs.run_service_get_run, run_id)


# --- steering and following them


def cancel_run(kfp: KfpConnection, name: str) -> str:
    """Stop a run, or delete a recurring run; says which."""
    try:
        run = find_run(kfp, name)
    except KfpError as error:
        if error.status != 404:
            raise
        try:
            kfp.call("delete it", kfp.apis.recurring_runs.recurring_run_service_delete_recurring_run, name)
        except KfpError as failure:
            raise (error if failure.status == 404 else failure) from failure
        return "deleted the recurring run"
    if how := ending(run):
        return f"already over: {how}"
    kfp.repeat("stop the run", kfp.apis.runs.run_service_terminate_run, run.run_id)
    return "stopping"


def retry_run(kfp: KfpConnection, name: str) -> SubmittedRun:
    """Continue a failed or stopped run where it ended."""
    run = find_run(kfp, name)
    if ending(run) not in ("failed", "canceled"):
        raise KfpError(f"{name} is {ending(run) or 'not over'}: only a failed or stopped run is retried")
    kfp.repeat("retry the run", kfp.apis.runs.run_service_retry_run, run.run_id)
    return SubmittedRun(run.run_id, page_of(kfp, run.run_id), run.display_name)


def wait_for_run(
    kfp: KfpConnection,
    run_id: str,
    on_change: Callable[[Mapping[Stage, StageProgress]], None],
    on_silence: Callable[[str], None] = lambda _: None,
    poll_s: float = 5.0,
    patience_s: float = 3600.0,
) -> V2beta1Run:
    """Follow a run to its end; however long it queues.

    Args:
        on_change: gets the stages at each look, every ``poll_s`` seconds.
        on_silence: gets the reason, once, when KFP stops answering; it may be silent for ``patience_s``.

    Raises:
        KfpError: KFP was silent for longer, or does not know us any more. The run goes on."""
    answered, silent = time.monotonic(), False
    while True:
        try:
            run = get_run(kfp, run_id)
            answered, silent = time.monotonic(), False
            on_change(stage_progress(run))
            if ending(run) is not None:
                return run
        except KfpError as error:
            if not error.is_temporary or time.monotonic() - answered > patience_s:
                raise KfpError(f"{error}; the run goes on, see `vthink status {run_id}`", error.status) from error
            if not silent:
                on_silence(str(error))
            silent = True
        time.sleep(poll_s)


def stage_log(kfp: KfpConnection, run: V2beta1Run, stage: Stage) -> Iterator[str]:
    """What the tasks of a stage printed, line by line, as KFP's page gives it; a `KfpError` where it has none."""
    pods = stage_pods(run, stage)
    if not pods:
        raise KfpError(f"stage {stage} of {run.display_name} has not started a pod")
    url, headers = f"{kfp.host}/k8s/pod/logs", kfp.apis.authorization()
    for pod, created in pods:
        query = {"podname": pod, "runid": run.run_id, "podnamespace": kfp.namespace, "createdat": created}
        try:
            with httpx.stream("GET", url, params=query, headers=headers, timeout=TIMEOUT_S[1]) as answer:
                if answer.status_code != 200:
                    raise KfpError(f"no log of {pod}: {kfp.host} answered {answer.status_code}")
                for line in answer.iter_lines():
                    yield _CONTROL.sub("", line)
        except httpx.HTTPError as error:
            raise KfpError(f"no log of {pod}: {kfp.host} does not answer ({type(error).__name__})") from error
