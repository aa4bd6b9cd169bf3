"""Whether a container holds all that it should: its own counts, lengths and sequence numbers, without decoding.

FFmpeg resumes after a hole without a word, and a video that rests for seconds looks the same by its time stamps; so the
structure of the file is walked. What has none (`UNCHECKED`) is judged by its pictures alone, and the data card says so.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from .clip import DecodeError

UNCHECKED = "unchecked"
"""The `Probe.completeness` of containers in which nothing is counted: MPEG program streams, ASF, raw streams."""
_MASTERS = {0x18538067, 0x1F43B675}  # Matroska's Segment and Cluster, whose children are walked
_TOP_LEVEL = {0x1A45DFA3, 0x18538067}  # EBML header, Segment
_IN_SEGMENT = {
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1F43B675),  # SeekHead, Info, Tracks, Cluster
    *(0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),  # Cues, Attachments, Chapters, Tags
}
_ANYWHERE = {0xEC, 0xBF}  # Void, CRC-32
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}  # Timestamp … SimpleBlock, BlockGroup
_TS_PACKETS = 2**16


def check_structure(path: Path, formats: set[str], video_pid: int, fragmented: bool) -> str:
    """How completeness is known, as the data card says it; `UNCHECKED` where the container has no structure to walk.

    Args:
        formats: names of the container's format in libavformat.
        video_pid: number of the video in a transport stream.
        fragmented: whether an MP4 has its index in its fragments, so that it declares no number of frames.

    Raises DecodeError: something is missing or out of place, and at which byte."""
    walks: dict[str, tuple[str, Callable[[IO[bytes], int], None]]] = {
        "matroska": ("elements", _walk_matroska),
        "flv": ("tags", _walk_flv),
        "ogg": ("page numbers", _walk_ogg),
        "avi": ("frame count", _check_avi),
        "gif": ("trailer", _check_gif),
        "mpegts": ("continuity counters", lambda file, size: _walk_transport_stream(file, video_pid)),
        "mp4": ("boxes", _walk_boxes) if fragmented else ("frame count", lambda file, size: None),
    }
    for name, (how, walk) in walks.items():
        if name in formats:
            with path.open("rb") as file:
                walk(file, path.stat().st_size)
            return how
    return UNCHECKED


def _damaged(what: str, position: int) -> DecodeError:
    return DecodeError(f"damaged: {what} at byte {position}: something is missing or was overwritten before it")


def _truncated(size: int, expected: int) -> DecodeError:
    return DecodeError(f"truncated: {size} bytes of at least {expected} are there")


def _walk_matroska(file: IO[bytes], size: int) -> None:
    """Every element begins where the one before ends, and is one that may stand there (RFC 9559)."""
    position, cluster_end = 0, 0  # cluster_end 0: not in a cluster; -1: in one of unknown length
    while position < size:
        file.seek(position)
        head = file.read(12)
        id_bytes = 8 - head[0].bit_length() + 1
        identity = int.from_bytes(head[:id_bytes])
        if not any(head):
            return  # padding
        if position >= cluster_end > 0 or identity in _TOP_LEVEL | _IN_SEGMENT:
            if cluster_end > 0 and position != cluster_end:
                raise _damaged("a cluster does not end where it says", position)
            cluster_end = 0
        allowed = _IN_CLUSTER if cluster_end else _TOP_LEVEL | _IN_SEGMENT
        length_bytes = 8 - head[id_bytes].bit_length() + 1 if id_bytes <= 4 and len(head) > id_bytes else 9
        if identity not in allowed | _ANYWHERE or length_bytes > 8:
            raise _damaged("no Matroska element", position)
        field = head[id_bytes : id_bytes + length_bytes]
        length = int.from_bytes(field) & (1 << 7 * length_bytes) - 1
        unknown = length == (1 << 7 * length_bytes) - 1
        position += id_bytes + length_bytes
        if identity == 0x1F43B675:
            cluster_end = -1 if unknown else position + length
        if identity not in _MASTERS:
            position += length
    if position > size or cluster_end > size:
        raise _truncated(size, max(position, cluster_end))


def _walk_flv(file: IO[bytes], size: int) -> None:
    file.seek(5)
    position = int.from_bytes(file.read(4)) + 4
    while position < size:
        file.seek(position)
        tag = file.read(11)
        if len(tag) == 11 and (tag[0] & 0x1F not in (8, 9, 18) or tag[8:11] != b"\0\0\0"):
            raise _damaged("no FLV tag", position)
        position += 11 + int.from_bytes(tag[1:4]) + 4
    if position > size + 4:  # the last length may be missing
        raise _truncated(size, position)


def _walk_ogg(file: IO[bytes], size: int) -> None:
    position = 0
    pages: dict[int, int] = {}
    while position < size:
        file.seek(position)
        head = file.read(27)
        if head[:4] != b"OggS" or len(head) < 27:
            raise _damaged("no Ogg page", position)
        serial, number = struct.unpack("<II", head[14:22])
        if number != pages.get(serial, number - 1) + 1:
            raise _damaged(f"page {number} follows page {pages[serial]}", position)
        pages[serial] = number
        position += 27 + head[26] + sum(file.read(head[26]))
    if position > size:
        raise _truncated(size, position)


def _walk_boxes(file: IO[bytes], size: int) -> None:
    position = 0
    while position < size:
        file.seek(position)
        length, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        if not length and not any(kind):
            return  # padding
        if not kind.isascii() or not kind.decode().isprintable():
            raise _damaged("no MP4 box", position)
        length = {0: size - position, 1: large}.get(length, length)
        if length < 8:
            raise _damaged("an MP4 box without a length", position)
        position += length
    if position > size:
        raise _truncated(size, position)


def _check_avi(file: IO[bytes], size: int) -> None:
    expected = int.from_bytes(file.read(8)[4:], "little") + 8
    if size < expected:
        raise _truncated(size, expected)


def _check_gif(file: IO[bytes], size: int) -> None:
    file.seek(max(0, size - 16))
    if b";" not in file.read():
        raise DecodeError("truncated: the trailer of a GIF is missing")


def _walk_transport_stream(file: IO[bytes], pid: int) -> None:
    """The packets of the video are numbered from 0 to 15, again and again (ISO/IEC 13818-1, 2.4.3.3)."""
    head = file.read(188 * 8)
    starts = [
        (n, stride)
        for stride in (188, 192, 204)
        for n in range(stride)
        if set(head[n : n + stride * 4 : stride]) == {0x47}
    ]
    if not starts:
        raise DecodeError("damaged: no packets of a transport stream at its start")
    position, stride = min(starts)
    last: int | None = None
    while True:
        file.seek(position)
        data = file.read(_TS_PACKETS * stride)
        if (rest := len(data) % stride) >= 188:  # the last packet; what stands between packets may stand before them
            data += bytes(stride - rest)
        packets = np.frombuffer(data, np.uint8, len(data) // stride * stride).reshape(-1, stride)
        if not len(packets):
            if data:
                raise DecodeError("truncated: the file ends within a packet of the transport stream")
            return
        if len(lost := np.flatnonzero(packets[:, 0] != 0x47)):
            raise _damaged("no packet of a transport stream", position + int(lost[0]) * stride)
        ours = packets[(packets[:, 1] & 0x1F).astype(int) * 256 + packets[:, 2] == pid]
        counted = ours[ours[:, 3] & 0x10 > 0]
        restarts = (counted[:, 3] & 0x20 > 0) & (counted[:, 4] > 0) & (counted[:, 5] & 0x80 > 0)
        numbers = counted[:, 3].astype(int) & 15
        before = (
            np.concatenate([[last if last is not None else (numbers[0] - 1)], numbers[:-1]])
            if len(numbers)
            else numbers
        )
        steps = (numbers - before) % 16
        if (bad := (steps > 1) & ~restarts).any():
            raise DecodeError(f"damaged: {int(bad.sum())} gaps in the packets of the video (continuity counters)")
        last = int(numbers[-1]) if len(numbers) else last
        position += len(packets) * stride
