"""How far the stages of a run are: their states, the DAG's tasks that make them up, and what ``kfp.local`` prints."""

import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...components.common.compat import kfp
from ...components.common.config import STAGES, Stage

Status = Literal["waiting", "running", "done", "reused", "skipped", "refused", "failed"]
STAGE_OF_TASK: dict[str, Stage] = {
    **dict.fromkeys(("plan-data", "prepare-shard", "merge-data"), "prepare"),
    **{stage: stage for stage in STAGES if stage != "prepare"},
    "refuse": "gate",
}
"""The stage of every task of the DAG (`skip` and `keep` belong to none)."""
LAST_TASK: dict[Stage, str] = {"prepare": "merge-data", **{stage: stage for stage in STAGES if stage != "prepare"}}
"""The task whose output is the stage's."""


@dataclass
class StageProgress:
    """How far one stage is."""

    stage: Stage
    status: Status = "waiting"
    started: float | None = None  # `time.monotonic` when its first task began
    seconds: float = 0.0  # wall time in this run
    line: str = ""  # what it printed last
    output: str = ""  # what its last task returned: a manifest's URI, or the gate's verdict


_EXCEPTION = re.compile(r"^\s*(?:[a-z_][\w.]*\.)?([A-Z]\w*): (.+)$")
_LAST_LINES = 12


class LocalRunWatcher:
    """Reads the file to which ``kfp.local`` prints."""

    def __init__(self, printed: Path, tasks: Path, logs: Path, skipped: list[Stage]) -> None:
        """Args: the file, ``kfp.local``'s ``pipeline_root``, a folder for a log per stage, and stages left out."""
        self._printed = printed.open(encoding="utf-8", errors="replace")
        self._tasks, self._logs = tasks, logs
        self._unfinished = ""
        self._current: Stage | None = None
        self._in_traceback = False
        self.last_exception = ""
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.stages = {stage: StageProgress(stage, "skipped" if stage in skipped else "waiting") for stage in STAGES}

    def poll(self) -> bool:
        """Read what was printed since; True when there was something."""
        *lines, self._unfinished = (self._unfinished + self._printed.read()).split("\n")
        for line in lines:
            self._read_line(kfp.plain(line).rstrip())
        now = time.monotonic()
        for progress in self.stages.values():
            if progress.status == "running" and progress.started is not None:
                progress.seconds = now - progress.started
        return bool(lines)

    def _read_line(self, line: str) -> None:
        event = kfp.task_event(line)
        if event and event.succeeded is None:
            self._begin(event.task)
        if self._current is None:
            return
        progress = self.stages[self._current]
        with (self._logs / f"{self._current}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        if progress.status == "running" and not kfp.is_noise(line):
            self._read_stage_line(line.removeprefix("    "), progress)
        if event and event.succeeded is False:
            progress.status = "failed"
        elif event and event.succeeded and event.task == LAST_TASK[self._current]:
            self._finish(progress)

    def _begin(self, task: str) -> None:
        self._current = STAGE_OF_TASK.get(task, self._current)
        if self._current and self.stages[self._current].status == "waiting":
            progress = self.stages[self._current]
            progress.status, progress.started = "running", time.monotonic()
            self.last_lines.clear()

    def _read_stage_line(self, line: str, progress: StageProgress) -> None:
        """A line that a stage itself printed. Of a traceback, which is for the log, only the end is kept."""
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
        progress.output = kfp.task_output(self._tasks, LAST_TASK[progress.stage])
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
