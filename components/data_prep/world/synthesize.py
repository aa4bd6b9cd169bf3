"""The generated world as files: videos, pictures, and rows about them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from ...common.rows.files import write_samples
from ..config import SynthesizeConfig
from .draw import render, write_mp4
from .questions import rows
from .scene import Scene
from .scenes import scenes


def synthesize(
    config: SynthesizeConfig, folder: Path, progress: Callable[[int, int], None] | None = None, processes: int = 1
) -> Path:
    """Write the world to ``folder``: ``videos/*.mp4``, ``images/*.png`` and, last, ``rows.jsonl``.

    Args:
        config: what to generate.
        folder: is created; files of the same name are replaced.
        progress: called with (files written, files in all).
        processes: encode in so many processes.

    Returns:
        The path of ``rows.jsonl``: byte for byte the same for the same configuration. Its media are named
        relative to it.

    Raises:
        ConfigError: a clip is too short for what is to happen in it.
    """
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
