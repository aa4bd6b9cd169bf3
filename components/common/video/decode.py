"""Files to frames: probe, check, decode and resize."""

import codecs
import math
import warnings
from collections.abc import Iterator, Sequence
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
    Part,
    encode_clip,
    signature,
)
from .config import MediaKind, VideoConfig
from .frames import MAX_FRAME_PIXELS, Probe, open_container, probe_file, select_frames, target_size, video_stream

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat")
_BATCH_BYTES = 256 * 2**20

Frames = tuple[np.ndarray, tuple[int, int]]
"""Resized frames (T, h, w, 3) uint8, and the height and width they have in the file."""


class RefusedError(Exception):
    """decord does not take the file, sees other frames in it than the probe, or is not exact in its kind."""


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
        if np.abs(starts_s - probe.times_s[indices]).max() > 1e-2:
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
    """The frames with these indices, in any file."""
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
    """The resized frames with these ascending time stamps, up to the first that is missing; and their sizes before."""
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
                pixels = np.rot90(match.to_ndarray(format="rgb24"), k=(match.rotation // 90) % 4)
                size = (pixels.shape[0], pixels.shape[1])
                sizes.add(size)
                frames.append(resize(pixels[None], target_size(*size, config))[0])
        except av.error.FFmpegError as error:
            if not seek:
                raise DecodeError(f"damaged: {error.strerror}") from None
    return frames, sizes


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic with antialiasing, on the CPU: the same bytes for the same pixels. (T, H, W, 3) → (T, h, w, 3)."""
    from PIL import Image

    if frames.shape[1:3] == size:
        return np.ascontiguousarray(frames)
    images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in images])


def read_clip(
    path: str | Path,
    config: VideoConfig,
    kind: MediaKind = "video",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Clip:
    """Probe, check, decode and resize one file in this process (`Decoder` does it in one that can be killed).

    Times count from ``start_s``. decord decodes; PyAV takes over where decord refuses or disagrees about the frames.

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
        try:
            chosen.append(select_frames(probe.times_s, probe.duration_s, config, start_s, end_s))
        except DecodeError as error:
            chosen.append(error)
    shown = [indices for indices in chosen if isinstance(indices, np.ndarray)]
    if not shown:
        raise next(error for error in chosen if isinstance(error, DecodeError))
    # The whole file's signature is made of frames that are decoded anyway, where it is shown as a whole.
    anyway = next((i for part, i in zip(parts, chosen, strict=True) if part == WHOLE), None)
    spread = anyway if isinstance(anyway, np.ndarray) else np.arange(len(probe.pts))
    spread = spread[np.linspace(0, len(spread) - 1, SIGNATURE_FRAMES if encode else 0).round().astype(np.int64)]
    unique = np.unique(np.concatenate([*shown, spread]))
    try:
        frames, size = decode_with_decord(path, unique, probe, config)
    except RefusedError:
        frames, size = decode_with_pyav(path, unique, probe, config)
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
    return DecodedFile(clips, size[1], size[0], probe.duration_s, len(probe.pts), mark)
