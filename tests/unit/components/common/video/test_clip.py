"""Clips, and frames as compressed images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from vthink.components.common.video.clip import (
    stored,
)
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip

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


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds, 60 frames."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", options={"movflags": "faststart"})


def test_png_gives_back_the_same_frames_and_jpeg_nearly_the_same(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    assert (stored(clip, VideoConfig(frame_codec="png")).frames == clip.frames).all()
    jpeg = stored(clip, VideoConfig(frame_codec="jpeg", frame_quality=95)).frames
    assert 0 < np.abs(jpeg.astype(int) - clip.frames).mean() < 3


def test_permuted_reorders_frames_and_keeps_times(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    shuffled = clip.permuted(order)
    assert numbers(shuffled.frames) == [numbers(clip.frames)[i] for i in order]
    assert shuffled.times_s.tolist() == clip.times_s.tolist()
    with pytest.raises(ValueError, match="permutation"):
        clip.permuted([0, 0, 1, 2, 3, 4, 5, 6])
