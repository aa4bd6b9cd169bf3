"""Sampled frames of one video, and what to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import UserError

MediaKind = Literal["video", "image"]


class DecodeError(UserError):
    """A file that cannot become frames, and why. The message does not name the file: the caller knows it."""


class DecodeLimitError(DecodeError):
    """The decoder ran out of time or memory, or crashed: it may be the file, or this machine."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Sampled frames of one video, or an image as one frame."""

    frames: np.ndarray
    """(T, H, W, 3) uint8, RGB."""
    times_s: np.ndarray
    """(T,) float64, ascending: when each frame is shown, in seconds from the start of the clip."""
    duration_s: float
    """Length of the clip in seconds; 0 for an image."""
    kind: MediaKind = "video"

    @property
    def fps(self) -> float:
        """Sampled frames per second of the clip, ``T / duration_s``; 0 for an image."""
        return len(self.frames) / self.duration_s if self.duration_s > 0 else 0.0

    def permuted(self, order: Sequence[int] | np.ndarray) -> Clip:
        """The same frames in another order; the times stay, so that only the order of what is seen
        changes."""
        if sorted(int(i) for i in order) != list(range(len(self.frames))):
            raise ValueError(f"not a permutation of {len(self.frames)} frames: {list(order)}")
        return Clip(self.frames[np.asarray(order)], self.times_s, self.duration_s, self.kind)


Part = tuple[float | None, float | None]
"""Start and end in seconds of a part of a video; null: its own."""


WHOLE: Part = (None, None)


MAX_PARTS = 32
"""Parts of a file that are decoded together: their frames are in memory at the same time."""


@dataclass(frozen=True, slots=True)
class FileRequest:
    """What to decode: a file on this machine, and the parts of it that are shown (at most `MAX_PARTS`)."""

    path: str | Path
    kind: MediaKind = "video"
    parts: tuple[Part, ...] = (WHOLE,)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
