"""Runs of this machine as a person looks at them from another terminal: read from the workspace's files, in no time."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from ...components.common.config import STAGES, Stage
from ...components.common.errors import UserError
from ...components.common.storage.names import SEAL
from .progress import StageProgress

_FILE = "progress.json"
_WRITE_EVERY_S = 1.0


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, "utf-8")
    part.replace(path)


class ProgressFile:
    """Keeps ``progress.json`` of a run up to date."""

    def __init__(self, workspace: Path, run_id: str) -> None:
        self._path, self._run_id, self._written, self._statuses = workspace / _FILE, run_id, 0.0, ""

    def update(self, stages: Mapping[Stage, StageProgress]) -> None:
        """Write where the stages are: at once when one begins or ends, else each second."""
        statuses, now = "".join(progress.status for progress in stages.values()), time.monotonic()
        if statuses != self._statuses or now - self._written >= _WRITE_EVERY_S:
            self._written, self._statuses = now, statuses
            body = {"run_id": self._run_id, "stages": [asdict(progress) for progress in stages.values()]}
            write_atomically(self._path, json.dumps(body))


def read_progress(workspace: Path) -> tuple[str, dict[Stage, StageProgress]] | None:
    """Id and stages of the workspace's last run, as far as it is; None where there was none."""
    path = workspace / _FILE
    if not path.exists():
        return None
    body, known = json.loads(path.read_text("utf-8")), {entry.name for entry in fields(StageProgress)}
    stages = [StageProgress(**{key: value for key, value in row.items() if key in known}) for row in body["stages"]]
    return body["run_id"], {progress.stage: progress for progress in stages}


def is_running(workspace: Path) -> bool:
    """Whether a ``vthink`` holds the workspace."""
    import fcntl

    path = workspace / "lock"
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def repeated(workspace: Path, progress: StageProgress) -> str:
    """What the next run will do again of a stage that was cut off, from the checkpoints on this machine."""
    stage, what = progress.stage, f"{progress.stage} begins anew"
    if stage == "prepare":
        return "prepare goes on; of each shard that was cut off about half a minute is repeated"
    if stage == "evaluate":
        return "evaluate goes on; a batch of answers is repeated"
    if stage not in ("sft", "grpo"):
        return what
    seals = (workspace / "work" / stage).glob(f"*/checkpoints/checkpoint-*/{SEAL}")
    newest = max(seals, key=lambda path: path.stat().st_mtime, default=None)
    step = int(newest.parent.name.rpartition("-")[2]) if newest is not None else 0
    if not step:
        return f"{what}: no checkpoint was whole yet" + (f", {progress.done} steps are repeated" * bool(progress.done))
    lost = max(0, progress.done - step)
    return f"{stage} goes on from step {step}" + (f"; {lost} steps are repeated" if lost else "; nothing is repeated")


def run_state(workspace: Path, run_id: str, stages: Mapping[Stage, StageProgress]) -> str:
    """How the last run stands, in a line; where it was cut off, what the next one repeats."""
    statuses = {progress.status for progress in stages.values()}
    if is_running(workspace):
        return f"run {run_id} runs"
    cut_off = next((progress for progress in stages.values() if progress.status == "running"), None)
    if cut_off is not None:
        return f"run {run_id} was interrupted; vthink run goes on: {repeated(workspace, cut_off)}"
    if "failed" in statuses:
        return f"run {run_id} failed"
    return f"run {run_id} was interrupted; vthink run goes on" if "waiting" in statuses else f"run {run_id} is over"


def champion_line(workspace: Path) -> str:
    """The model in service, from the registry's own tables (MLflow 3.14 was looked at, 2026-12-01)."""
    database = workspace / "mlflow.db"
    if database.exists():
        query = (
            "SELECT m.name, m.version, m.source FROM registered_model_aliases a JOIN model_versions m "
            "ON m.name = a.name AND m.version = a.version WHERE a.alias = 'champion'"
        )
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection,
        ):
            for name, version, source in connection.execute(query):
                return f"champion: {name}/{version}, {source}"
    return "champion: none yet"


def stage_log(workspace: Path, stage: Stage | None) -> str:
    """What a stage of the last run printed; without a name the one that failed, runs, or ended last.

    Raises:
        UserError: no stage has begun."""
    if stage is None:
        _, stages = read_progress(workspace) or ("", {})
        begun = [name for state in ("failed", "running") for name in stages if stages[name].status == state]
        begun += [name for name in reversed(STAGES) if name in stages and stages[name].status == "done"]
        if not begun:
            raise UserError(f"{workspace}: no stage has begun there; vthink run")
        stage = begun[0]
    path = workspace / "logs" / f"{stage}.log"
    if not path.exists():
        raise UserError(f"{path}: {stage} has printed nothing yet")
    return path.read_text("utf-8", errors="replace")
