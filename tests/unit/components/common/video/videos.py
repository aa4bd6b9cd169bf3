"""Videos whose frames show their numbers, and files that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from vthink.components.common.video.config import VideoConfig

SIZE = 112


CONFIG = VideoConfig(num_frames=8, min_pixels=SIZE * SIZE, max_pixels=SIZE * SIZE)


def numbered_frame(number: int) -> np.ndarray:
    """A frame that shows its number in binary, as eight white or black bars."""
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    for bit in range(8):
        frame[:, bit * 14 : (bit + 1) * 14] = 255 * (number >> bit & 1)
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    return [int(sum((f[:, b * 14 + 4 : b * 14 + 10].mean() > 127) << b for b in range(8))) for f in frames]


def write_video(
    path: Path,
    count: int = 60,
    codec: str = "libx264",
    fps: int = 10,
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    stamps: list[int] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=codec_options or {"g": "12", "bf": "2"})
        stream.width, stream.height = size or (SIZE, SIZE)
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def _png(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def damaged_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Bad files, and a word of what is to be said about each."""
    index_first = write_video(folder / "a.mp4", options={"movflags": "faststart"}).read_bytes()
    index_last = write_video(folder / "b.mp4").read_bytes()
    matroska = write_video(folder / "c.mkv").read_bytes()
    flipped = bytearray(index_first)
    for position in range(len(flipped) // 4, len(flipped), 7):
        flipped[position] ^= 0xFF
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n"
    contents = {
        "empty.mp4": (b"", "empty"),
        "text.mp4": (b"This is not a video.\n" * 20, "text"),
        "error-page.mp4": ("<html>Seite nicht gefunden: ü</html>".encode(), "text"),
        "playlist.mp4": (playlist, "text"),
        "playlist-with-null.mp4": (playlist.replace(b"10,", b"10,\0"), "text"),
        "random.mp4": (np.random.default_rng(0).bytes(5000), "not a readable video"),
        "zeros.mp4": (bytes(5000), "not a readable video"),
        "half.mp4": (cut(0.5)(index_last), "not a readable video"),
        "half-index-first.mp4": (cut(0.5)(index_first), "truncated"),
        "nearly-whole.mp4": (cut(0.98)(index_first), "truncated"),
        "half.mkv": (cut(0.5)(matroska), "truncated"),
        "flipped.mp4": (bytes(flipped), "damaged|no frames"),
        "picture.mp4": (_png((64, 64)), "not a video"),
        "sound.mp4": (write_audio(folder / "d.mp4").read_bytes(), "no video stream, only audio"),
    }
    files = {}
    for name, (data, word) in contents.items():
        (folder / name).write_bytes(data)
        files[name] = (folder / name, word)
    (folder / "folder.mp4").mkdir()
    return files | {
        "missing.mp4": (folder / "missing.mp4", "No such file"),
        "folder.mp4": (folder / "folder.mp4", "not a regular file"),
    }
