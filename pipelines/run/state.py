"""``state.json``: what the next run must know about the earlier ones, and what it will therefore do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.storage.names import fingerprint
from ..config import Config
from .session import Session
from .status import write_atomically

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
    settings: dict[Stage, dict[str, Any]] = {}
    """The sections that the last finished run of a stage read; tells ``--dry-run`` what is different now."""

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


def stage_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The sections that a stage reads, as JSON."""
    return {name: getattr(config, name).model_dump(mode="json") for name in SECTIONS[stage]}


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The settings that differ, each as ``grpo.learning_rate 0.0001 → 5e-06``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = dict.fromkeys((*before, *after))
        return [
            line
            for key in keys
            for line in differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == after else [f"{path} {json.dumps(before)} → {json.dumps(after)}"]


def _why_it_runs(config: Config, state: State, stage: Stage, restart: Stage | None, before: Stage | None) -> str:
    """Why a stage has no output to reuse."""
    if stage == restart:
        return "--from: once more"
    if before is not None:
        return f"after {before}, which runs"
    if changed := differences(state.settings.get(stage, {}), stage_settings(config, stage)) if state.settings else []:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        if stage in state.settings:
            return f"another setting: {', '.join(changed[:3])}{more}"
    return "its output is gone" if state.settings.get(stage) and not changed else "has not run in this workspace"


def preview_stages(opened: Session, restart: Stage | None = None) -> list[StagePreview]:
    """What a run would do, with ``restart`` and all after it afresh."""
    state = State.read(opened.workspace.root, restart)
    stages: list[StagePreview] = []
    first: Stage | None = None  # the first that runs; all after it do too
    for stage, key in stage_keys(opened.config, state).items():
        manifest = state.finished.get(stage, {}).get(key)
        if not is_enabled(opened.config, stage):
            stages.append(StagePreview(stage, "skip", f"{stage}.enabled is false"))
        elif stage in ("gate", "register", "deploy"):
            stages.append(StagePreview(stage, "check", "quick; depends on the evaluation and on what is in service"))
        elif manifest and opened.storage.exists(manifest):
            stages.append(StagePreview(stage, "reuse", manifest))
        else:
            stages.append(StagePreview(stage, "run", _why_it_runs(opened.config, state, stage, restart, first)))
            first = first or stage
    return stages
