"""The DAG run in the workspace."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.context import RunContext
from ...components.common.launch.process import spawn
from ...components.common.storage.manifest import Manifest
from ...components.common.storage.names import fingerprint
from ...components.common.storage.s3 import Storage
from .session import RunError, Session, _shown
from .state import STATE, State, _enabled, stage_keys
from .summary import Outcome
from .watch import _ANSI, LAST_TASK, PARENT, STAGE_OF_TASK, StageProgress

_EXECUTING = re.compile(r"Executing task '([^']+)'")


_FINISHED = re.compile(r"Task '([^']+)' finished with status (\w+)")


_NOISE = re.compile(
    r"^\s*$|^\s*[-{}\[\]\"]|KFP Executor|Streamed logs:|Executing task|finished with status|"
    r"Task '.*' (?:outputs:|has no outputs)|^\s*Output: |have no effect in the current|_warn_local_only|"
    r"During handling of the above exception|The above exception was the direct cause"
)
"""Lines of kfp.local itself, which say nothing to a person."""


_EXCEPTION = re.compile(r"^\s*(?:[a-z_][\w.]*\.)?([A-Z]\w*): (.+)$")


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
    with spawn([sys.executable, "-m", f"{__package__}.dag", str(job)], environment, everything) as process:
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
        from ...components.evaluation.gate import read_gate

        return read_gate(storage, context, before["evaluate"].manifest_uri)
    return Manifest.read(storage, progress.output)
