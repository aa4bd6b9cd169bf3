"""Runs on Kubeflow Pipelines: find, follow, stop and continue them, and read their logs.

Where KFP's page gives a task's log was read in its source (frontend/server); no KFP server was available to check it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...components.common.config import STAGES, Stage
from ..run.progress import StageProgress
from .connection import TIMEOUT_S, KfpConnection
from .errors import KfpError
from .progress import ending, run_context, stage_pods, stage_progress

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What must not reach the terminal of a person who reads a log."""
_ROWS = re.compile(r"\brows ([0-9a-f]{16})\b")
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class SubmittedRun:
    """A run, or a recurring run, that Kubeflow Pipelines has accepted."""

    run_id: str
    """KFP's id."""
    url: str
    """Its page."""
    name: str
    """Its name."""


# --- looking for runs ---------------------------------------------------------------------------------------------


def named(name: str) -> str:
    """KFP's filter for what has this name."""
    return _predicate("EQUALS", name)


def _predicate(operation: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": "display_name", "string_value": value}]})


def newest(kfp: KfpConnection, listing: Callable[..., Any], key: str, condition: str, count: int = 1) -> list[Any]:
    """The newest entries of one of KFP's lists that meet a condition."""
    answer = listing(filter=condition, sort_by="created_at desc", page_size=count, **kfp.scope)
    return list(getattr(answer, key) or [])


def recent_runs(kfp: KfpConnection, name: str = "", count: int = 10) -> list[V2beta1Run]:
    """The newest runs of our pipeline whose name contains ``name``, newest first."""
    condition = _predicate("IS_SUBSTRING", name)
    listed = kfp.call("list runs", newest, kfp, kfp.apis.runs.run_service_list_runs, "runs", condition, count)
    return [run for run in listed if run_context(run) is not None]


def redo_counts(kfp: KfpConnection, config_name: str) -> dict[Stage, int]:
    """How often each stage was asked to start afresh, as the newest run of a configuration says."""
    for run in recent_runs(kfp, f"{config_name}-"):
        context = run_context(run)
        if context is not None and run.display_name.startswith(f"{config_name}-"):
            return {stage: context.redo[stage] for stage in STAGES if stage in context.redo}
    return {}


def last_rows(kfp: KfpConnection, config_name: str) -> str | None:
    """Fingerprint of the rows that the newest run of a configuration was started for; None: not known."""
    for run in recent_runs(kfp, f"{config_name}-", count=50):
        if run.display_name.startswith(f"{config_name}-") and (match := _ROWS.search(run.description or "")):
            return match[1]
    return None


def find_run(kfp: KfpConnection, name: str) -> V2beta1Run:
    """A run by KFP's id, or by its name.

    Raises:
        KfpError: there is none.
    """
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


# --- steering and following them ----------------------------------------------------------------------------------


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
    if ending(run) is not None:
        return f"already over: {ending(run)}"
    kfp.repeat("stop the run", kfp.apis.runs.run_service_terminate_run, run.run_id)
    return "stopping"


def retry_run(kfp: KfpConnection, name: str) -> SubmittedRun:
    """Continue a failed or stopped run where it ended."""
    run = find_run(kfp, name)
    if ending(run) not in ("failed", "canceled"):
        raise KfpError(f"{name} is {ending(run) or 'not over'}: only a failed or stopped run is retried")
    kfp.repeat("retry the run", kfp.apis.runs.run_service_retry_run, run.run_id)
    return SubmittedRun(run.run_id, f"{kfp.host}/#/runs/details/{run.run_id}", run.display_name)


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
        kfp: where.
        run_id: KFP's id.
        on_change: gets the stages at each look.
        on_silence: gets the reason, once, when KFP stops answering.
        poll_s: seconds between two looks.
        patience_s: how long KFP may be silent.

    Raises:
        KfpError: KFP was silent for longer, or does not know us any more. The run goes on.
    """
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
    """What the tasks of a stage printed, line by line, as KFP's page gives it.

    Raises:
        KfpError: the stage has no pod yet, or its log is gone.
    """
    import httpx

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
