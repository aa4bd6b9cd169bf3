"""An answer as its parts: segments, reasoning and final answer. The server sends it as ``vthink``, clients read it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from ..common.answers.responses import Segment, parse_response


class MediaView(BaseModel):
    """What the model saw of the media."""

    model_config = ConfigDict(frozen=True)
    kind: str
    duration_s: float
    frames_s: tuple[float, ...]
    """When in the media the frames are."""


class StructuredAnswer(BaseModel):
    """An answer as its parts."""

    model_config = ConfigDict(frozen=True)
    segments: tuple[Segment, ...]
    reasoning: str
    answer: str | None
    media: MediaView | None = None
    """None: the server does not say (vLLM)."""

    @classmethod
    def parse(cls, text: str, media: MediaView | None = None) -> Self:
        """Read a model's response."""
        parsed = parse_response(text)
        return cls(segments=parsed.segments, reasoning=parsed.reasoning, answer=parsed.answer, media=media)
