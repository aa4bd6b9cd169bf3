"""What a video file holds: its native frames with the times at which a player shows them, and what is missing."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clip import DecodeError
from .completeness import check_structure
from .picture import HDR_TRANSFERS

MAX_FRAME_PIXELS = 2**27  # larger frames and images (134 megapixels) are refused before they are decompressed
START_TOLERANCE_S = 0.1
"""A video that begins so little after its file's clock counts from its first frame, which players show meanwhile."""
GAP_S, GAP_FRAMES = 1.0, 10
"""In broadcasts a gap longer than both this and so many frames is a loss; elsewhere a picture may rest."""
# Only containers that hold their own frames: a playlist (HLS, concat) would make FFmpeg open other files and URLs.
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,m4v"
_BROADCAST = {"mpegts", "mpeg", "asf"}


@dataclass(frozen=True, slots=True)
class Probe:
    """The native frames of a video, in the order in which they are shown."""

    pts: np.ndarray  # (N,) int64, time stamps in ``time_base`` units; of a ``counted`` video the frames' numbers
    times_s: np.ndarray
    """(N,) float64, ascending: when a player shows each frame, in seconds on the clock of the file, which starts with
    the first of its streams (FFmpeg's ``start_time``)."""
    keyframes: np.ndarray  # (K,) int64, ascending: time stamps at which decoding may start
    keyframe_dts: np.ndarray  # (K,) int64: where they are, by decoding time stamp
    duration_s: float  # when the last frame ends
    decord_is_exact: bool
    """Whether decord is known to find the frame that it is asked for, and to show it as a player does."""
    counted: bool  # whether frames have to be found by counting, because the file gives no time of presentation
    stream_index: int
    pixel_aspect: float  # width of a pixel by its height
    completeness: str  # how it is known that nothing is missing (`check_structure`)
    has_sound: bool


def open_container(path: Path) -> Any:
    """A video file opened with PyAV: known container formats alone, and nothing that it refers to."""
    import av

    options = {"format_whitelist": _VIDEO_FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path), options=options, metadata_errors="replace")
    except av.error.ArgumentError:  # a format that is not on the list
        raise DecodeError("not a video of a known container format") from None
    except av.error.FFmpegError as error:
        raise DecodeError(f"not a readable video: {error.strerror}") from None


def video_stream(container: Any) -> Any:
    """The stream of pictures that a player shows: no cover image; the first that is marked as default, or the first."""
    import av

    kinds = av.stream.Disposition
    streams = [s for s in container.streams.video if not s.disposition & kinds.attached_pic]
    if not streams:
        others = sorted({s.type for s in container.streams})
        raise DecodeError(f"no video stream, only {', '.join(others)}" if others else "no video stream")
    return next((s for s in streams if s.disposition & kinds.default), streams[0])


def probe_file(path: Path) -> Probe:
    """Read every packet of the file once, so that what is missing or damaged is known before anything is decoded.
    Frames without a time of their own (AVI, raw streams) are decoded to be counted: FFmpeg guesses their times wrongly
    where B-frames are stored out of order. They are shown at the times at which they leave the decoder."""
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
        formats = set(container.format.name.split(","))
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        time_base = float(stream.time_base or 1 / rate)
        stamps: list[int] = []
        keyframes: list[tuple[int, int]] = []
        num_packets = damaged = 0
        last_dts: int | None = None
        open_groups, counted = False, "avi" in formats
        end_s, last_duration = -math.inf, 0.0
        starts_s: dict[int, float] = {}
        try:
            for packet in container.demux():
                if packet.stream_index == stream.index and packet.size:
                    num_packets += 1
                    damaged += bool(packet.is_corrupt)
                    counted |= packet.pts is None
                    last_duration = (packet.duration or 0) * float(packet.time_base or 0)
                stamp = packet.dts if packet.pts is None else packet.pts
                if not packet.size or stamp is None:
                    continue
                index, base = packet.stream_index, float(packet.time_base or 0)
                starts_s.setdefault(index, stamp * base)
                end_s = max(end_s, (stamp + (packet.duration or 0)) * base)
                if index != stream.index:
                    continue
                if last_dts is not None and packet.dts is not None and (last_dts - packet.dts) * base > GAP_S:
                    raise DecodeError(f"its clock starts again after {num_packets - 1} frames: files that were joined")
                last_dts = packet.dts
                open_groups |= bool(keyframes) and stamp < keyframes[-1][0]
                if packet.is_keyframe:
                    keyframes.append((stamp, packet.dts if packet.dts is not None else stamp))
                if not packet.is_discard:  # cut off by an edit list: decoded, never shown
                    stamps.append(stamp)
        except av.error.FFmpegError as error:
            raise DecodeError(f"damaged or truncated after {num_packets} frames: {error.strerror}") from None
        declared_frames = stream.frames if "mp4" in formats else 0
        declared_s = container.duration / av.time_base if container.duration else 0.0
        start_s = container.start_time / av.time_base if container.start_time is not None else None
        aspect = float(stream.sample_aspect_ratio or context.sample_aspect_ratio or 1)
        stream_index, pid, has_sound = stream.index, stream.id, bool(container.streams.audio)
        hdr = context.color_trc in HDR_TRANSFERS
        if "avi" in formats:  # its index; chunks without bytes repeat a frame
            declared_frames = sum(entry.size > 0 for entry in stream.index_entries)
    if not num_packets:
        raise DecodeError("the video stream has no frames")
    if damaged or num_packets < declared_frames:
        of = max(declared_frames, num_packets)
        raise DecodeError(f"damaged or truncated: {num_packets - damaged} whole frames of {of}")
    found_s = end_s - min(starts_s.values(), default=0.0)
    if not counted and found_s < 0.97 * declared_s - 0.2:
        raise DecodeError(f"truncated: {found_s:.1f} s of {declared_s:.1f} s are there")
    completeness = check_structure(path, formats, pid, not declared_frames)
    if counted:
        pts, times_s = _decoded_times(path, rate, time_base)
        offset_s = 0.0
    else:
        first_key = min((stamp for stamp, _ in keyframes), default=-math.inf)  # what precedes it cannot be decoded
        pts = np.unique(np.asarray([stamp for stamp in stamps if stamp >= first_key], dtype=np.int64))
        if not len(pts):
            raise DecodeError("the video stream has no frames that are shown")
        times_s = (pts - pts[0]) * time_base
        offset_s = 0.0 if start_s is None else float(pts[0]) * time_base - start_s
        steps = np.diff(times_s)
        if formats & _BROADCAST and len(steps) and steps.max() > max(GAP_S, GAP_FRAMES * float(np.median(steps))):
            at_s = float(times_s[steps.argmax()])
            raise DecodeError(f"damaged: {steps.max():.1f} s are missing after {at_s:.1f} s")
    times_s = times_s + (offset_s if offset_s > START_TOLERANCE_S else 0.0)
    duration_s = float(times_s[-1]) + (last_duration or 1 / rate)
    exact = bool(formats & {"mp4", "matroska"}) and not open_groups and not counted and aspect == 1.0 and not hdr
    keys = np.asarray(sorted(keyframes), dtype=np.int64).reshape(-1, 2)
    place = (stream_index, aspect if 0.05 < aspect < 20 else 1.0, completeness, has_sound)
    return Probe(pts, times_s, keys[:, 0], keys[:, 1], duration_s, exact, counted, *place)


def _decoded_times(path: Path, rate: float, time_base: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the frames that leave the decoder, and when, in seconds from the first."""
    import av

    with open_container(path) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        try:
            frames = [(frame.pts, frame.dts) for frame in container.decode(stream)]
        except av.error.FFmpegError as error:
            raise DecodeError(f"damaged: {error.strerror}") from None
    if not frames:
        raise DecodeError("the video stream has no frames that can be decoded")
    numbers = np.arange(len(frames))
    for stamps in zip(*frames, strict=True):  # those of the first or last frames may be missing
        known = np.flatnonzero([stamp is not None for stamp in stamps])
        at_s = np.asarray([stamps[number] for number in known], dtype=np.float64) * time_base
        if len(known) > len(frames) // 2 and (np.diff(at_s) > 0).all():
            times_s = np.interp(numbers, known, at_s)
            times_s += np.minimum(numbers - known[0], 0) / rate + np.maximum(numbers - known[-1], 0) / rate
            return numbers, times_s - times_s[0]
    return numbers, numbers / rate
