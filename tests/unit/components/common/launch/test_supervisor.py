"""Which process is meant, whether it lives, and a supervisor that needs nothing but Python."""

from __future__ import annotations

import subprocess
import sys

from vthink.components.common.launch import supervisor
from vthink.components.common.launch.supervisor import identity, is_alive
from vthink.tests.unit.components.common.launch.processes import gone


def test_a_process_is_alive_until_it_ends_even_before_it_is_collected() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    me = identity(process.pid)
    assert is_alive(me)
    process.kill()
    gone([me])
    process.wait()
    assert not is_alive(me)


def test_a_recycled_process_id_is_not_the_process() -> None:
    pid, start = identity().split(":")
    assert is_alive(f"{pid}:{start}")
    assert not is_alive(f"{pid}:{int(start) - 1}")
    assert not is_alive("")
    assert not is_alive("x:1")


def test_importing_the_launcher_needs_only_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__, identity(), "echo", "hello"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"hello\n"
