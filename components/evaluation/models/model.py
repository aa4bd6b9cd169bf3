"""A model that can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ...common.video.config import VideoConfig
from ..answers import Predict

API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that an endpoint wants."""


class Engine(Protocol):
    """A model that can be asked."""

    video: VideoConfig | None
    """How videos become frames; None: it is given the files (`evaluate.LocalFile`)."""
    conditions: Sequence[str]
    """Under which of `expressions.FRAMES` it can be asked, besides ``ordered``."""
    answer_format: Any
    """The shape of response that it is asked for."""
    about: dict[str, Any]
    """What identifies it, for ``result.json``."""

    def predict(self) -> Predict:
        """Its predictor; weights are loaded by the first call."""

    def release(self) -> None:
        """Free what it holds."""
