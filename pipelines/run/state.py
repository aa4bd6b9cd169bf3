"""What the next run must know about earlier ones, and what it would do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.storage.names import fingerprint
from ..config import Config
from .session import Session

Status = Literal["waiting", "running", "done", "reused", "skipped", "refused", "failed"]


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
