"""The adoptive parent of a command: ends, with everything below it, when its owner is gone.

A program of its own, started as ``python -I -S supervisor.py OWNER COMMAND…`` so that it is there within milliseconds:
nothing but the standard library is imported. How processes are named, found and registered is therefore here too.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

OWNER = "VTHINK_OWNER"  # environment variable with the identity of the process that ours must not outlive
PROCESSES = "VTHINK_PROCESSES"  # environment variable with the folder in which a workspace's processes register
POLL_S = 0.2  # seconds between two looks at whether the owner still lives
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


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


def pid_of(process: str) -> int:
    """The process id in an identity."""
    return int(process.partition(":")[0])


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
    below = list(children.get(pid, []))
    for child in below:
        below.extend(children.get(child, []))  # the list grows while it is walked
    return below


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone or somebody else's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def host_identity() -> str:
    """This boot and process namespace: identities registered in another one mean nothing here."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else ''} {os.readlink('/proc/self/ns/pid')}"


def register(owner: str, command: Sequence[str], pid: int | None = None) -> Path | None:
    """Note a process in the workspace's register, if there is one."""
    folder = os.environ.get(PROCESSES)
    if not folder or not os.path.isdir(folder):
        return None
    process = identity(pid)
    path = Path(folder) / (process.replace(":", "-") + ".json")
    entry = {"process": process, "owner": owner, "host": host_identity(), "command": list(command)}
    with contextlib.suppress(OSError):
        path.with_suffix(".part").write_text(json.dumps(entry))
        path.with_suffix(".part").replace(path)
    return path


def unregister(path: Path | None) -> None:
    """Remove what `register` noted."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _supervise(owner: str, command: list[str]) -> int:
    """Run a command as the adoptive parent of everything it starts; returns its exit code. The first SIGTERM is passed
    on, the second kills; so does the end of the owner."""
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Blocked and fetched one by one below: nothing can arrive at an inconvenient moment.
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if not is_alive(owner):
        return 128 + signal.SIGKILL
    me = identity()
    registered = [register(owner, command)]
    os.environ[OWNER] = me

    def prepare() -> None:
        # Safe here, unlike in general: the death signal fires when the *thread* that forked ends, and this
        # process has a single one.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != pid_of(me):
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", flush=True)
        return 127
    registered.append(register(me, command, child.pid))
    terminated = False
    while (code := _reap(child.pid)) is None:
        received = signal.sigtimedwait(watched, POLL_S)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if terminated:
                break
            terminated = True
            send_signal(child.pid, signal.SIGTERM)
        elif not is_alive(owner):
            break
    while below := descendants(os.getpid()):
        for pid in below:
            send_signal(pid, signal.SIGKILL)
        ended = _reap(child.pid)
        code = ended if code is None else code
        time.sleep(0.01)
    for path in registered:
        unregister(path)
    return 128 + signal.SIGKILL if code is None else code


def _reap(child: int) -> int | None:
    """Collect ended children, also adopted ones; the exit code of ``child`` if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                code = 128 - code if code < 0 else code
    return code


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1], sys.argv[2:]))
