"""What a run would do, stage by stage, without doing it: ``vthink run --dry-run``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...components.common.config import Stage
from .session import Session
from .state import State, is_enabled, stage_keys


@dataclass(frozen=True)
class StagePreview:
    """What a run would do with one stage."""

    stage: Stage
    action: Literal["run", "reuse", "skip", "check"]
    reason: str


def preview_stages(opened: Session, restart: Stage | None = None) -> list[StagePreview]:
    """What a run would do, with ``restart`` and all after it afresh."""
    state = State.read(opened.workspace.root, restart)
    stages = []
    for stage, key in stage_keys(opened.config, state).items():
        manifest = state.finished.get(stage, {}).get(key)
        if not is_enabled(opened.config, stage):
            stages.append(StagePreview(stage, "skip", f"{stage}.enabled is false"))
        elif stage in ("gate", "register", "deploy"):
            stages.append(StagePreview(stage, "check", "quick; depends on the evaluation and on what is in service"))
        elif manifest and opened.storage.exists(manifest):
            stages.append(StagePreview(stage, "reuse", manifest))
        else:
            stages.append(StagePreview(stage, "run", "no finished output for these settings and inputs"))
    return stages
