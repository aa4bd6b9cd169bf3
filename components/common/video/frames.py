"""Which of the native frames of a video are sampled, and in which size."""

import math

import numpy as np

from .clip import DecodeError
from .config import VideoConfig

MAX_ASPECT_RATIO = 200  # frames more extreme than 200:1 are refused, as Qwen's processors do


def frame_indices(
    num_native_frames: int,
    native_fps: float,
    config: VideoConfig,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """`select_frames` of a video of constant frame rate."""
    if num_native_frames < 1 or not native_fps > 0:
        raise DecodeError(f"the video has {num_native_frames} frames at {native_fps:g} frames per second")
    times_s = np.arange(num_native_frames) / native_fps
    return select_frames(times_s, num_native_frames / native_fps, config, start_s, end_s)


def select_frames(
    times_s: np.ndarray,
    duration_s: float,
    config: VideoConfig,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """Which frames are sampled, given when each native frame is shown (so that a varying frame rate is right too).

    The sampled times run evenly from the first to the last native frame of the part, and each takes the nearest native
    frame. Their number is a multiple of ``config.temporal_multiple``: rounded down, and not more than there are native
    frames, unless there are fewer than one multiple; then frames repeat.

    Args:
        times_s: (N,) ascending.
        duration_s: when the last frame ends.
        start_s: start of the part; null: of the video.
        end_s: end of the part; null, or after the end of the video: its end.

    Returns (T,) int64, ascending; DecodeError when nothing of the video lies between start and end."""
    start = 0.0 if start_s is None else start_s
    end = duration_s if end_s is None else min(end_s, duration_s)
    if start >= duration_s or end <= start:
        raise DecodeError(f"nothing between {start:g} s and {end:g} s: the video is {duration_s:g} s long")
    first = int(np.searchsorted(times_s, start - 1e-6))
    last = int(np.searchsorted(times_s, end - 1e-6)) - 1
    if last < first:  # between two native frames: the one that is on the screen
        first = last = max(0, last)
    count = _num_frames(last - first + 1, end - start, config)
    targets = np.linspace(times_s[first], times_s[last], count)
    after = np.clip(np.searchsorted(times_s, targets), min(1, len(times_s) - 1), len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    # The microsecond settles ties towards the earlier frame, whatever the rounding of the time stamps.
    nearer = np.where(targets - times_s[before] <= times_s[after] - targets + 1e-6, before, after)
    return np.clip(nearer, first, last).astype(np.int64)


def _num_frames(available: int, duration_s: float, config: VideoConfig) -> int:
    multiple, wanted = config.temporal_multiple, config.num_frames
    if wanted is None:
        assert config.fps is not None
        low = math.ceil(config.min_frames / multiple) * multiple
        wanted = min(config.max_frames, max(low, int(duration_s * config.fps + 1e-3)))
    return max(multiple, min(wanted, available) // multiple * multiple)


def target_size(height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """The size a frame is resized to: multiples of ``size_multiple``, in the pixel budget, aspect kept. The rule of
    Qwen2-VL's processors (``smart_resize``), except that the upper budget also holds for extreme aspects, where theirs
    lets the short side exceed it; DecodeError beyond `MAX_ASPECT_RATIO`."""
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DecodeError(f"frames of {width}×{height} pixels: the aspect must be within {MAX_ASPECT_RATIO}:1")
    multiple = config.size_multiple
    h, w = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
    if h * w < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (height * width))
        h, w = (math.ceil(side * scale / multiple) * multiple for side in (height, width))
    if h * w > config.max_pixels:
        scale = math.sqrt(config.max_pixels / (height * width))
        h, w = (max(multiple, math.floor(side * scale / multiple) * multiple) for side in (height, width))
        if h * w > config.max_pixels:  # the short side had to be raised to one multiple
            longest = config.max_pixels // multiple // multiple * multiple
            h, w = min(h, longest), min(w, longest)
    return h, w
