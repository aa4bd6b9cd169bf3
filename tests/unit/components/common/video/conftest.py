"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vthink.components.common.video.workers import Decoder

from .videos import CONFIG, damaged_files, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds, 60 frames."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", options={"movflags": "faststart"})


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(CONFIG, workers=2) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return damaged_files(tmp_path_factory.mktemp("damaged"))
