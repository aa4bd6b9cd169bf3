"""MLflow's pages, served on this machine."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from ..launch.process import LaunchError, Process, free_port, spawn, wait_until_ready
from ..storage.config import StorageConfig
from .client import mlflow_environment, tracking_uri, without_password
from .config import TrackingConfig


@dataclass(frozen=True)
class Ui:
    """A running MLflow server."""

    url: str
    process: Process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


def start_ui(
    tracking: TrackingConfig, storage: StorageConfig, artifact_root: str, log: Path, port: int | None = None
) -> Ui:
    """Serve MLflow's pages over the database (``tracking.uri``) and the store, on 127.0.0.1; returns when they answer.
    The keys of ``storage`` come from this process's environment; ``artifact_root`` is the ``s3://…`` folder of the
    artifacts. Where the server does not start, a `LaunchError` says what it printed last to ``log``."""
    uri = tracking_uri(tracking)
    if uri.startswith(("http://", "https://")):
        raise LaunchError(f"MLflow already runs at {without_password(uri)}: open it there")
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri,
        "--artifacts-destination", artifact_root, "--serve-artifacts",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    env = {**os.environ, **mlflow_environment(storage)}
    env.pop("MLFLOW_TRACKING_URI", None)  # it would make the server a client of another server
    process = spawn(command, env=env, log=log)
    try:
        wait_until_ready(process, "MLflow", lambda: answers(f"{url}/health"), timeout_s=240)
    except LaunchError:
        process.stop(1)
        raise
    return Ui(url, process)


def answers(url: str) -> bool:
    """Whether a server on this machine answers there; no proxy is asked."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
