"""Scenes as frames and files."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from ..config import SynthesizeConfig
from .scene import COLOURS, Scene

NOISE_LEVEL = 38
"""Brightest value of the background, of 255."""
CRF = 22
"""Quality of the H.264 files (lower is better)."""
FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
"""Digits, five pixels wide and seven high."""


@lru_cache(maxsize=64)
def mask(form: str, height: int) -> np.ndarray:
    """Where a form or digit has ink: (height, width) bool."""
    if form in FONT:
        rows = np.array([[pixel == "1" for pixel in row] for row in FONT[form].split()])
        scale = max(1, height // len(rows))
        return np.kron(rows, np.ones((scale, scale))).astype(bool)
    y, x = (np.mgrid[0:height, 0:height] + 0.5) / height
    if form == "square":
        return np.ones((height, height), bool)
    if form == "circle":
        return cast(np.ndarray, (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25)
    if form == "triangle":
        return cast(np.ndarray, np.abs(x - 0.5) <= y / 2)
    return cast(np.ndarray, (np.abs(x - 0.5) < 0.18) | (np.abs(y - 0.5) < 0.18))


def render(scene: Scene, config: SynthesizeConfig) -> np.ndarray:
    """The frames of a scene, (T, H, W, 3) uint8 RGB; a picture has one."""
    count = 1 if scene.kind == "still" else config.native_frames
    rng = np.random.default_rng(list(f"{config.seed}/{scene.id}".encode()))
    frames = rng.integers(0, NOISE_LEVEL, (count, config.size, config.size, 3), np.uint8, endpoint=True)
    for shape in scene.shapes:
        ink = mask(shape.form, shape.size)
        height, width = ink.shape
        way = np.subtract(shape.end_xy, shape.start_xy)
        for t in range(count):
            if scene.kind == "still" or shape.start_s <= t / config.fps < shape.end_s:
                x, y = np.rint(shape.start_xy + way * t / max(1, count - 1)).astype(int)
                frames[t, y : y + height, x : x + width][ink] = COLOURS[shape.colour]
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames as an H.264 mp4 file: one thread, no date or version in the container, index at the front."""
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        settings = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "flags": "+bitexact"}
        # With macroblock trees x264 (core 165) uses memory that it has not written: in a process with a busy heap,
        # 315 of 700 files of the same frames differed from the others. Without, 4,500 of 4,500 were equal.
        settings["x264-params"] = "mbtree=0"
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(VideoStream, container.add_stream("libx264", rate=rate, options=settings))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
