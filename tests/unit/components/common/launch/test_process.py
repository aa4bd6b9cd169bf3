"""Commands under supervision: output, exit codes, and the end of everything below them."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.launch.process import LaunchError, spawn, wait_until_ready
from vthink.components.common.launch.supervisor import is_alive, pid_of
from vthink.tests.unit.components.common.launch.processes import TREE, gone, python, read_line, tree_of


def test_output_and_exit_code_of_a_command_arrive() -> None:
    with spawn(["sh", "-c", "echo one; echo two >&2; exit 7"]) as process:
        assert list(process.lines) == ["one", "two"]
        assert process.wait() == 7


def test_a_command_killed_by_a_signal_ends_with_128_plus_its_number() -> None:
    with spawn(["sh", "-c", "kill -9 $$"]) as process:
        assert process.wait() == 137


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no-such-program"):
        spawn(["no-such-program"])


def test_output_is_appended_to_a_log_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    for word in ("one", "two"):
        spawn(["echo", word], log=log).wait()
    assert log.read_text() == "one\ntwo\n"


def test_a_command_does_not_see_blocked_signals() -> None:
    # A blocked SIGTERM would be inherited through exec, and the command could never be asked to end.
    with spawn(["grep", "SigBlk", "/proc/self/status"]) as process:
        assert [line.split()[1] for line in process.lines] == ["0" * 16]


@pytest.mark.parametrize("ending", ["kill", "terminate", "return", "raise"])
def test_everything_below_a_command_ends_with_its_owner(
    owner: Callable[[str], subprocess.Popen[str]], ending: str
) -> None:
    run = owner(
        f"""
        process = spawn([sys.executable, "-c", {textwrap.dedent(TREE)!r}])
        assert next(process.lines) == "ready"
        print(process.pid, flush=True)
        time.sleep({0.5 if ending in ("return", "raise") else 1000})
        {'raise SystemExit("x")' if ending == "raise" else ""}
        """
    )
    supervisor = int(read_line(run))
    tree = tree_of(supervisor)
    assert len(tree) == 4
    assert all(is_alive(process) for process in tree)
    if ending == "kill":
        run.kill()
    elif ending == "terminate":
        run.terminate()
    run.wait()
    gone(tree)


def test_a_command_outlives_the_thread_that_started_it() -> None:
    # The death signal of the kernel follows the thread; this is what the supervisor is between for.
    started = []
    thread = threading.Thread(target=lambda: started.append(spawn(["sleep", "1000"])))
    thread.start()
    thread.join()
    time.sleep(1)
    assert started[0].poll() is None
    started[0].stop()


def test_the_command_dies_with_a_killed_supervisor_and_so_do_our_programs_below_it() -> None:
    worker = (
        "from vthink.components.common.launch.process import *; import time; end_with_owner(); print('up', flush=True)"
    )
    command = f"""
        import subprocess, sys, time
        worker = {worker!r} + "; time.sleep(1000)"
        subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
        time.sleep(1000)
    """
    process = spawn(python(command))
    assert next(process.lines) == "up"
    tree = tree_of(process.pid)
    assert len(tree) == 3
    os.kill(process.pid, signal.SIGKILL)
    gone(tree)
    process.wait()


def test_what_a_killed_command_leaves_behind_ends() -> None:
    process = spawn(python(TREE))
    assert next(process.lines) == "ready"
    tree = tree_of(process.pid)
    os.kill(pid_of(tree[1]), signal.SIGKILL)
    assert process.wait(10) == 137
    gone(tree)


def test_stopping_is_gentle_first() -> None:
    process = spawn(["sh", "-c", "trap 'echo saved; exit 3' TERM; echo up; while :; do sleep 0.05; done"])
    lines = process.lines
    assert next(lines) == "up"
    process.terminate()
    assert list(lines) == ["saved"]
    assert process.wait() == 3


def test_stopping_is_by_force_when_asking_does_not_help() -> None:
    process = spawn(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"])
    assert next(process.lines) == "up"
    start = time.monotonic()
    assert process.stop(grace_s=0.5) == 137
    assert 0.4 < time.monotonic() - start < 8


def test_waiting_has_a_limit() -> None:
    with spawn(["sleep", "1000"]) as process:
        with pytest.raises(TimeoutError, match="sleep still runs"):
            process.wait(0.2)


def test_a_server_that_cannot_start_says_what_it_printed_last(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    process = spawn(["sh", "-c", "echo; echo no luck today; exit 5"], log=log)
    with pytest.raises(LaunchError, match=r"the server ended with exit code 5: no luck today \(log: ") as error:
        wait_until_ready(process, "the server", lambda: False, timeout_s=20)
    assert "\n" not in str(error.value)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with spawn(["sleep", "1000"], log=tmp_path / "x.log") as process:
        with pytest.raises(LaunchError, match="not ready after"):
            wait_until_ready(process, "the server", lambda: False, timeout_s=0.3)
