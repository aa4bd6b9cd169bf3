"""Servers with the real routes and a played model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.tests.fakes.model_server import Running, ScriptedModel, running, write_video


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("media") / "moving.mp4")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedModel(), ServerConfig(max_new_tokens=64, upload_timeout_s=2)) as started:
        yield started


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server with settings of one test's own; a single decoder, as its start takes longest."""
    with contextlib.ExitStack() as stack:

        def launch(model: ScriptedModel | None = None, **settings: object) -> Running:
            config = ServerConfig.load({"decoders": 1, **settings})
            return stack.enter_context(running(model or ScriptedModel(), config))

        yield launch
