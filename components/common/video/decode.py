"""Files to frames: probe, check, decode and resize."""

import codecs
import contextlib
import math
import stat
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line
from .clip import (
    SIGNATURE_FRAMES,
    WHOLE,
    Clip,
    DecodedFile,
    DecodeError,
    EncodedClip,
    OutsideError,
    Part,
    UnreadableError,
    encode_clip,
    signature,
)
from .config import MediaKind, VideoConfig
from .frames import select_frames, target_size
from .picture import orientation, pixels_of, resize
from .probe import MAX_FRAME_PIXELS, Probe, open_container, probe_file

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat")
_BATCH_BYTES = 256 * 2**20
_RETRIES = (0, 2, None)
"""Key frames to start before the one that should do, for what refers to earlier pictures; None: from the beginning."""

Frames = tuple[np.ndarray, tuple[int, int]]
"""Resized frames (T, h, w, 3) uint8, and the height and width in which a player shows them."""


class RefusedError(Exception):
    """decord does not take the file, sees other frames in it than the probe, or is not exact in its kind."""


def decoder_version(config: VideoConfig) -> str:
    """What decodes here: two versions may differ in the last bits of a picture."""
    name = "av" if config.decoder == "pyav" else "decord"
    return f"{config.decoder} {version(name)}"


def decode_with_decord(path: Path, indices: np.ndarray, probe: Probe, config: VideoConfig) -> Frames:
    """The frames with these indices, where decord is exact."""
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
        if np.abs(starts_s - (probe.times_s[indices] - probe.times_s[0])).max() > 1e-2:
            raise RefusedError("other time stamps than PyAV's")
        shape = reader[0].shape
        batch = max(1, int(_BATCH_BYTES // (shape[0] * shape[1] * 3)))
        batches = (reader.get_batch(indices[i : i + batch]) for i in range(0, len(indices), batch))
        size = target_size(shape[0], shape[1], config)
        parts = [resize(frames.asnumpy(), size) for frames in batches]
    except (DecodeError, RefusedError, MemoryError):
        raise
    except Exception as error:  # DECORDError, RuntimeError and others: PyAV may still read the file
        raise RefusedError(first_line(error)) from error
    return np.concatenate(parts), (int(shape[0]), int(shape[1]))


def decode_with_pyav(path: Path, indices: np.ndarray, probe: Probe, config: VideoConfig) -> Frames:
    """The frames with these indices, in any file. DecodeError where FFmpeg reports an error in what it decodes on the
    way to them: it conceals damage, and its pictures go on with what it made up."""
    for back in [None] if probe.counted else _RETRIES:
        try:
            return _decode(path, indices, probe, config, back)
        except _DamagedError as error:  # or pictures before the key frame were needed
            reason = DecodeError(f"damaged: {error}")
    raise reason


class _DamagedError(Exception):
    pass


def _decode(path: Path, indices: np.ndarray, probe: Probe, config: VideoConfig, back: int | None) -> Frames:
    import av

    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)  # a repeated message would come with the next file's
    frames: list[np.ndarray] = []
    try:
        with av.logging.Capture() as messages, open_container(path) as container:
            stream = container.streams[probe.stream_index]
            stream.codec_context.thread_count = 1
            shown = stream.codec_context.height, round(stream.codec_context.width * probe.pixel_aspect)
            if config.orientation == "stored":
                shown = stream.codec_context.height, stream.codec_context.width
            size: tuple[int, int] | None = None
            decoded = _from_keyframe(container, stream, probe, 0)
            position, number = -math.inf, -1
            for index in indices:
                stamp = int(probe.pts[index])
                key = int(np.searchsorted(probe.keyframes, stamp, "right")) - 1
                start_stamp = int(probe.keyframes[key]) if back is not None and key >= 0 else -math.inf
                if back is not None and key - back > 0 and start_stamp > position:
                    decoded = _from_keyframe(container, stream, probe, key - back)
                    position = -math.inf
                frame = None
                while position < stamp and (frame := next(decoded, None)) is not None:
                    number += 1
                    position = number if probe.counted else -math.inf if frame.pts is None else frame.pts
                    if position < start_stamp or (position < probe.pts[0] and not probe.counted):
                        messages.clear()
                problems = [text for level, _, text in messages if level <= av.logging.ERROR or "concealing" in text]
                at = f"the frame at {probe.times_s[index]:.2f} s"
                if problems:
                    raise _DamagedError(f"{first_line(problems[0])} ({at})")
                if frame is None or position != stamp or frame.is_corrupt:
                    raise _DamagedError(f"{at} cannot be decoded")
                if size is None:
                    if config.orientation == "shown" and orientation(frame)[0]:
                        shown = shown[::-1]
                    size = target_size(*shown, config)
                frames.append(pixels_of(frame, size, config))
    except av.error.FFmpegError as error:
        raise _DamagedError(error.strerror) from None
    finally:
        av.logging.set_level(None)
    return np.stack(frames), shown


def _from_keyframe(container: Any, stream: Any, probe: Probe, key: int) -> Iterator[Any]:
    """The frames from a key frame on, whatever packet the container's seeking leads to."""
    if key > 0:
        container.seek(int(probe.keyframe_dts[key]), stream=stream, backward=True)
    reached = probe.counted or not len(probe.keyframes)
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        reached = reached or (stamp == probe.keyframes[key] and bool(packet.is_keyframe))
        if reached:
            yield from packet.decode()


def read_clip(
    path: str | Path,
    config: VideoConfig,
    kind: MediaKind = "video",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Clip:
    """Probe, check, decode and resize one file in this process (`Decoder` does it in one that can be killed).

    Times count from ``start_s``, which is on the clock that a player shows.

    Raises:
        DecodeError: when the file is missing, empty, too large, not what ``kind`` says, damaged or truncated."""
    return read_file(path, config, kind, ((start_s, end_s),), encode=False).only_clip()


def read_file(
    path: str | Path, config: VideoConfig, kind: MediaKind, parts: Sequence[Part], encode: bool
) -> DecodedFile:
    """`read_clip` for several parts of one file, which is probed and decoded once; raises where none can be shown.

    Args:
        encode: compress the frames, and make the signature of the whole file."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("not a regular file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UnreadableError(f"cannot read the file: {error.strerror}") from None
    if status.st_size == 0:
        raise DecodeError("the file is empty")
    if status.st_size > config.max_file_bytes:
        raise DecodeError(f"the file has {status.st_size} bytes; the limit is {config.max_file_bytes} (max_file_bytes)")
    if head.startswith(_PLAYLIST_MARKS) or _is_text(head):
        raise DecodeError(f"the file holds text, not {'an image' if kind == 'image' else 'a video'}")
    return _read_image(path, config, parts, encode) if kind == "image" else _read_video(path, config, parts, encode)


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # its end may lie within a character
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _read_image(path: Path, config: VideoConfig, parts: Sequence[Part], encode: bool) -> DecodedFile:
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
    except (DecodeError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format ({', '.join(_IMAGE_FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more on damaged files
        raise DecodeError(f"damaged image: {first_line(error)}") from error
    height, width = pixels.shape[:2]
    clip = Clip(resize(pixels[None], target_size(height, width, config)), np.zeros(1), 0.0, "image")
    mark = signature(clip.frames, "image") if encode else b""
    return DecodedFile([encode_clip(clip, config, encode) for _ in parts], width, height, 0.0, 1, mark)


def _read_video(path: Path, config: VideoConfig, parts: Sequence[Part], encode: bool) -> DecodedFile:
    probe = probe_file(path)
    if probe.duration_s > config.max_duration_s:
        raise DecodeError(f"{probe.duration_s:.0f} s long; the limit is {config.max_duration_s:g} s (max_duration_s)")
    chosen: list[np.ndarray | DecodeError] = []
    for start_s, end_s in parts:
        start = start_s or 0.0
        end = probe.duration_s if end_s is None else end_s
        if start >= probe.duration_s or end <= max(start, probe.times_s[0]):
            length = f"the video is {probe.duration_s:g} s long, its first frame is shown at {probe.times_s[0]:g} s"
            chosen.append(OutsideError(f"nothing between {start:g} s and {end:g} s: {length}"))
        else:
            chosen.append(select_frames(probe.times_s, probe.duration_s, config, start_s, end_s))
    shown = [indices for indices in chosen if isinstance(indices, np.ndarray)]
    if not shown:
        raise next(error for error in chosen if isinstance(error, DecodeError))
    # The whole file's signature is made of frames that are decoded anyway, where it is shown as a whole.
    anyway = next((i for part, i in zip(parts, chosen, strict=True) if part == WHOLE), None)
    spread = anyway if isinstance(anyway, np.ndarray) else np.arange(len(probe.pts))
    spread = spread[np.linspace(0, len(spread) - 1, SIGNATURE_FRAMES if encode else 0).round().astype(np.int64)]
    unique = np.unique(np.concatenate([*shown, spread]))
    frames, size = decode_with_pyav(path, unique, probe, config)
    if config.decoder == "decord":
        with contextlib.suppress(RefusedError):
            frames, size = decode_with_decord(path, unique, probe, config)
    clips: list[EncodedClip | DecodeError] = []
    for (start_s, end_s), indices in zip(parts, chosen, strict=True):
        if isinstance(indices, DecodeError):
            clips.append(indices)
            continue
        start = 0.0 if start_s is None else start_s
        end = probe.duration_s if end_s is None else min(end_s, probe.duration_s)
        times_s = np.maximum(probe.times_s[indices] - start, 0.0)
        clip = Clip(frames[np.searchsorted(unique, indices)], times_s, end - start, "video")
        clips.append(encode_clip(clip, config, encode))
    mark = signature(frames[np.searchsorted(unique, spread)], "video") if encode else b""
    return DecodedFile(
        clips, size[1], size[0], probe.duration_s, len(probe.pts), mark, probe.completeness, probe.has_sound
    )
