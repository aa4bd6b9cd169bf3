"""A model that can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from ...common.video.config import VideoConfig
from ..ask import Predict

API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that an endpoint wants."""


class ModelIdentity(BaseModel):
    """What identifies a model, for ``result.json``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    kind: str = ""
    """``folder``, ``s3``, ``registry``, ``hub`` or ``endpoint``."""
    uri: str = ""
    fingerprint: str = ""
    prompt: str = ""
    """Name of its prompt template."""
    name: str | None = None
    """As its server calls it."""
    version: int | None = None
    """In the registry."""
    source: str | None = None
    """Where the registry has it from."""
    frames: str | None = None
    """Who chooses the frames, where it is not us."""

    @property
    def label(self) -> str:
        """What it is called where nobody says."""
        name = (self.name or self.uri or "model").rstrip("/")
        return name.rsplit("/", 1)[-1][:60] or "model"


class Model(Protocol):
    """A model that can be asked."""

    @property
    def video(self) -> VideoConfig | None:
        """How videos become frames; None: it is given the files (`source.LocalFile`)."""

    @property
    def conditions(self) -> Sequence[str]:
        """Under which conditions it can be asked, besides ``ordered``."""

    @property
    def answer_format(self) -> str:
        """The shape of response that it is asked for."""

    @property
    def about(self) -> ModelIdentity:
        """What identifies it."""

    def predict(self) -> Predict:
        """Its predictor; weights are loaded by the first call."""

    def release(self) -> None:
        """Free what it holds."""
