"""What the tests of storage share."""

import os
from pathlib import Path

import pytest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage


@pytest.fixture
def prefix(storage: Storage) -> str:
    return join(storage.config.root_uri, "folder/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "config.json").write_text('{"a": 1}')
    (path / "sub" / "weights 1.bin").write_bytes(os.urandom(200_000))
    (path / "sub" / "deep" / "ünï#+%.txt").write_text("text")
    return path
