"""The pipeline on this machine: what ``vthink run`` does.

Two processes. The one the user started holds the workspace, starts the object store, shows progress and writes the
summary; it needs neither KFP nor MLflow. The other one (``python -m vthink.pipelines.run JOB``) runs the DAG through
kfp.local and dies with the first. Everything that makes a second run cheap and a killed run resume is in the stages:
they recognise finished work by its fingerprint.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from .. import __version__
from ..components.common.config import STAGES, RunContext, Stage
from ..components.common.launch import Endpoint, Workspace, die_with_owner, spawn
from ..components.common.storage import MANIFEST, Manifest, Storage, as_prefix, fingerprint, join
from .config import Config, to_yaml

Status = Literal["waiting", "running", "done", "reused", "skipped", "refused", "failed"]


class RunError(RuntimeError):
    """A run that could not finish: the stage, why, and where its log is, in one line."""

    def __init__(self, message: str, lines: Sequence[str] = ()):
        super().__init__(message)
        self.lines = tuple(lines)
        """The last lines that the stage printed."""


# --- The workspace in use ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A workspace with its object store up, as every command that reads or writes artifacts needs it."""

    config: Config
    workspace: Workspace
    storage: Storage
    context: RunContext


@contextmanager
def session(config: Config, folder: Path, exclusive: bool = True) -> Iterator[Session]:
    """Open the workspace: lock it, start its object store (unless one is given), point the environment at it.

    Args:
        config: where storage and tracking are; null values there mean the workspace's own.
        folder: the workspace, ``.vthink`` by default.
        exclusive: take the lock; commands that only read do without and may work beside a run.

    Raises:
        WorkspaceLockedError: another ``vthink`` works in this workspace.
        LaunchError: the object store cannot be started.
        StorageError: the object store cannot be reached, or refuses the credentials.
    """
    workspace = Workspace(folder)
    before = dict(os.environ)
    with workspace.lock() if exclusive else nullcontext():
        given = config.storage.endpoint_url
        endpoint = Endpoint(given) if given else workspace.start_s3()
        try:
            endpoint.export()
            tracking_uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or workspace.mlflow_uri
            storage = Storage(config.storage.model_copy(update={"endpoint_url": endpoint.url}))
            storage.ensure_bucket()
            if exclusive:
                storage.check()
            context = RunContext(
                run_id=config.name,
                work_dir=str(workspace.work_dir),
                storage=storage.config,
                tracking=config.tracking.model_copy(update={"uri": tracking_uri}),
                launch=config.launch,
            )
            yield Session(config, workspace, storage, context)
        finally:
            endpoint.stop()
            os.environ.clear()
            os.environ.update(before)


def experiment_id(opened: Session) -> str:
    """MLflow's number of the configuration's experiment, which is made when there is none."""
    from ..components.common.tracking import ensure_experiment, registry_client

    client = registry_client(opened.context.tracking, opened.storage.config)
    return ensure_experiment(client, opened.context.tracking.experiment, opened.storage.config.root_uri + "mlflow")


# --- Single stages -----------------------------------------------------------------------------------------------


def prepare_data(opened: Session, source: str | None = None) -> str:
    """Prepare the rows of the configuration (or of ``source``), or find them prepared; the manifest's URI."""
    from ..components.data_prep import prepare

    section = opened.config.data
    if source is not None:
        section = type(section).load(section.model_dump() | {"source": source}, "--data")
    return prepare.prepare_data(opened.context.to_json(), section.to_json(), opened.config.video.to_json())


def find_data(opened: Session, given: str | None) -> str:
    """The manifest of the prepared set that a person means: a set, rows to prepare, or the configuration's rows."""
    from ..components.data_prep.sources import SUFFIXES

    if given is None or (given.endswith(SUFFIXES) and posixpath.basename(given) != MANIFEST):
        return prepare_data(opened, given)
    return find_manifest(opened, given)


def find_manifest(opened: Session, given: str) -> str:
    """The manifest that a person means by its URI, its prefix, or the folder in the workspace's store.

    Raises:
        RunError: a path outside of the store.
        StorageError: there is no such manifest.
    """
    uri = given
    if "://" not in given:
        store, path = opened.workspace.s3_dir.resolve(), Path(given).resolve()
        if not path.is_relative_to(store):
            raise RunError(f"{given}: neither an s3:// URI nor a folder below {_shown(store)}")
        uri = f"s3://{path.relative_to(store).as_posix()}"
    if not uri.endswith(".json"):
        uri = join(as_prefix(uri), MANIFEST)
    return Manifest.read(opened.storage, uri).manifest_uri


# --- What the workspace remembers --------------------------------------------------------------------------------


STATE, SUMMARY = "state.json", "summary.json"
"""Files of the workspace."""


class State(BaseModel):
    """``state.json``: what the next run must know about the earlier ones."""

    redo: dict[Stage, int] = {}
    """How often each stage was asked to start afresh (``--from``)."""
    runs: dict[str, str] = {}
    """Run id by fingerprint of configuration and redo counters: the same run is continued, not doubled."""
    finished: dict[Stage, dict[str, str]] = {}
    """Manifest URI of finished stages by `stage_key`; tells ``--dry-run`` what will be reused."""

    @classmethod
    def read(cls, path: Path) -> State:
        """The state in ``path``; a fresh one where there is none."""
        return cls.model_validate_json(path.read_text("utf-8")) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Write atomically."""
        part = path.with_suffix(".part")
        part.write_text(self.model_dump_json(indent=1), "utf-8")
        part.replace(path)


SECTIONS: dict[Stage, tuple[str, ...]] = {
    "prepare": ("data", "video"),
    "sft": ("sft", "model"),
    "grpo": ("grpo", "model"),
    "evaluate": ("evaluation", "model"),
    "gate": ("evaluation",),
    "register": ("deployment",),
    "deploy": ("deployment",),
}
"""The sections each stage reads."""


def stage_keys(config: Config, state: State) -> dict[Stage, str]:
    """A key per stage that changes whenever the stage's own fingerprint may: its sections and all before it."""
    keys: dict[Stage, str] = {}
    before = __version__
    for stage in STAGES:
        sections = [getattr(config, name).to_json() for name in SECTIONS[stage]]
        before = keys[stage] = fingerprint(stage, sections, state.redo.get(stage, 0), before)
    return keys


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with one stage."""

    stage: Stage
    action: Literal["run", "reuse", "skip", "check"]
    reason: str


def plan(opened: Session, restart: Stage | None = None) -> list[PlannedStage]:
    """What a run would do, stage by stage, without doing it."""
    state = State.read(opened.workspace.root / STATE)
    if restart:
        state.redo[restart] = state.redo.get(restart, 0) + 1
    planned = []
    for stage, key in stage_keys(opened.config, state).items():
        manifest = state.finished.get(stage, {}).get(key)
        if not _enabled(opened.config, stage):
            planned.append(PlannedStage(stage, "skip", f"{stage}.enabled is false"))
        elif stage in ("gate", "register", "deploy"):
            planned.append(PlannedStage(stage, "check", "quick; depends on the evaluation and on what is in service"))
        elif manifest and opened.storage.exists(manifest):
            planned.append(PlannedStage(stage, "reuse", manifest))
        else:
            planned.append(PlannedStage(stage, "run", "no finished output for these settings and inputs"))
    return planned


def _enabled(config: Config, stage: Stage) -> bool:
    return not (stage in ("sft", "grpo") and not getattr(config, stage).enabled)


# --- Watching the DAG --------------------------------------------------------------------------------------------

STAGE_OF_TASK: dict[str, Stage] = {
    "plan-data": "prepare",
    "prepare-shard": "prepare",
    "merge-data": "prepare",
    "sft": "sft",
    "grpo": "grpo",
    "evaluate": "evaluate",
    "gate": "gate",
    "refuse": "gate",
    "register": "register",
    "deploy": "deploy",
}
"""The stage of every task of the DAG (`skip` and `keep` belong to none)."""
PARENT = "parent.json"
"""File by which the second process tells the first the MLflow run of the pipeline."""
LAST_TASK: dict[Stage, str] = {"prepare": "merge-data", **{stage: stage for stage in STAGES if stage != "prepare"}}
"""The task whose output is the stage's."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXECUTING = re.compile(r"Executing task '([^']+)'")
_FINISHED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_NOISE = re.compile(
    r"^\s*$|^\s*[-{}\[\]\"]|KFP Executor|Streamed logs:|Executing task|finished with status|"
    r"Task '.*' (?:outputs:|has no outputs)|^\s*Output: |have no effect in the current|_warn_local_only|"
    r"During handling of the above exception|The above exception was the direct cause"
)
"""Lines of kfp.local itself, which say nothing to a person."""
_EXCEPTION = re.compile(r"^\s*(?:[a-z_][\w.]*\.)?([A-Z]\w*): (.+)$")


@dataclass
class StageProgress:
    """How far one stage is."""

    stage: Stage
    status: Status = "waiting"
    started: float | None = None
    """`time.monotonic` when its first task began."""
    seconds: float = 0.0
    """Wall time in this run."""
    line: str = ""
    """The last thing it said."""
    output: str = ""
    """What its last task returned: a manifest's URI, or the gate's verdict."""


class _Watcher:
    """Follows what kfp.local prints: one log per stage, and the stages' progress."""

    def __init__(self, source: Path, tasks: Path, logs: Path, skipped: list[Stage]) -> None:
        self._source = source.open(encoding="utf-8", errors="replace")
        self._tasks = tasks
        self._logs = logs
        self._unfinished = ""
        self._current: Stage | None = None
        self._in_traceback = False
        self.last_exception = ""
        self.last_lines: deque[str] = deque(maxlen=12)
        self.stages = {stage: StageProgress(stage, "skipped" if stage in skipped else "waiting") for stage in STAGES}

    def poll(self) -> bool:
        """Read what was printed since; True when there was something."""
        text = self._unfinished + self._source.read()
        *lines, self._unfinished = text.split("\n")
        for line in lines:
            self._take(_ANSI.sub("", line).rstrip())
        now = time.monotonic()
        for progress in self.stages.values():
            if progress.status == "running" and progress.started is not None:
                progress.seconds = now - progress.started
        return bool(lines)

    def _take(self, line: str) -> None:
        if found := _EXECUTING.search(line):
            self._current = STAGE_OF_TASK.get(found[1], self._current)
            if self._current and self.stages[self._current].status == "waiting":
                progress = self.stages[self._current]
                progress.status, progress.started = "running", time.monotonic()
                self.last_lines.clear()
        if self._current is None:
            return
        with (self._logs / f"{self._current}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        if self.stages[self._current].status == "running" and not _NOISE.search(line):
            self._hear(line.removeprefix("    "), self.stages[self._current])
        if (ended := _FINISHED.search(line)) and ended[2] != "SUCCESS":
            self.stages[self._current].status = "failed"
        elif ended and ended[1] == LAST_TASK[self._current]:
            self._finish(self.stages[self._current])

    def _hear(self, line: str, progress: StageProgress) -> None:
        """Something that a stage itself said. Of a traceback, which is for the log, only the end is kept."""
        if line.lstrip().startswith("Traceback (most recent call last)"):
            self._in_traceback = True
        raised = _EXCEPTION.match(line)
        if raised and (self._in_traceback or raised[1].endswith("Error")):
            self._in_traceback = False
            self.last_exception = raised[2]
        elif not self._in_traceback:
            progress.line = line.strip()
            self.last_lines.append(line)

    def _finish(self, progress: StageProgress) -> None:
        output = next(self._tasks.glob(f"*/{LAST_TASK[progress.stage]}/executor_output.json"))
        progress.output = json.loads(output.read_text("utf-8"))["parameterValues"]["Output"]
        progress.status = "done"
        if progress.stage == "gate" and progress.output != "pass":
            progress.status = "refused"
            for stage in ("register", "deploy"):
                self.stages[stage].status = "skipped"

    def fail(self) -> StageProgress | None:
        """The stage in which the DAG ended, None when it was not in any."""
        ended = [progress for progress in self.stages.values() if progress.status in ("running", "failed")]
        for progress in ended:
            progress.status = "failed"
        return ended[-1] if ended else None


# --- Running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_id: str
    parent_run_id: str | None
    """MLflow run of the pipeline."""
    stages: dict[Stage, StageProgress]
    manifests: dict[Stage, Manifest]
    """What the stages left, as far as they ran."""


def execute(
    opened: Session, restart: Stage | None, on_change: Callable[[Mapping[Stage, StageProgress]], None]
) -> Outcome:
    """Run the DAG in the workspace.

    Args:
        opened: a session that holds the workspace's lock.
        restart: do this stage and all after it afresh, though finished output is there.
        on_change: called a few times a second with the progress of all stages.

    Raises:
        RunError: a stage failed; one line with the stage, its reason and its log.
    """
    config, workspace = opened.config, opened.workspace
    state_file = workspace.root / STATE
    state = State.read(state_file)
    if restart:
        state.redo[restart] = state.redo.get(restart, 0) + 1
    key = fingerprint(config.to_json(), state.redo, __version__)
    fresh = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{key[:4]}"
    run_id = state.runs.setdefault(key, fresh)
    state.write(state_file)

    logs, tasks = workspace.logs_dir, workspace.root / "kfp"
    shutil.rmtree(tasks, ignore_errors=True)
    tasks.mkdir()
    everything = logs / "pipeline.log"
    everything.write_text("", "utf-8")
    context = opened.context.model_copy(update={"run_id": run_id, "redo": dict(state.redo)})
    job = tasks / "job.json"
    job.write_text(json.dumps({"config": config.to_json(), "context": context.to_json()}), "utf-8")

    keys = stage_keys(config, state)
    watcher = _Watcher(everything, tasks, logs, [stage for stage in STAGES if not _enabled(config, stage)])
    started = datetime.now(UTC).replace(microsecond=0)  # manifests tell whole seconds
    manifests: dict[Stage, Manifest] = {}
    # Unbuffered, so that a stage's lines arrive when they are printed.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with spawn([sys.executable, "-m", __spec__.name, str(job)], environment, everything) as process:
        while True:
            ended = process.poll() is not None
            watcher.poll()
            for stage, progress in watcher.stages.items():
                if progress.output and stage not in manifests:
                    manifests[stage] = manifest = _manifest(opened.storage, context, progress, manifests)
                    if progress.status == "done" and datetime.fromisoformat(manifest.created) < started:
                        progress.status = "reused"
                    state.finished.setdefault(stage, {})[keys[stage]] = manifest.manifest_uri
                    state.write(state_file)
            on_change(watcher.stages)
            if ended:
                break
            time.sleep(0.2)
    code = process.poll()
    if code != 0:
        failed = watcher.fail()
        on_change(watcher.stages)
        log = logs / f"{failed.stage}.log" if failed else everything
        where = f"stage {failed.stage}" if failed else "the pipeline"
        reason = watcher.last_exception or f"ended with exit code {code}"
        if failed:
            reason = reason.removeprefix(f"{failed.stage}: ")
        raise RunError(f"{where}: {reason} (log: {_shown(log)})", watcher.last_lines)
    parent = json.loads(job.with_name(PARENT).read_text("utf-8"))
    return Outcome(run_id, parent, watcher.stages, manifests)


def _manifest(
    storage: Storage, context: RunContext, progress: StageProgress, before: Mapping[Stage, Manifest]
) -> Manifest:
    """What a finished stage left. The gate returns a verdict, and keeps its manifest where the evaluation tells."""
    if progress.stage == "gate":
        from ..components.evaluation.gate import read_gate

        return read_gate(storage, context, before["evaluate"].manifest_uri)
    return Manifest.read(storage, progress.output)


def _shown(path: Path) -> Path:
    """The path as a person in this folder would type it."""
    with suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path


# --- The summary -------------------------------------------------------------------------------------------------


def write_summary(opened: Session, outcome: Outcome) -> dict[str, Any]:
    """``summary.json``: what a run came to, for people and programs. Returned as well.

    Keys: ``run_id config created status models candidate comparisons gate model question report prefixes mlflow
    stages``. ``models.<model>.<frames>`` holds every metric as ``{value, low, high, n}`` (a 95 % interval by
    default), over all items and ``by_type`` and ``by_kind``.
    """
    manifests, storage = outcome.manifests, opened.storage
    result = storage.read_json(manifests["evaluate"].files["result"])
    verdict = manifests["gate"].details
    deployed, registered = manifests.get("deploy"), manifests.get("register")
    model = None
    if registered:
        model = dict(registered.details)
        if deployed:
            model |= {key: deployed.details[key] for key in ("alias",) if key in deployed.details}
    summary: dict[str, Any] = {
        "run_id": outcome.run_id,
        "config": opened.config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": result["models"],
        "candidate": result["candidate"],
        "comparisons": result["comparisons"],
        "gate": {"verdict": verdict["verdict"], "lines": verdict["lines"]},
        "model": model,
        "question": deployed.details.get("question") if deployed else None,
        "report": manifests["evaluate"].files["report"],
        "prefixes": {stage: manifest.uri for stage, manifest in manifests.items()},
        "mlflow": {
            "uri": opened.context.tracking.uri,
            "experiment": opened.context.tracking.experiment,
            "parent_run_id": outcome.parent_run_id,
            "run_ids": {stage: manifest.mlflow_run_id for stage, manifest in manifests.items()},
        },
        "stages": {
            stage: {
                "status": progress.status,
                "seconds": round(progress.seconds, 1),
                "work_seconds": round(manifests[stage].seconds, 1) if stage in manifests else None,
            }
            for stage, progress in outcome.stages.items()
        },
    }
    path = opened.workspace.root / SUMMARY
    part = path.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=1, ensure_ascii=False), "utf-8")
    part.replace(path)
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of the workspace's last finished run.

    Raises:
        RunError: no run has finished there.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise RunError(f"{path}: no run has finished in this workspace; start one with `vthink run`")
    summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return summary


# --- The second process ------------------------------------------------------------------------------------------


def run_dag(job_file: Path) -> None:
    """The second process: the pipeline's MLflow run, and the DAG in it."""
    die_with_owner()
    from kfp import local

    from ..components.common import tracking
    from .pipeline import arguments, build

    job = json.loads(job_file.read_text("utf-8"))
    config = Config.load(job["config"], "job")
    context = RunContext.load(job["context"], "job")
    root, name = context.storage.root_uri + "mlflow", context.run_id
    parent = tracking.start_parent(context.tracking, name, to_yaml(config), name, root, context.storage)
    job_file.with_name(PARENT).write_text(json.dumps(parent), "utf-8")
    context = context.model_copy(update={"parent_run_id": parent})
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(job_file.parent), raise_on_error=True)
    try:
        build()(**arguments(config, context))
    except RuntimeError as error:
        tracking.finish_parent(context.tracking, parent, "FAILED")
        said = _ANSI.sub("", str(error))
        if "finished with status FAILURE" not in said:
            raise
        # A task failed and has said why.
        sys.exit(said)
    tracking.finish_parent(context.tracking, parent)


if __name__ == "__main__":
    run_dag(Path(sys.argv[1]))
