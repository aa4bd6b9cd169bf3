"""Programs that play a run and its processes, and how a test looks at them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

from vthink.components.common.launch.supervisor import descendants, identity, is_alive

TREE = """
    import os, subprocess, sys, time
    # A child in a session of its own, as torchrun's workers are, and one whose parent is gone.
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 0.1"], start_new_session=True).wait()
    print("ready", flush=True)
    time.sleep(1000)
"""
"""A command with descendants that its process group does not hold."""


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(processes: list[str]) -> None:
    until(lambda: not any(is_alive(process) for process in processes))


def tree_of(pid: int) -> list[str]:
    return [identity(child) for child in [pid, *descendants(pid)]]


def python(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
