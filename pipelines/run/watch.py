"""What kfp.local prints, as progress of the stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...components.common.config import STAGES, Stage
from .state import Status

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
