"""The native frames of a video, from its packets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clip import DecodeError
from .frames import MAX_FRAME_PIXELS

# Only containers that hold their own frames: a playlist (HLS, concat) would make FFmpeg open other files and URLs.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v"


@dataclass(frozen=True, slots=True)
class Probe:
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
    """Whether decord is known to find the frame that it is asked for (see `probe_file`)."""
    counted: bool
    """Whether frames have to be found by counting, because the file gives no time of presentation."""


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
    B-frames) and in MPEG transport streams. There PyAV decodes, which was right throughout.
    """
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
