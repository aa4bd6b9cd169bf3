"""From a video or image file to frames: what is sampled, how it is resized and stored, and who may decode it.

Files come from strangers, and decoders hang, crash and eat memory on some of them. So `Decoder` decodes in
worker processes that are killed at a limit of time or memory; `read_clip` is the same work in the calling
process. Both give exactly the same frames. Damaged files that decoders pass over in silence are found by
counting frames and seconds.

numpy only at import; PyAV, decord and Pillow are imported where they are used, torch never.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np

from .config import VideoConfig

MediaKind = Literal["video", "image"]
T = TypeVar("T")
R = TypeVar("R")

MAX_FRAME_PIXELS = 2**27
"""Larger frames and images (134 megapixels) are refused before they are decompressed."""
MAX_ASPECT_RATIO = 200
"""Frames more extreme than 200:1 are refused, as Qwen's processors do."""

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# Only containers that hold their own frames: a playlist (HLS, concat) would make FFmpeg open other files and
# URLs.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v"
_PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat")
_START_LIMIT_S = 120.0
_BATCH_BYTES = 256 * 2**20


class DecodeError(ValueError):
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


# ------------------------------------------------------------------------------------------------ which frames, how big


def frame_indices(
    num_native_frames: int,
    native_fps: float,
    config: VideoConfig,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """Which native frames of a video of constant frame rate are sampled: (T,) int64, ascending.

    Raises:
        DecodeError: when nothing of the video lies between ``start_s`` and ``end_s``.
    """
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
    """Which frames are sampled, given when each native frame is shown (so that a varying frame rate is right
    too).

    The sampled times run evenly from the first to the last native frame of the part, and each takes the
    nearest native frame. Their number is a multiple of ``config.temporal_multiple``: rounded down, and not
    more than there are native frames, unless there are fewer than one multiple; then frames repeat.

    Args:
        times_s: (N,) ascending.
        duration_s: when the last frame ends.
        config: how many frames.
        start_s: start of the part; null: of the video.
        end_s: end of the part; null, or after the end of the video: its end.

    Returns:
        (T,) int64, ascending.
    """
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
    after = (
        np.clip(np.searchsorted(times_s, targets), 1, len(times_s) - 1) if len(times_s) > 1 else np.zeros(count, int)
    )
    before = np.maximum(after - 1, 0)
    # The microsecond settles ties towards the earlier frame, whatever the rounding of the time stamps.
    nearer = np.where(targets - times_s[before] <= times_s[after] - targets + 1e-6, before, after)
    return np.clip(nearer, first, last).astype(np.int64)


def _num_frames(available: int, duration_s: float, config: VideoConfig) -> int:
    multiple = config.temporal_multiple
    if config.num_frames is not None:
        wanted = config.num_frames
    else:
        assert config.fps is not None
        low = math.ceil(config.min_frames / multiple) * multiple
        wanted = min(config.max_frames, max(low, int(duration_s * config.fps + 1e-3)))
    return max(multiple, min(wanted, available) // multiple * multiple)


def target_size(height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """The size a frame is resized to: multiples of ``size_multiple``, in the pixel budget, aspect kept.

    The rule of Qwen2-VL's processors (``smart_resize``), except that the upper budget also holds for extreme
    aspects, where theirs lets the short side exceed it.

    Raises:
        DecodeError: for an aspect beyond `MAX_ASPECT_RATIO`.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise DecodeError(f"frames of {width}×{height} pixels: the aspect must be within {MAX_ASPECT_RATIO}:1")
    multiple = config.size_multiple
    h = max(multiple, round(height / multiple) * multiple)
    w = max(multiple, round(width / multiple) * multiple)
    if h * w < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (height * width))
        h = math.ceil(height * scale / multiple) * multiple
        w = math.ceil(width * scale / multiple) * multiple
    if h * w > config.max_pixels:
        scale = math.sqrt(config.max_pixels / (height * width))
        h = max(multiple, math.floor(height * scale / multiple) * multiple)
        w = max(multiple, math.floor(width * scale / multiple) * multiple)
        if h * w > config.max_pixels:  # the short side had to be raised to one multiple
            longest = config.max_pixels // multiple // multiple * multiple
            h, w = min(h, longest), min(w, longest)
    return h, w


# ----------------------------------------------------------------------------------------------------- reading one file


def read_clip(
    path: str | Path,
    config: VideoConfig,
    kind: MediaKind = "video",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Clip:
    """Probe, check, decode and resize one file in this process (`Decoder` does it in one that can be killed).

    Times count from ``start_s``. decord decodes; PyAV takes over where decord refuses or disagrees about the
    frames.

    Raises:
        DecodeError: when the file is missing, empty, too large, not what ``kind`` says, damaged or truncated.
    """
    (clip,) = _read_file(path, config, kind, ((start_s, end_s),)).clips
    if isinstance(clip, DecodeError):
        raise clip
    return clip


_OF_FILE = ("width", "height", "duration_s", "num_frames")
"""What a worker tells of a file besides its frames."""


@dataclass(frozen=True, slots=True)
class _File:
    """`DecodedFile` with frames that are not compressed yet."""

    clips: list[Clip | DecodeError]
    width: int
    height: int
    duration_s: float
    num_frames: int
    frames: np.ndarray
    """(K, H, W, 3), of the whole file, spread evenly; what its signature is made of. Empty unless asked for."""


def _read_file(
    path: str | Path, config: VideoConfig, kind: MediaKind, parts: Sequence[Part], whole: bool = False
) -> _File:
    """`read_clip` for several parts of one file, which is probed and decoded once. A part that is not there is an
    error in its place; ``whole`` asks for `_File.frames` as well."""
    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise DecodeError(f"cannot read the file: {error.strerror}") from None
    if not path.is_file():
        raise DecodeError("not a regular file")
    if status.st_size == 0:
        raise DecodeError("the file is empty")
    if status.st_size > config.max_file_bytes:
        raise DecodeError(f"the file has {status.st_size} bytes; the limit is {config.max_file_bytes} (max_file_bytes)")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_PLAYLIST_MARKS) or _is_text(head):
        raise DecodeError(f"the file holds text, not {'an image' if kind == 'image' else 'a video'}")
    if kind == "image":
        return _read_image(path, config, len(parts))
    return _read_video(path, config, parts, whole)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.reason == "unexpected end of data"
    return True


def _read_image(path: Path, config: VideoConfig, parts: int) -> _File:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_FRAME_PIXELS:
                    raise DecodeError(f"{width}×{height} pixels; the limit is {MAX_FRAME_PIXELS} in all")
                image.verify()
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                upright: Image.Image = ImageOps.exif_transpose(image)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    white = Image.new("RGBA", upright.size, "white")
                    white.alpha_composite(upright.convert("RGBA"))
                    upright = white
                pixels = np.asarray(upright.convert("RGB"))
    except DecodeError:
        raise
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format ({', '.join(_IMAGE_FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on damaged files
        raise DecodeError(f"damaged image: {_first_line(error)}") from error
    height, width = pixels.shape[:2]
    clip = Clip(_resize(pixels[None], target_size(height, width, config)), np.zeros(1), 0.0, "image")
    return _File([clip] * parts, width, height, 0.0, 1, clip.frames)


def _read_video(path: Path, config: VideoConfig, parts: Sequence[Part], whole: bool) -> _File:
    probe = _probe(path)
    if probe.duration_s > config.max_duration_s:
        raise DecodeError(f"{probe.duration_s:.0f} s long; the limit is {config.max_duration_s:g} s (max_duration_s)")
    chosen: list[np.ndarray | DecodeError] = []
    for start_s, end_s in parts:
        try:
            chosen.append(select_frames(probe.times_s, probe.duration_s, config, start_s, end_s))
        except DecodeError as error:
            chosen.append(error)
    shown = [indices for indices in chosen if isinstance(indices, np.ndarray)]
    # The whole file's signature is made of frames that are decoded anyway, where it is shown as a whole.
    anyway = next((i for part, i in zip(parts, chosen, strict=True) if part == WHOLE), None) if whole else None
    spread = anyway if isinstance(anyway, np.ndarray) else np.arange(len(probe.pts))
    spread = spread[np.linspace(0, len(spread) - 1, SIGNATURE_FRAMES).round().astype(np.int64)] if whole else spread[:0]
    unique = np.unique(np.concatenate([*shown, spread])) if shown else spread[:0]
    if not len(unique):
        return _File(
            [c for c in chosen if isinstance(c, DecodeError)],
            0,
            0,
            probe.duration_s,
            len(probe.pts),
            np.empty(0, np.uint8),
        )
    try:
        frames, size = _decode_with_decord(path, unique, probe, config)
    except _RefusedError:
        frames, size = _decode_with_pyav(path, unique, probe, config)
    clips: list[Clip | DecodeError] = []
    for (start_s, end_s), indices in zip(parts, chosen, strict=True):
        if isinstance(indices, DecodeError):
            clips.append(indices)
            continue
        start = 0.0 if start_s is None else start_s
        end = probe.duration_s if end_s is None else min(end_s, probe.duration_s)
        times_s = np.maximum(probe.times_s[indices] - start, 0.0)
        clips.append(Clip(frames[np.searchsorted(unique, indices)], times_s, end - start, "video"))
    height, width = size
    return _File(clips, width, height, probe.duration_s, len(probe.pts), frames[np.searchsorted(unique, spread)])


@dataclass(frozen=True, slots=True)
class _Probe:
    """The native frames of a video, in the order in which they are shown."""

    pts: np.ndarray
    """(N,) int64, time stamps in ``time_base`` units."""
    times_s: np.ndarray
    """(N,) float64, seconds from the first frame."""
    keyframes: np.ndarray
    """(K,) int64, time stamps at which decoding may start."""
    duration_s: float
    """When the last frame ends."""
    decord_is_exact: bool
    """Whether decord is known to find the frame that it is asked for (see `_probe`)."""
    counted: bool
    """Whether frames have to be found by counting, because the file gives no time of presentation."""


def _open(path: Path) -> Any:
    import av

    av.logging.set_level(None)
    options = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path), options=options, metadata_errors="replace")
    except av.error.ArgumentError:  # a format that is not on the list
        raise DecodeError("not a video of a known container format") from None
    except av.error.FFmpegError as error:
        raise DecodeError(f"not a readable video: {error.strerror}") from None


def _video_stream(container: Any) -> Any:
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        others = sorted({s.type for s in container.streams})
        raise DecodeError(f"no video stream, only {', '.join(others)}" if others else "no video stream")
    return streams[0]


def _probe(path: Path) -> _Probe:
    """Read every packet of the file once, so that what is missing or damaged is known before anything is decoded.

    Measured with frames that show their own number: decord 0.6 gives wrong frames, without a word, where pictures
    that follow a key frame in the file are shown before it (open groups of pictures: x265's default, MPEG-4 with
    B-frames) and in MPEG transport streams. There PyAV decodes, which was right throughout.
    """
    import av

    with _open(path) as container:
        stream = _video_stream(container)
        context = stream.codec_context
        if context is None:
            raise DecodeError("video codec unknown")
        if not context.width or not context.height:
            raise DecodeError(f"video of codec {context.name} without a frame size: damaged, or nothing in it")
        if context.width * context.height > MAX_FRAME_PIXELS:
            raise DecodeError(
                f"frames of {context.width}×{context.height} pixels; the limit is {MAX_FRAME_PIXELS} in all"
            )
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        time_base = float(stream.time_base or 1 / rate)
        stamps: list[int] = []
        keyframes: list[int] = []
        num_packets = damaged = 0
        last_keyframe = -math.inf
        open_groups = counted = False
        last_duration = 0.0
        ends_s: dict[int, float] = {}
        starts_s: dict[int, float] = {}
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if not packet.size or stamp is None:
                    continue
                index, base = packet.stream_index, float(packet.time_base or 0)
                starts_s.setdefault(index, stamp * base)
                ends_s[index] = max(ends_s.get(index, -math.inf), (stamp + (packet.duration or 0)) * base)
                if index != stream.index:
                    continue
                num_packets += 1
                damaged += bool(packet.is_corrupt)
                counted |= packet.pts is None
                open_groups |= stamp < last_keyframe
                if not packet.is_discard:  # cut off by an edit list: decoded, never shown
                    stamps.append(stamp)
                if packet.is_keyframe:
                    keyframes.append(stamp)
                    last_keyframe = stamp
                last_duration = (packet.duration or 0) * base
        except av.error.FFmpegError as error:
            raise DecodeError(f"damaged or truncated after {num_packets} frames: {error.strerror}") from None
        formats = set(container.format.name.split(","))
        declared_frames = stream.frames if "mp4" in formats else 0
        declared_s = container.duration / av.time_base if container.duration else 0.0
    if not stamps:
        raise DecodeError("the video stream has no frames")
    if damaged or num_packets < declared_frames:
        of = max(declared_frames, num_packets)
        raise DecodeError(f"damaged or truncated: {num_packets - damaged} whole frames of {of}")
    found_s = max(ends_s.values()) - min(starts_s.values())
    if found_s < 0.97 * declared_s - 0.2:
        raise DecodeError(f"truncated: {found_s:.1f} s of {declared_s:.1f} s are there")
    pts = np.unique(np.asarray(stamps, dtype=np.int64))
    times_s = (pts - pts[0]) * time_base
    duration_s = float(times_s[-1]) + (last_duration or 1 / rate)
    exact = bool(formats & {"mp4", "matroska"}) and not open_groups and not counted
    return _Probe(pts, times_s, np.sort(np.asarray(keyframes, dtype=np.int64)), duration_s, exact, counted)


class _RefusedError(Exception):
    """decord does not take the file, sees other frames in it than the probe, or is not exact in its kind."""


def _decode_with_decord(
    path: Path, indices: np.ndarray, probe: _Probe, config: VideoConfig
) -> tuple[np.ndarray, tuple[int, int]]:
    """The resized frames, and height and width in the file."""
    if not probe.decord_is_exact:
        raise _RefusedError("not exact for this kind of file")
    try:
        import decord
    except ImportError as error:
        raise _RefusedError(f"not installed ({error})") from None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(probe.pts):
            raise _RefusedError(f"{len(reader)} frames, PyAV {len(probe.pts)}")
        starts_s = reader.get_frame_timestamp(indices)[:, 0] - reader.get_frame_timestamp(0)[0]
        if np.abs(starts_s - probe.times_s[indices]).max() > 1e-2:
            raise _RefusedError("other time stamps than PyAV's")
        shape = reader[0].shape
        batch = max(1, int(_BATCH_BYTES // (shape[0] * shape[1] * 3)))
        size = target_size(shape[0], shape[1], config)
        parts = [
            _resize(reader.get_batch(indices[i : i + batch]).asnumpy(), size) for i in range(0, len(indices), batch)
        ]
    except (DecodeError, _RefusedError, MemoryError):
        raise
    except Exception as error:  # DECORDError, RuntimeError and others: PyAV may still read the file
        raise _RefusedError(_first_line(error)) from error
    return np.concatenate(parts), (int(shape[0]), int(shape[1]))


def _decode_with_pyav(
    path: Path, indices: np.ndarray, probe: _Probe, config: VideoConfig
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
    path: Path, stamps: Sequence[int], probe: _Probe, config: VideoConfig, seek: bool
) -> tuple[list[np.ndarray], set[tuple[int, int]]]:
    """The resized frames with these ascending time stamps, up to the first that is not found; and their heights and
    widths in the file."""
    import av

    frames: list[np.ndarray] = []
    sizes: set[tuple[int, int]] = set()
    with _open(path) as container:
        stream = _video_stream(container)
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
                found = None
                while position < stamp and (frame := next(decoded, None)) is not None:
                    count += 1
                    position = int(probe.pts[min(count, len(probe.pts) - 1)]) if probe.counted else frame.pts
                    found = frame
                if found is None or position != stamp or found.is_corrupt:
                    break
                pixels = found.to_ndarray(format="rgb24")
                pixels = np.rot90(pixels, k=(found.rotation // 90) % 4)
                height, width = pixels.shape[:2]
                sizes.add((height, width))
                frames.append(_resize(pixels[None], target_size(height, width, config))[0])
        except av.error.FFmpegError as error:
            if not seek:
                raise DecodeError(f"damaged: {error.strerror}") from None
    return frames, sizes


SIGNATURE_FRAMES = 4
SIGNATURE_BYTES = SIGNATURE_FRAMES * 8 * 8 * 3


def signature(frames: np.ndarray, kind: MediaKind) -> bytes:
    """What a file looks like, coarsely: `SIGNATURE_BYTES` mean colours, which survive another size or compression.

    8 × 8 fields of each of four frames of a video, 16 × 16 of an image; compared by their root mean square difference
    (`data_prep.duplicates`).

    Args:
        frames: (4, H, W, 3) uint8 of a video, (1, H, W, 3) of an image.
    """
    from PIL import Image

    side = 8 if kind == "video" else 16
    small = [Image.fromarray(frame).resize((side, side), Image.Resampling.BOX) for frame in frames]
    return b"".join(image.tobytes() for image in small)


def _resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


# -------------------------------------------------------------------------------------------------------- stored frames


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


# ------------------------------------------------------------------------------------------ decoding that can be killed


class Decoder:
    """Decodes files in worker processes, each of which is killed at a limit of time or memory and then
    replaced.

    Thread-safe: as many `read` calls run at once as there are workers; more wait. Workers start when first
    needed and end with this object, or with the process that owns it.
    """

    def __init__(self, config: VideoConfig, workers: int = 1):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.config = config
        self.workers = workers
        self._all = [_Worker(config) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; a read that is under way in another thread fails."""
        self._closed = True
        for worker in self._all:
            worker.stop()

    def read(
        self, path: str | Path, kind: MediaKind = "video", start_s: float | None = None, end_s: float | None = None
    ) -> Clip:
        """`read_clip` in a worker.

        Raises:
            DecodeError: as `read_clip`, and when the worker ran out of time or memory, or crashed.
        """
        request = FileRequest(path, kind, ((start_s, end_s),))
        header, data = self._run(request, encode=False)
        (part,) = header["parts"]
        if "error" in part:
            raise DecodeError(part["error"])
        frames = np.frombuffer(bytearray(data), dtype=np.uint8).reshape(part["shape"])
        return Clip(frames, np.asarray(part["times_s"], dtype=np.float64), part["duration_s"], kind)

    def read_file(self, request: FileRequest) -> DecodedFile:
        """All parts of a file with their frames compressed, as a prepared set stores them, in a worker.

        Raises:
            DecodeError: none of the parts can be shown, as for `read`.
        """
        header, data = self._run(request, encode=True)
        clips: list[EncodedClip | DecodeError] = []
        position = 0
        for part in header["parts"]:
            if "error" in part:
                clips.append(DecodeError(part["error"]))
                continue
            ends = [position + end for end in np.cumsum(part["sizes"]).tolist()]
            frames = [data[end - size : end] for end, size in zip(ends, part["sizes"], strict=True)]
            position = ends[-1]
            times_s = np.asarray(part["times_s"], dtype=np.float64)
            height, width = part["shape"][1:3]
            clips.append(EncodedClip(frames, times_s, part["duration_s"], height, width, request.kind))
        return DecodedFile(clips, signature=data[position:], **{name: header[name] for name in _OF_FILE})

    def map_files(self, requests: Iterable[FileRequest]) -> Iterator[DecodedFile | DecodeError]:
        """`read_file` for many files side by side; results come in the order of the requests, a failure as its error.

        Requests are taken from the iterable, and results kept, only a few per worker ahead.
        """
        return map_in_order(self._attempt, requests, self.workers, 4 * self.workers)

    def _attempt(self, request: FileRequest) -> DecodedFile | DecodeError:
        try:
            return self.read_file(request)
        except DecodeError as error:
            return error

    def _run(self, request: FileRequest, encode: bool) -> tuple[dict[str, Any], bytes]:
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            return worker.run(request, encode)
        finally:
            self._idle.put(worker)


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """``map`` in threads: results in the order of the items, at most ``ahead`` of which are taken in advance."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """One process that decodes; started when needed, killed at a limit.

    Requests and replies go through a socket pair. The process is a fresh interpreter, not a fork: a fork of a
    process with torch's or CUDA's threads may hang, and would inherit its memory.
    """

    def __init__(self, config: VideoConfig):
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def run(self, request: FileRequest, encode: bool) -> tuple[dict[str, Any], bytes]:
        connection = self._ready()
        message = {"path": os.fspath(request.path), "kind": request.kind, "parts": request.parts, "encode": encode}
        limit_s = self._config.decode_timeout_s
        try:
            connection.send_bytes(json.dumps(message).encode())
            # The worker's own alarm ends it at the limit; this waits a little longer, for one that cannot be
            # ended.
            if not connection.poll(limit_s + 5):
                self.stop()
                raise DecodeLimitError(_too_slow(limit_s))
            reply = json.loads(connection.recv_bytes())
            if "error" in reply:
                raise (DecodeLimitError if reply.get("limit") else DecodeError)(reply["error"])
            return reply, connection.recv_bytes()
        except (EOFError, OSError):
            raise DecodeLimitError(self._why_gone()) from None

    def _ready(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self.stop()
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: the working folder may hold modules with the names of ours. Not -m, which would import this
            # twice.
            code = f"from {__name__} import _serve; _serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Arenas are address space, which is limited; the decoders' own threads would only compete.
                env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = connection = Connection(ours.detach())
        try:
            connection.send_bytes(self._config.to_json().encode())
            started = connection.poll(_START_LIMIT_S) and connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            started = False
        if not started:
            self.stop()
            raise RuntimeError("the decoding process did not start; its message stands above, if it had one")
        return connection

    def _why_gone(self) -> str:
        """What ended the process that was decoding."""
        assert self._process is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        self.stop()
        if code == -signal.SIGALRM:
            return _too_slow(self._config.decode_timeout_s)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the decoder crashed ({how}), or needed more memory than {self._config.decode_memory_mib} MiB"

    def stop(self) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if connection is not None:
            connection.close()


def _too_slow(limit_s: float) -> str:
    return f"decoding took longer than {limit_s:g} s (decode_timeout_s) and was stopped"


def _serve(descriptor: int) -> None:
    """The worker's life: read requests, answer them, end when the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the owner decides
    connection = Connection(descriptor)
    config = VideoConfig.load(connection.recv_bytes().decode(), "the decoder's configuration")
    import av  # noqa: F401
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        import decord  # noqa: F401
    _limit_memory(config.decode_memory_mib * 2**20)
    connection.send_bytes(b"ready")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # FFmpeg's complaints about damaged files; what matters comes back as an error
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        # With the default action the kernel ends the process: that works in C code, and when the owner is
        # gone.
        signal.setitimer(signal.ITIMER_REAL, config.decode_timeout_s)
        header, data = _answer(request, config)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send_bytes(json.dumps(header).encode())
            if "error" not in header:
                connection.send_bytes(data)
        except OSError:
            return


def _answer(request: dict[str, Any], config: VideoConfig) -> tuple[dict[str, Any], bytes]:
    kind, encode = request["kind"], request["encode"]
    try:
        file = _read_file(request["path"], config, kind, [(start, end) for start, end in request["parts"]], encode)
        errors = [clip for clip in file.clips if isinstance(clip, DecodeError)]
        if len(errors) == len(file.clips):
            raise errors[0]
        parts: list[dict[str, Any]] = []
        data: list[bytes] = []
        for clip in file.clips:
            if isinstance(clip, DecodeError):
                parts.append({"error": str(clip)})
                continue
            frames = encode_frames(clip, config) if encode else [clip.frames.tobytes()]
            data += frames
            about = {"times_s": clip.times_s.tolist(), "duration_s": clip.duration_s, "shape": clip.frames.shape}
            parts.append({**about, "sizes": [len(frame) for frame in frames]})
        if encode:
            data.append(signature(file.frames, kind))
        header = {"parts": parts} | {name: getattr(file, name) for name in _OF_FILE}
        return header, b"".join(data)
    except DecodeError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        message = f"decoding needs more memory than {config.decode_memory_mib} MiB (decode_memory_mib)"
        return {"error": message, "limit": True}, b""
    except Exception as error:  # a decoder's surprise on one file must not end the work on the others
        return {"error": f"{type(error).__name__}: {_first_line(error)}"}, b""


def _limit_memory(extra_bytes: int) -> None:
    """Let this process grow by so much address space and no more, and leave no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a system that does not limit address space
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
