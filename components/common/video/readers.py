"""Frames with decord, and with PyAV where decord is not exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line
from .clip import DecodeError
from .config import VideoConfig
from .frames import target_size
from .probe import Probe, open_container, video_stream

_BATCH_BYTES = 256 * 2**20


class RefusedError(Exception):
    """decord does not take the file, sees other frames in it than the probe, or is not exact in its kind."""


def decode_with_decord(
    path: Path, indices: np.ndarray, probe: Probe, config: VideoConfig
) -> tuple[np.ndarray, tuple[int, int]]:
    """The resized frames, and height and width in the file."""
    if not probe.decord_is_exact:
        raise RefusedError("not exact for this kind of file")
    try:
        import decord
    except ImportError as error:
        raise RefusedError(f"not installed ({error})") from None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(probe.pts):
            raise RefusedError(f"{len(reader)} frames, PyAV {len(probe.pts)}")
        starts_s = reader.get_frame_timestamp(indices)[:, 0] - reader.get_frame_timestamp(0)[0]
        if np.abs(starts_s - probe.times_s[indices]).max() > 1e-2:
            raise RefusedError("other time stamps than PyAV's")
        shape = reader[0].shape
        batch = max(1, int(_BATCH_BYTES // (shape[0] * shape[1] * 3)))
        size = target_size(shape[0], shape[1], config)
        parts = [
            resize(reader.get_batch(indices[i : i + batch]).asnumpy(), size) for i in range(0, len(indices), batch)
        ]
    except (DecodeError, RefusedError, MemoryError):
        raise
    except Exception as error:  # DECORDError, RuntimeError and others: PyAV may still read the file
        raise RefusedError(first_line(error)) from error
    return np.concatenate(parts), (int(shape[0]), int(shape[1]))


def decode_with_pyav(
    path: Path, indices: np.ndarray, probe: Probe, config: VideoConfig
) -> tuple[np.ndarray, tuple[int, int]]:
    """The resized frames, and height and width in the file."""
    stamps = [int(stamp) for stamp in probe.pts[indices]]
    frames, sizes = ([], set()) if probe.counted else _frames_at(path, stamps, probe, config, seek=True)
    if len(frames) < len(stamps):  # not every container can be entered exactly at a key frame
        frames, sizes = _frames_at(path, stamps, probe, config, seek=False)
    if len(frames) < len(stamps):
        missing_s = float(probe.times_s[indices[len(frames)]])
        raise DecodeError(f"damaged: the frame at {missing_s:.2f} s cannot be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError("the frame size changes within the video")
    return np.stack(frames), max(sizes)


def _frames_at(
    path: Path, stamps: Sequence[int], probe: Probe, config: VideoConfig, seek: bool
) -> tuple[list[np.ndarray], set[tuple[int, int]]]:
    """The resized frames with these ascending time stamps, up to the first that is not found; and their heights and
    widths in the file."""
    import av

    frames: list[np.ndarray] = []
    sizes: set[tuple[int, int]] = set()
    with open_container(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        decoded: Iterator[Any] = container.decode(stream)
        position, count = -math.inf, -1
        try:
            for stamp in stamps:
                keyframe = probe.keyframes[probe.keyframes <= stamp]
                if seek and len(keyframe) and keyframe[-1] > position:
                    container.seek(stamp, stream=stream, backward=True)
                    decoded = container.decode(stream)
                    position = -math.inf
                match = None
                while position < stamp and (frame := next(decoded, None)) is not None:
                    count += 1
                    position = int(probe.pts[min(count, len(probe.pts) - 1)]) if probe.counted else frame.pts
                    match = frame
                if match is None or position != stamp or match.is_corrupt:
                    break
                pixels = match.to_ndarray(format="rgb24")
                pixels = np.rot90(pixels, k=(match.rotation // 90) % 4)
                height, width = pixels.shape[:2]
                sizes.add((height, width))
                frames.append(resize(pixels[None], target_size(height, width, config))[0])
        except av.error.FFmpegError as error:
            if not seek:
                raise DecodeError(f"damaged: {error.strerror}") from None
    return frames, sizes


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic with antialiasing, on the CPU: the same bytes for the same pixels. (T, H, W, 3) → (T, h, w,
    3)."""
    from PIL import Image

    if frames.shape[1:3] == size:
        return np.ascontiguousarray(frames)
    height, width = size
    return np.stack(
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(f)).resize((width, height), Image.Resampling.BICUBIC))
            for f in frames
        ]
    )
