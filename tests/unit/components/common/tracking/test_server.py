"""MLflow's pages on this machine."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.process import LaunchError
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.tracking.run import Tracker
from vthink.components.common.tracking.server import is_taken, start_ui


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as response:
        return bytes(response.read())


@pytest.mark.slow
def test_the_user_interface_shows_runs_and_artifacts_and_ends_with_us(
    child: RunContext, artifact_root: str, tmp_path: Path
) -> None:
    with start(child) as tracker:
        tracker.log_text("notes", "seen")
    with start_ui(child.tracking, child.storage, artifact_root, tmp_path / "ui.log") as ui:
        assert ui.url.startswith("http://127.0.0.1:")
        assert b"<html" in fetch(ui.url)
        run = json.loads(fetch(f"{ui.url}/api/2.0/mlflow/runs/get?run_id={tracker.run_id}"))
        assert run["run"]["info"]["status"] == "FINISHED"
        assert fetch(f"{ui.url}/get-artifact?path=notes.txt&run_uuid={tracker.run_id}") == b"seen"
    assert ui.process.poll() is not None
    with pytest.raises(OSError):
        fetch(ui.url)


def test_the_user_interface_of_a_tracking_server_is_its_own(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="already runs at http://team:5000: open it"):
        start_ui(TrackingConfig(uri="http://u:p@team:5000"), context.storage, "s3://b/", tmp_path / "log")


def test_a_port_on_which_another_server_answers_is_refused_at_once(context: RunContext, tmp_path: Path) -> None:
    with socket.socket() as other:  # it would be asked for its health in the place of ours
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port} is taken by another program"):
            start_ui(context.tracking, context.storage, "s3://b/", tmp_path / "ui.log", port)
    assert not (tmp_path / "ui.log").exists()  # nothing was started
    assert not is_taken(port)


def test_a_user_interface_that_cannot_start_says_why(context: RunContext, artifact_root: str, tmp_path: Path) -> None:
    broken = TrackingConfig(uri="nonsense://x")
    with pytest.raises(LaunchError, match=r"MLflow ended with exit code \d+: .*ui\.log") as error:
        start_ui(broken, context.storage, artifact_root, tmp_path / "ui.log")
    assert "\n" not in str(error.value)
    assert os.path.exists(tmp_path / "ui.log")
