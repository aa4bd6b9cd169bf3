"""A model's card, ``vthink.json``: what inference must do to see what training saw, and where the model came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import Section
from ..errors import UserError
from ..video.config import VideoConfig
from .prompts import Prompt, PromptTemplate, get_template

CARD = "vthink.json"
"""The card's file in a model folder."""


class Lineage(Section):
    """Where a model comes from."""

    base: str | None = None
    """The base model: a name, folder or prefix."""
    revision: str | None = None
    """Commit of the base model's hub repository."""
    fingerprint: str = ""
    """Of the base model as it was brought into the store, or of the stage that trained this one."""
    stage: str | None = None
    """The stage that trained it."""
    start: str | None = None
    """Prefix of the model that this training started from."""
    data: str | None = None
    """Manifest of the prepared data that it was trained on."""
    run_id: str | None = None
    """The pipeline run."""

    def known(self) -> dict[str, Any]:
        """What is known of it, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)


class ModelCard(Section):
    """What stands in ``vthink.json``."""

    prompt: Prompt
    """The prompt template: the name of one of ours, or the fields of another."""
    video: VideoConfig
    """How videos become frames."""
    lineage: Lineage = Lineage()
    """Where the model comes from."""

    @property
    def template(self) -> PromptTemplate:
        """The prompt template itself."""
        return get_template(self.prompt)

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        card = self.model_dump(mode="json") | {"lineage": self.lineage.known()}
        (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """The card of a model folder.

        Raises:
            UserError: it is missing or damaged.
        """
        path = folder / CARD
        try:
            return cls.load(path.read_text("utf-8"), str(path))
        except FileNotFoundError:
            raise UserError(f"{folder}: no {CARD}; bring the model in with `vthink` first") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: damaged ({error})") from error
