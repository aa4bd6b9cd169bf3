"""What a video becomes for a model. Exact."""

import math
from dataclasses import dataclass

from ...components.common.config import ConfigError
from ...components.common.model.shapes import Shape
from ...components.common.video.clip import DecodeError
from ...components.common.video.config import VideoConfig
from ...components.common.video.frames import frame_indices, target_size


@dataclass(frozen=True)
class Footage:
    """A video as it comes."""

    width: int = 1280
    height: int = 720
    seconds: float = 30.0
    fps: float = 30.0


@dataclass(frozen=True)
class Tokens:
    """What a video becomes: frames, rows that the vision tower reads, and tokens that the language model reads."""

    frames: int
    height: int
    width: int
    patches: int
    visual: int


def visual_tokens(footage: Footage, video: VideoConfig, shape: Shape) -> Tokens:
    """Exactly what preparation and encoding make of a video."""
    try:
        frames = len(frame_indices(max(1, round(footage.seconds * footage.fps)), footage.fps, video))
        height, width = target_size(footage.height, footage.width, video)
    except DecodeError as error:
        raise ConfigError(f"{footage.width}x{footage.height}: {error}") from error
    multiple = shape.patch * shape.merge
    if height % multiple or width % multiple:
        raise ConfigError(f"video.size_multiple={video.size_multiple}: this model needs a multiple of {multiple}")
    grid = math.ceil(frames / shape.temporal_patch) * (height // shape.patch) * (width // shape.patch)
    return Tokens(frames, height, width, grid, grid // shape.merge**2)
