"""How far the stages of a run are, wherever it runs, and which tasks of the DAG make up each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...components.common.config import STAGES, Stage

Status = Literal["waiting", "running", "done", "reused", "skipped", "refused", "failed"]
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
LAST_TASK: dict[Stage, str] = {"prepare": "merge-data", **{stage: stage for stage in STAGES if stage != "prepare"}}
"""The task whose output is the stage's."""


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
    """The last line that it printed."""
    output: str = ""
    """What its last task returned: a manifest's URI, or the gate's verdict."""
