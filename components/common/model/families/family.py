"""What differs from one model family to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """A ``model_type`` of transformers, as this package prompts, positions and builds it. Nothing here needs torch."""

    processor: str
    """Class of its processor, by which an encoder knows the family."""
    size_multiple: int
    """Pixels per vision token along height and width: patch size × merge size."""
    time_in_text: bool
    """Whether the time of a temporal patch is written in the prompt; else it is in the M-RoPE positions."""
    video_text: Callable[[int, Sequence[float]], str]
    """The text that stands for a video, from the vision tokens of a temporal patch and the time of each in seconds."""
    build_processor: Callable[..., Any]
    """A processor for the tiny model, from its ``image_processor``, ``tokenizer``, ``chat_template``, and ``video``:
    the arguments of the family's video processor."""
    build_tiny: Callable[[dict[str, Any], dict[str, Any], Mapping[str, int]], Any]
    """A randomly initialised model, from what all families have in common: the text and the vision configuration, which
    it completes, and the token ids."""
