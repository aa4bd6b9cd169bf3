"""The native frames of a video, which of them are sampled, and in which size."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clip import DecodeError
from .config import VideoConfig

MAX_FRAME_PIXELS = 2**27  # larger frames and images (134 megapixels) are refused before they are decompressed
MAX_ASPECT_RATIO = 200  # frames more extreme than 200:1 are refused, as Qwen's processors do
# Only containers that hold their own frames: a playlist (HLS, concat) would make FFmpeg open other files and URLs.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v"


@dataclass(frozen=True, slots=True)
class Probe:
    """The native frames of a video, in the order in which they are shown."""

    pts: np.ndarray  # (N,) int64, time stamps in ``time_base`` units
    times_s: np.ndarray  # (N,) float64, seconds from the first frame
    keyframes: np.ndarray  # (K,) int64, time stamps at which decoding may start
    duration_s: float  # when the last frame ends
    decord_is_exact: bool  # whether decord is known to find the frame that it is asked for (see `probe_file`)
    counted: bool  # whether frames have to be found by counting, because the file gives no time of presentation


def open_container(path: Path) -> Any:
    """A video file opened with PyAV: known container formats alone, and nothing that it refers to."""
    import av

    av.logging.set_level(None)
    options = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path), options=options, metadata_errors="replace")
    except av.error.ArgumentError:  # a format that is not on the list
        raise DecodeError("not a video of a known container format") from None
    except av.error.FFmpegError as error:
        raise DecodeError(f"not a readable video: {error.strerror}") from None


def video_stream(container: Any) -> Any:
    """The first stream of pictures that is no cover image."""
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        others = sorted({s.type for s in container.streams})
        raise DecodeError(f"no video stream, only {', '.join(others)}" if others else "no video stream")
    return streams[0]


def probe_file(path: Path) -> Probe:
    """Read every packet of the file once, so that what is missing or damaged is known before anything is decoded.

    Measured with frames that show their own number: decord 0.6 gives wrong frames, without a word, where pictures
    that follow a key frame in the file are shown before it (open groups of pictures: x265's default, MPEG-4 with
    B-frames) and in MPEG transport streams. There PyAV decodes, which was right throughout."""
    import av

    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if context is None:
            raise DecodeError("video codec unknown")
        if not context.width or not context.height:
            raise DecodeError(f"video of codec {context.name} without a frame size: damaged, or nothing in it")
        if context.width * context.height > MAX_FRAME_PIXELS:
            size = f"{context.width}×{context.height}"
            raise DecodeError(f"frames of {size} pixels; the limit is {MAX_FRAME_PIXELS} in all")
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        time_base = float(stream.time_base or 1 / rate)
        stamps: list[int] = []
        keyframes: list[int] = []
        num_packets = damaged = 0
        open_groups = counted = False
        end_s, last_duration = -math.inf, 0.0
        starts_s: dict[int, float] = {}
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if not packet.size or stamp is None:
                    continue
                index, base = packet.stream_index, float(packet.time_base or 0)
                starts_s.setdefault(index, stamp * base)
                end_s = max(end_s, (stamp + (packet.duration or 0)) * base)
                if index != stream.index:
                    continue
                num_packets += 1
                damaged += bool(packet.is_corrupt)
                counted |= packet.pts is None
                open_groups |= bool(keyframes) and stamp < keyframes[-1]
                if not packet.is_discard:  # cut off by an edit list: decoded, never shown
                    stamps.append(stamp)
                if packet.is_keyframe:
                    keyframes.append(stamp)
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
    found_s = end_s - min(starts_s.values())
    if found_s < 0.97 * declared_s - 0.2:
        raise DecodeError(f"truncated: {found_s:.1f} s of {declared_s:.1f} s are there")
    pts = np.unique(np.asarray(stamps, dtype=np.int64))
    times_s = (pts - pts[0]) * time_base
    duration_s = float(times_s[-1]) + (last_duration or 1 / rate)
    exact = bool(formats & {"mp4", "matroska"}) and not open_groups and not counted
    return Probe(pts, times_s, np.sort(np.asarray(keyframes, dtype=np.int64)), duration_s, exact, counted)


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
