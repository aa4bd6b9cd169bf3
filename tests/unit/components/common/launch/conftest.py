from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.workspace import S3_ENDPOINT
from vthink.components.common.storage.s3 import Storage


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python programs that play the run; they get `spawn` and friends, and are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, **env: str) -> subprocess.Popen[str]:
        modules = ("process", "supervisor", "workspace")
        text = "".join(f"from vthink.components.common.launch.{name} import *\n" for name in modules)
        text += "import sys, time, os, threading, subprocess\n"
        process = subprocess.Popen(
            [sys.executable, "-c", text + textwrap.dedent(body)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing about S3, restored afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("AWS_") or name in (S3_ENDPOINT, "MLFLOW_S3_ENDPOINT_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def job(storage: Storage, tmp_path: Path) -> TrainingJob:
    """A job of the worker in `test_local.py`, which does what ``config["do"]`` says."""
    run = RunContext(
        run_id="r", storage=storage.config, work_dir=str(tmp_path / "work"), launch=LaunchConfig(threads=1)
    )
    return TrainingJob(
        stage="sft", worker="tiny_worker", fingerprint="0123", prefix=f"{storage.config.root_uri}sft/0123", run=run,
        config={"do": "train"}, model={}, data="s3://b/data/manifest.json", processes=1,
    )  # fmt: skip
