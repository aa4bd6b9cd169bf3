"""Frames as compressed images, as a prepared set stores them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .clip import Clip, DecodeError, MediaKind
from .config import VideoConfig


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A clip whose frames are compressed images, as a prepared data set stores it."""

    frames: list[bytes]
    times_s: np.ndarray
    duration_s: float
    height: int
    width: int
    kind: MediaKind

    def decode(self) -> Clip:
        """The clip again, as every later stage sees it."""
        return Clip(decode_frames(self.frames), self.times_s, self.duration_s, self.kind)


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """What a file holds, from one probe and one decode for all its parts."""

    clips: list[EncodedClip | DecodeError]
    """One for each part that was asked for."""
    width: int
    """Of a frame in the file, upright, in pixels."""
    height: int
    """Likewise."""
    duration_s: float
    """Length of the whole file; 0 for an image."""
    num_frames: int
    """Frames of the whole file."""
    signature: bytes
    """`signature` of the whole file."""


def encode_frames(clip: Clip, config: VideoConfig) -> list[bytes]:
    """Each frame as one compressed image (``frame_codec``, ``frame_quality``)."""
    from PIL import Image

    encoded = []
    for frame in clip.frames:
        buffer = io.BytesIO()
        image = Image.fromarray(frame)
        if config.frame_codec == "png":
            image.save(buffer, "PNG", compress_level=3)
        else:
            image.save(buffer, "JPEG", quality=config.frame_quality, subsampling=0)
        encoded.append(buffer.getvalue())
    return encoded


def encode_clip(clip: Clip, config: VideoConfig) -> EncodedClip:
    """The clip as a prepared data set stores it."""
    height, width = clip.frames.shape[1:3]
    return EncodedClip(encode_frames(clip, config), clip.times_s, clip.duration_s, height, width, clip.kind)


def decode_frames(encoded: Sequence[bytes]) -> np.ndarray:
    """The frames of `encode_frames`: (T, H, W, 3) uint8."""
    from PIL import Image

    return np.stack(
        [np.asarray(Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).convert("RGB")) for data in encoded]
    )


def stored(clip: Clip, config: VideoConfig) -> Clip:
    """The clip after its way through the codec: bit for bit what a prepared data set would give back."""
    return encode_clip(clip, config).decode()
