"""The generated world as files: videos, pictures, and rows about them."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from ...common.rows.files import write_samples
from ..config import SynthesizeConfig
from .scenes import COLOURS, Scene, mask, rows, scenes

NOISE_LEVEL = 38  # brightest value of the background, of 255
CRF = 22  # quality of the H.264 files (lower is better)


def render(scene: Scene, config: SynthesizeConfig) -> np.ndarray:
    """The frames of a scene, (T, H, W, 3) uint8 RGB; a picture has one."""
    count = 1 if scene.kind == "still" else config.native_frames
    rng = np.random.default_rng(list(f"{config.seed}/{scene.id}".encode()))
    frames = rng.integers(0, NOISE_LEVEL, (count, config.size, config.size, 3), np.uint8, endpoint=True)
    for shape in scene.content.shapes:
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


def synthesize(
    config: SynthesizeConfig, folder: Path, progress: Callable[[int, int], None] | None = None, processes: int = 1
) -> Path:
    """Write the world to ``folder``: ``videos/*.mp4``, ``images/*.png`` and, last, ``rows.jsonl``, whose path is
    returned: byte for byte the same for the same configuration, its media named relative to it. Files of the same name
    are replaced. ``progress`` is called with (files written, files in all). Raises ConfigError: a clip is too short for
    what is to happen."""
    world = list(scenes(config))
    for name in ("videos", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    jobs = [(world[start : start + 64], config, folder) for start in range(0, len(world), 64)]
    parallel, written = processes > 1 and len(jobs) > 1, 0
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if parallel else nullcontext() as pool:
        for count in pool.map(_write_media, jobs) if pool else map(_write_media, jobs):
            written += count
            if progress:
                progress(written, len(world))
    path = folder / "rows.jsonl"
    write_samples(path, (row for scene in world for row in rows(scene)))
    return path


def _write_media(job: tuple[list[Scene], SynthesizeConfig, Path]) -> int:
    chunk, config, folder = job
    for scene in chunk:
        frames = render(scene, config)
        if scene.kind == "still":
            Image.fromarray(frames[0]).save(folder / scene.media_path)
        else:
            write_mp4(folder / scene.media_path, frames, config.fps)
    return len(chunk)
