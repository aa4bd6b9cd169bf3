"""Real videos and rows about them, for the tests of data preparation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep import prepare
from vthink.components.data_prep.config import DataPrepConfig
from vthink.components.data_prep.world.synthesize import write_mp4

Source = Callable[[Sequence[Mapping[str, Any] | str]], str]
"""Writes rows next to the videos of `squares`; returns their path."""


def square_at(seed: int) -> np.ndarray:
    """Twelve frames of 64 × 64 in which a square goes to the right; its height and colour depend on ``seed``."""
    rng = np.random.default_rng(seed)
    frames = np.full((12, 64, 64, 3), 20, np.uint8)
    top, colour = int(rng.integers(0, 48)), rng.integers(60, 255, 3)
    for index, frame in enumerate(frames):
        frame[top : top + 16, 4 * index : 4 * index + 16] = colour
    return frames


def make_row(number: int, uri: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "media": {"kind": "video", "uri": uri},
        "question": "Which way?",
        "options": ["left", "right"],
        "problem_type": "multiple_choice",
        "answer": "B",
        "source": "squares",
        "split": "train",
        **changes,
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    """Rows as JSONL; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``videos/0.mp4`` to ``videos/11.mp4``, all different, of 12 frames at 4 frames per second."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "videos").mkdir()
    for number in range(12):
        write_mp4(folder / f"videos/{number}.mp4", square_at(number), 4.0)
    return folder


@pytest.fixture
def source(squares: Path, tmp_path: Path) -> Source:
    """Writes rows next to the videos of `squares`, in a folder of this test's own; returns their path."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "videos").symlink_to(squares / "videos")
    return lambda rows: str(write_rows(folder / "rows.jsonl", rows))


@pytest.fixture
def video() -> VideoConfig:
    return VideoConfig(num_frames=4, min_pixels=56 * 56, max_pixels=56 * 56)


class Run:
    """Data preparation in this process, with its results at hand."""

    def __init__(self, context: RunContext, video: VideoConfig):
        self.context = context
        self.video = video
        self.storage = Storage(context.storage)

    def arguments(self, source: str, **section: Any) -> tuple[str, str, str]:
        config = DataPrepConfig(source=source, **{"workers": 1, **section})
        return self.context.to_json(), config.to_json(), self.video.to_json()

    def __call__(self, source: str, **section: Any) -> Manifest:
        return Manifest.read(self.storage, prepare.prepare_data(*self.arguments(source, **section)))

    def quarantine(self, manifest: Manifest) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.storage.read_bytes(manifest.files["quarantine"]).splitlines()]

    def read_json(self, manifest: Manifest, name: str) -> Any:
        """One of the manifest's files."""
        return self.storage.read_json(manifest.files[name])

    def open(self, manifest: Manifest, folder: Path, **options: Any) -> PreparedSet:
        return PreparedSet.open(self.storage, manifest.manifest_uri, folder, **options)


@pytest.fixture
def run(context: RunContext, video: VideoConfig) -> Run:
    return Run(context, video)


def rows_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [make_row(number, f"videos/{number}.mp4", **changes) for number in range(count)]
