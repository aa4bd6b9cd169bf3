"""The world as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from ...common.rows.files import write_samples
from ..config import SynthesizeConfig
from .compose import T
from .draw import render, write_mp4
from .questions import rows
from .scenes import scenes
from .things import Scene


def synthesize(
    config: SynthesizeConfig,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
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
    written = 0
    for count in _each(_write_media, jobs, processes):
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


def _each(function: Callable[[T], int], jobs: Sequence[T], processes: int) -> Iterator[int]:
    if processes <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, jobs)
