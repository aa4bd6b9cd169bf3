"""The pictures of a benchmark's report: the clip of an item, read again from the benchmark's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.video.config import VideoConfig

if TYPE_CHECKING:
    from ...common.video.clip import Clip
    from ...common.video.workers import Decoder
    from ..item import Item
    from ..results import BenchmarkResult

NUM_FRAMES = 16
"""Shown of a video, whatever the model was shown."""


class FolderClips:
    """Reads clips of items in a worker process that hostile files cannot harm; a context manager."""

    def __init__(self, results: Sequence[BenchmarkResult]) -> None:
        self._roots: list[Path] = []
        for result in results:
            data = result.result.data
            if data and not data.startswith("s3://") and Path(data).is_dir():
                self._roots.append(Path(data).resolve())
        self._roots = list(dict.fromkeys(self._roots))
        self._decoder: Decoder | None = None

    def __enter__(self) -> FolderClips:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def __call__(self, item: Item) -> Clip | None:
        """The clip of an item; None where the benchmark's folder is no longer there.

        Raises:
            DecodeError: the file is damaged.
        """
        path = next((inside for root in self._roots if (inside := self._inside(root, item.video))), None)
        if path is None:
            return None
        from ...common.video.workers import Decoder

        if self._decoder is None:
            self._decoder = Decoder(VideoConfig(num_frames=NUM_FRAMES, max_pixels=256 * 28 * 28))
        return self._decoder.read(path, "video", *item.clip)

    @staticmethod
    def _inside(root: Path, name: str) -> Path | None:
        """The file, unless its name leads out of the folder."""
        parts = Path(name).parts
        path = root / name
        return path if ".." not in parts and not Path(name).is_absolute() and path.is_file() else None
