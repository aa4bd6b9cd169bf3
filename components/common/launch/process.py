"""Processes of ours: commands under supervision, when this one ends, and how many threads it uses."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from . import supervisor as program

if TYPE_CHECKING:
    from .config import LaunchConfig

TAIL_LINES = 40  # how many of a process's last lines an error shows
_watching: tuple[str, str] | None = None  # which process (a fork is another one) already watches which owner


class LaunchError(UserError):
    """A process could not be started or failed."""

    def __init__(self, message: str, lines: Iterable[str] = ()):
        super().__init__(message)
        self.lines = tuple(lines)[-TAIL_LINES:]
        """The last lines it printed."""


class Process(contextlib.AbstractContextManager["Process"]):
    """A command under supervision. As a context manager it is stopped at the end of the block."""

    def __init__(self, supervisor: subprocess.Popen[str], command: Sequence[str], log: Path | None):
        self.command, self.log, self._supervisor = tuple(command), log, supervisor
        self.pid = supervisor.pid
        """Id of the supervisor."""
        self.poll = supervisor.poll
        """Gives the exit code, 128 + signal for a killed command, or None while it runs."""

    @property
    def lines(self) -> Iterator[str]:
        """The lines the command prints, until it ends; only when it was started without a log file."""
        assert self._supervisor.stdout is not None, "the output goes to the log file"
        for line in self._supervisor.stdout:
            yield line.rstrip("\r\n")

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end, at most ``timeout_s`` (then TimeoutError); returns the exit code."""
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.command[0]} still runs after {timeout_s} s") from None

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM). Asked a second time, it and everything below it is killed."""
        if self.poll() is None:
            self._supervisor.terminate()

    def stop(self, grace_s: float = 10.0) -> int:
        """End the command, gently for ``grace_s``, then by force, and wait until nothing of it is left."""
        self.terminate()
        try:
            return self.wait(grace_s)
        except TimeoutError:
            self.terminate()
            return self.wait()
        finally:
            if self._supervisor.stdout is not None:
                self._supervisor.stdout.close()

    def __exit__(self, *_: object) -> None:
        self.stop()


def spawn(command: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None) -> Process:
    """Start a command that ends, with everything it started, when this process ends, even by SIGKILL. ``env`` is its
    whole environment (default: this process's), with ``VTHINK_OWNER`` set to the supervisor, so that our own programs
    below it can watch it. Output is appended to ``log``, or read from `Process.lines`."""
    if shutil.which(command[0], path=(env or os.environ).get("PATH")) is None:
        raise LaunchError(f"cannot start {command[0]}: no such program")
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") if log is not None else contextlib.nullcontext(subprocess.PIPE) as sink:
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", program.__file__, program.identity(), *command],
            env=dict(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Apart from the terminal's group: Ctrl-C reaches the caller, who then stops its children in order.
            start_new_session=True,
            text=True,
            errors="replace",
            bufsize=-1,
        )
    return Process(supervisor, command, log)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_ready(process: Process, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
    """Wait until ``ready()``; LaunchError with what it printed last when the process ended first or time ran out."""
    start = time.monotonic()
    while not ready():
        code = process.poll()
        waited = time.monotonic() - start
        if code is not None or waited > timeout_s:
            lines = tail(process.log) if process.log is not None else []
            what = f"ended with exit code {code}" if code is not None else f"is not ready after {waited:.0f} s"
            last = f": {lines[-1]}" if lines else ""
            raise LaunchError(f"{name} {what}{last} (log: {process.log})", lines)
        time.sleep(0.05)


def tail(path: Path) -> list[str]:
    """The last lines of a log file that are not empty, up to `TAIL_LINES`."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL_LINES:]


def skip_garbage_collection_at_exit() -> None:
    """Let this process, one of ours alone, end without collecting garbage: beside torch that took it two seconds."""
    atexit.register(gc.freeze)


def end_with_owner() -> None:
    """End this process and all below it as soon as the process named in ``VTHINK_OWNER`` is gone.

    Called at the start of our own processes, which then also `skip_garbage_collection_at_exit`; again it does nothing.
    Only this process and its descendants are killed, not the process group: an executor of ``kfp.local`` shares its
    group with `make` or the shell that called `vthink run`."""
    global _watching
    owner, me = os.environ.get(program.OWNER), program.identity()
    if not owner or owner == me or _watching == (me, owner):
        return
    if not program.is_alive(owner):
        os._exit(128 + signal.SIGKILL)
    _watching = (me, owner)
    skip_garbage_collection_at_exit()
    registered = program.register(owner, sys.argv)

    def watch() -> None:
        while program.is_alive(owner):
            time.sleep(program.POLL_S)
        for pid in program.descendants(os.getpid()):
            program.send_signal(pid, signal.SIGKILL)
        program.unregister(registered)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-owner", daemon=True).start()


@contextlib.contextmanager
def on_sigterm(handler: Callable[[], None]) -> Iterator[None]:
    """Call ``handler`` at the first SIGTERM in the block; later ones are ignored. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler()

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def limit_threads(launch: LaunchConfig) -> None:
    """Let torch, here and in what this process starts, use ``launch.threads`` CPU threads; 0: the library's default.
    torchrun's workers get the same by their environment. Without it a process takes a thread per core, and two of them
    on one machine wait for each other: an evaluation beside other work took 32 minutes instead of one."""
    if launch.threads:
        os.environ["OMP_NUM_THREADS"] = str(launch.threads)  # read when torch is imported, which may be never
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(launch.threads)
