"""A workspace of a test's own, and manifests in its store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.storage.manifest import Manifest
from vthink.pipelines.run.session import Session


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No store and no MLflow but the workspace's own."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "VTHINK_")):
            monkeypatch.delenv(name)
    return tmp_path / ".vthink"


@pytest.fixture
def manifest() -> Callable[..., str]:
    """Write a stage's manifest into a session's store."""

    def write(opened: Session, stage: str, fingerprint: str = "f") -> str:
        uri = f"{opened.storage.config.root_uri}{stage}/{fingerprint}/"
        return Manifest(stage=stage, fingerprint=fingerprint, uri=uri).write(opened.storage)

    return write
