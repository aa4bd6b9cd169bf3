"""Pictures for the report of a benchmark: the clip of an item, read again from the benchmark's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.video.config import VideoConfig

if TYPE_CHECKING:
    from ...common.video.clip import Clip
    from ...common.video.workers import Decoder
    from ..results import BenchmarkResult

NUM_FRAMES = 16
"""Shown of a video, whatever the model was shown."""


class BenchmarkFrames:
    """Reads clips of items in a worker process that hostile files cannot harm; a context manager."""

    def __init__(self, results: Sequence[BenchmarkResult]) -> None:
        self._roots: list[Path] = []
        for result in results:
            data = result.result.get("data")
            if isinstance(data, str) and not data.startswith("s3://") and Path(data).is_dir():
                self._roots.append(Path(data).resolve())
        self._roots = list(dict.fromkeys(self._roots))
        self._decoder: Decoder | None = None

    def __enter__(self) -> BenchmarkFrames:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def __call__(self, row: Mapping[str, Any]) -> Clip | None:
        """The clip of an item; None where the benchmark's folder is no longer there.

        Raises:
            DecodeError: the file is damaged.
        """
        path = next((found for root in self._roots if (found := self._inside(root, row["video"])) is not None), None)
        if path is None:
            return None
        from ...common.video.workers import Decoder

        if self._decoder is None:
            self._decoder = Decoder(VideoConfig(num_frames=NUM_FRAMES, max_pixels=256 * 28 * 28))
        start_s, end_s = row.get("clip") or (None, None)
        return self._decoder.read(path, "video", start_s, end_s)

    @staticmethod
    def _inside(root: Path, name: str) -> Path | None:
        """The file, unless its name leads out of the folder."""
        parts = Path(name).parts
        path = root / name
        return path if ".." not in parts and not Path(name).is_absolute() and path.is_file() else None
