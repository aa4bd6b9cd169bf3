"""Clips: what to decode, sampled frames, and their form in a prepared set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .config import MediaKind, VideoConfig


class DecodeError(UserError):
    """A file that cannot become frames, and why. The message does not name the file: the caller knows it."""


class DecodeLimitError(DecodeError):
    """The decoder ran out of time or memory, or crashed: it may be the file, or this machine."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Sampled frames of one video, or an image as one frame."""

    frames: np.ndarray  # (T, H, W, 3) uint8, RGB
    times_s: np.ndarray  # (T,) float64, ascending: when each frame is shown, in seconds from the start of the clip
    duration_s: float  # length of the clip in seconds; 0 for an image
    kind: MediaKind = "video"

    @property
    def fps(self) -> float:
        """Sampled frames per second of the clip, ``T / duration_s``; 0 for an image."""
        return len(self.frames) / self.duration_s if self.duration_s > 0 else 0.0

    def permuted(self, order: Sequence[int] | np.ndarray) -> Clip:
        """The same frames in another order; the times stay, so that only the order of what is seen changes."""
        if sorted(int(i) for i in order) != list(range(len(self.frames))):
            raise ValueError(f"not a permutation of {len(self.frames)} frames: {list(order)}")
        return Clip(self.frames[np.asarray(order)], self.times_s, self.duration_s, self.kind)


Part = tuple[float | None, float | None]  # start and end in seconds of a part of a video; null: its own
WHOLE: Part = (None, None)
MAX_PARTS = 32  # parts of a file that are decoded together: their frames are in memory at the same time


@dataclass(frozen=True, slots=True)
class FileRequest:
    """What to decode: a file on this machine, and the parts of it that are shown (at most `MAX_PARTS`)."""

    path: str | Path
    kind: MediaKind = "video"
    parts: tuple[Part, ...] = (WHOLE,)


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A clip whose frames are compressed images (`encode_frames`), as a prepared data set stores it. Between a decoding
    process and this one the frames may also be plain pixels (`DecodedFile.only_clip`)."""

    frames: list[bytes]
    times_s: np.ndarray
    duration_s: float
    height: int
    width: int
    kind: MediaKind

    def decode(self) -> Clip:
        """The clip again, as every later stage sees it."""
        from PIL import Image

        images = (Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).convert("RGB") for data in self.frames)
        return Clip(np.stack([np.asarray(image) for image in images]), self.times_s, self.duration_s, self.kind)


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """What a file holds, from one probe and one decode for all its parts."""

    clips: list[EncodedClip | DecodeError]  # one for each part that was asked for
    width: int
    height: int  # of a frame in the file, upright, in pixels
    duration_s: float  # length of the whole file; 0 for an image
    num_frames: int  # frames of the whole file
    signature: bytes  # `signature` of the whole file; empty where its frames are plain pixels

    def only_clip(self) -> Clip:
        """The clip of a file of one part whose frames are plain pixels; raises the error that stands in its place."""
        (clip,) = self.clips
        if isinstance(clip, DecodeError):
            raise clip
        pixels = np.frombuffer(bytearray().join(clip.frames), dtype=np.uint8)
        return Clip(pixels.reshape(-1, clip.height, clip.width, 3), clip.times_s, clip.duration_s, clip.kind)


def encode_frames(clip: Clip, config: VideoConfig) -> list[bytes]:
    """Each frame as one compressed image (``frame_codec``, ``frame_quality``)."""
    from PIL import Image

    options: dict[str, Any] = {"format": "JPEG", "quality": config.frame_quality, "subsampling": 0}
    if config.frame_codec == "png":
        options = {"format": "PNG", "compress_level": 3}
    buffers = [io.BytesIO() for _ in clip.frames]
    for frame, buffer in zip(clip.frames, buffers, strict=True):
        Image.fromarray(frame).save(buffer, **options)
    return [buffer.getvalue() for buffer in buffers]


def encode_clip(clip: Clip, config: VideoConfig, compress: bool = True) -> EncodedClip:
    """The clip as a prepared data set stores it, or, not compressed, with plain pixels."""
    frames = encode_frames(clip, config) if compress else [frame.tobytes() for frame in clip.frames]
    height, width = clip.frames.shape[1:3]
    return EncodedClip(frames, clip.times_s, clip.duration_s, height, width, clip.kind)


def stored(clip: Clip, config: VideoConfig) -> Clip:
    """The clip after its way through the codec: bit for bit what a prepared data set would give back."""
    return encode_clip(clip, config).decode()


SIGNATURE_FRAMES = 4
SIGNATURE_BYTES = SIGNATURE_FRAMES * 8 * 8 * 3


def signature(frames: np.ndarray, kind: MediaKind) -> bytes:
    """What a file looks like, coarsely: `SIGNATURE_BYTES` mean colours, which survive another size or compression. 8 ×
    8 fields of each of the four ``frames`` (4, H, W, 3) uint8 of a video, 16 × 16 of an image's one; compared by their
    root mean square difference (`data_prep.duplicates`)."""
    from PIL import Image

    side = 8 if kind == "video" else 16
    small = [Image.fromarray(frame).resize((side, side), Image.Resampling.BOX) for frame in frames]
    return b"".join(image.tobytes() for image in small)
