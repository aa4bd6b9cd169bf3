"""``state.json``: what the next run must know about the earlier ones, and what it will therefore do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.storage.names import fingerprint
from ..config import Config
from .session import Session

_FILE = "state.json"
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


class State(BaseModel):
    """What the next run must know about the earlier ones."""

    redo: dict[Stage, int] = {}
    """How often each stage was asked to start afresh (``--from``)."""
    runs: dict[str, str] = {}
    """Run id by fingerprint of configuration and redo counters: the same run is continued, not doubled."""
    finished: dict[Stage, dict[str, str]] = {}
    """Manifest URI of finished stages by `stage_key`; tells ``--dry-run`` what will be reused."""

    @classmethod
    def read(cls, workspace: Path, restart: Stage | None = None) -> Self:
        """The state of a workspace, a fresh one where there is none; with ``restart`` to be done once more."""
        path = workspace / _FILE
        state = cls.model_validate_json(path.read_text("utf-8")) if path.exists() else cls()
        if restart:
            state.redo[restart] = state.redo.get(restart, 0) + 1
        return state

    def write(self, workspace: Path) -> None:
        """Write atomically."""
        write_atomically(workspace / _FILE, self.model_dump_json(indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, "utf-8")
    part.replace(path)


def stage_keys(config: Config, state: State) -> dict[Stage, str]:
    """A key per stage that changes whenever the stage's own fingerprint may: its sections and all before it."""
    keys: dict[Stage, str] = {}
    before = __version__
    for stage in STAGES:
        sections = [getattr(config, name).to_json() for name in SECTIONS[stage]]
        before = keys[stage] = fingerprint(stage, sections, state.redo.get(stage, 0), before)
    return keys


def is_enabled(config: Config, stage: Stage) -> bool:
    """Whether the configuration wants the stage."""
    return stage not in ("sft", "grpo") or getattr(config, stage).enabled


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
