"""How a video or image becomes frames."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..config import Section

MediaKind = Literal["video", "image"]


class VideoConfig(Section):
    """How a video or image becomes frames. It travels with the prepared data and with every model trained on it."""

    num_frames: int | None = Field(default=8, ge=1, le=1024)
    """Frames per video, spread uniformly; set to null to sample by ``fps`` instead."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second to sample (between ``min_frames`` and ``max_frames``) when ``num_frames`` is null."""
    min_frames: int = Field(default=4, ge=1)
    """Fewest frames with ``fps``."""
    max_frames: int = Field(default=16, ge=1)
    """Most frames with ``fps``."""
    min_pixels: int = Field(default=4 * 28 * 28, ge=1)
    """Fewest pixels per frame after resizing."""
    max_pixels: int = Field(default=128 * 28 * 28, ge=1)
    """Most pixels per frame after resizing (Video-R1 and Video-Thinker train with 128·28·28)."""
    size_multiple: int = Field(default=28, ge=1)
    """Height and width become multiples of this: patch size × merge size (28 Qwen2.5-VL, 32 Qwen3-VL)."""
    temporal_multiple: int = Field(default=2, ge=1)
    """The number of frames becomes a multiple of this (temporal patch size)."""
    frame_codec: Literal["jpeg", "png"] = "jpeg"
    """How prepared frames are stored; the server applies the same codec, so that it sees what training saw."""
    frame_quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality (4:4:4); ignored for PNG."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """A decode that takes longer is killed and its file quarantined."""
    decode_memory_mib: int = Field(default=4096, ge=256)
    """A decoder that needs more address space than this beyond its start is killed and its file quarantined."""
    max_duration_s: float = Field(default=4 * 3600, gt=0)
    """Longer videos are refused."""
    max_file_bytes: int = Field(default=8 * 2**30, gt=0)
    """Larger files are refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError("set exactly one of num_frames and fps")
        if self.min_frames > self.max_frames:
            raise ValueError("min_frames must not exceed max_frames")
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        if self.max_pixels < self.size_multiple**2:
            raise ValueError("max_pixels must hold at least one size_multiple × size_multiple square")
        return self
