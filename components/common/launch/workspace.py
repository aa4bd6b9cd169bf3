"""The folder in which `vthink run` keeps everything on one machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .process import LaunchError
from .s3_server import S3Endpoint, named_s3_endpoint, start_s3
from .supervisor import (
    OWNER,
    POLL_S,
    PROCESSES,
    descendants,
    host_identity,
    identity,
    is_alive,
    pid_of,
    send_signal,
    unregister,
)


class Workspace:
    """The folder (``.vthink``) in which `vthink run` keeps everything on one machine."""

    def __init__(self, path: Path | str):
        self.root = Path(path).absolute()
        """The folder itself."""
        self.s3_dir = self.root / "s3"
        """What the local S3 server serves; buckets are folders."""
        self.work_dir = self.root / "work"
        """Scratch space and caches."""
        self.processes_dir = self.root / "processes"
        """The register of running processes."""
        self.logs_dir = self.root / "logs"
        """Logs of the servers."""
        self.mlflow_uri = f"sqlite:///{self.root / 'mlflow.db'}"
        """MLflow's database."""
        for folder in (self.s3_dir, self.work_dir, self.processes_dir, self.logs_dir):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for one run; what a killed run left behind is ended first.

        Inside, ``VTHINK_OWNER`` and ``VTHINK_PROCESSES`` are set, so that every process started here can be
        watched and found.

        Raises:
            UserError: another run holds it; names its process.
        """
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{identity()}\n".encode(), 0)
            self.reap()
            ours = {OWNER: identity(), PROCESSES: str(self.processes_dir)}
            before = {name: os.environ.get(name) for name in ours}
            os.environ.update(ours)
            try:
                yield
            finally:
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    raise
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
            # A run that is just starting has not written its name yet; one that was killed may have left a fork that
            # holds the lock until it notices.
            if (holder and is_alive(holder)) or time.monotonic() > deadline:
                pid = holder.partition(":")[0] or "unknown"
                raise UserError(
                    f"the workspace {self.root} is in use by process {pid}; wait for it, end it, or choose "
                    "another folder with --workspace"
                )
            time.sleep(POLL_S)

    def reap(self, grace_s: float = 3.0) -> int:
        """End registered processes whose owner is gone and wait until they are; returns how many there were.

        They normally end by themselves within ``grace_s``; after that they are killed.
        """
        leftovers: dict[Path, str] = {}
        owners: dict[Path, str] = {}
        for path in self.processes_dir.glob("*.json"):
            try:
                entry = json.loads(path.read_text())
                process, owners[path], host = str(entry["process"]), str(entry["owner"]), str(entry["host"])
            except (OSError, ValueError, KeyError, TypeError):
                unregister(path)
                continue
            if host == host_identity() and is_alive(process):
                leftovers[path] = process
            else:
                unregister(path)
        # Kept are those whose owner lives, unless the owner is itself a leftover.
        while kept := [path for path in leftovers if is_alive(owners[path]) and owners[path] not in leftovers.values()]:
            for path in kept:
                del leftovers[path]
        start = time.monotonic()
        while any(is_alive(process) for process in leftovers.values()):
            waited = time.monotonic() - start
            if waited > grace_s + 10:
                alive = [str(pid_of(process)) for process in leftovers.values() if is_alive(process)]
                raise LaunchError(f"processes of an earlier run cannot be ended: {', '.join(alive)}")
            if waited > grace_s:
                for process in leftovers.values():
                    below = [identity(child) for child in descendants(pid_of(process))]
                    for victim in (process, *below):
                        if is_alive(victim):
                            send_signal(pid_of(victim), signal.SIGKILL)
            time.sleep(0.05)
        for path in leftovers:
            unregister(path)
        return len(leftovers)

    def credentials(self) -> tuple[str, str]:
        """Access key and secret key of the local S3 server; made once, readable by this user only."""
        path = self.root / "credentials.json"
        if not path.exists():
            keys = {"access_key": "vthink" + secrets.token_hex(7), "secret_key": secrets.token_hex(20)}
            partial = path.with_name(f".credentials.{secrets.token_hex(4)}")
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(keys, file)
            # Linked, not renamed: of two processes that both made keys, the first one's stay.
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
            partial.unlink()
        keys = json.loads(path.read_text())
        return keys["access_key"], keys["secret_key"]

    def start_s3(self) -> S3Endpoint:
        """An S3 server over ``s3_dir`` on a free port of this machine, ready to use.

        Where ``VTHINK_S3_ENDPOINT`` or ``AWS_ENDPOINT_URL_S3`` names an endpoint, that one is used and
        nothing is started; its keys come from boto3's default chain.
        """
        if (endpoint := named_s3_endpoint()) is not None:
            return endpoint
        access_key, secret_key = self.credentials()
        return start_s3(self.s3_dir, access_key, secret_key, self.logs_dir / "s3.log")
