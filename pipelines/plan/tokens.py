"""What a video becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...components.common.config import ConfigError
from ...components.common.video.clip import DecodeError
from ...components.common.video.config import VideoConfig
from ...components.common.video.frames import frame_indices, target_size
from .shapes import Shape


@dataclass(frozen=True)
class Footage:
    """A video as it comes."""

    width: int = 1280
    height: int = 720
    seconds: float = 30.0
    fps: float = 30.0


@dataclass(frozen=True)
class Tokens:
    """What a video becomes."""

    frames: int
    height: int
    width: int
    patches: int
    """Rows that the vision tower reads."""
    visual: int
    """Tokens that the language model reads for it."""


def visual_tokens(footage: Footage, video: VideoConfig, shape: Shape) -> Tokens:
    """Exactly what preparation and encoding make of a video."""
    try:
        frames = len(frame_indices(max(1, round(footage.seconds * footage.fps)), footage.fps, video))
        height, width = target_size(footage.height, footage.width, video)
    except DecodeError as error:
        raise ConfigError(f"{footage.width}x{footage.height}: {error}") from error
    if height % (shape.patch * shape.merge) or width % (shape.patch * shape.merge):
        multiple = shape.patch * shape.merge
        raise ConfigError(f"video.size_multiple={video.size_multiple}: this model needs a multiple of {multiple}")
    grid = math.ceil(frames / shape.temporal_patch) * (height // shape.patch) * (width // shape.patch)
    return Tokens(frames, height, width, grid, grid // shape.merge**2)
