"""Processes of ours end with their owner, and quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vthink.components.common.launch.supervisor import identity, is_alive, pid_of
from vthink.tests.unit.components.common.launch.processes import gone, read_line, tree_of, until


def test_our_process_ends_with_its_owner_and_spares_its_process_group(
    owner: Callable[[str], subprocess.Popen[str]],
) -> None:
    run = owner(
        """
        executor = "from vthink.components.common.launch.process import *; import subprocess, time; end_with_owner();"
        executor += "subprocess.Popen(['sleep', '1000'], start_new_session=True); time.sleep(1000)"
        env = {**os.environ, "VTHINK_OWNER": identity()}
        print(subprocess.Popen([sys.executable, "-c", executor], env=env).pid, flush=True)
        print(subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL).pid, flush=True)
        time.sleep(1000)
        """
    )
    executor, neighbour = (identity(int(read_line(run))) for _ in range(2))
    until(lambda: len(tree_of(pid_of(executor))) == 2)
    tree = tree_of(pid_of(executor))
    assert os.getpgid(pid_of(executor)) == os.getpgid(pid_of(neighbour))
    run.kill()
    gone(tree)
    assert is_alive(neighbour)
    os.kill(pid_of(neighbour), signal.SIGKILL)


def test_our_process_does_not_start_work_for_an_owner_that_is_gone() -> None:
    ended = subprocess.Popen(["true"])
    late = identity(ended.pid)
    ended.wait()
    program = "from vthink.components.common.launch.process import *; end_with_owner(); print('worked')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "VTHINK_OWNER": late}, capture_output=True, check=False
    )
    assert done.returncode == 137
    assert done.stdout == b""


def test_asking_twice_watches_once(owner: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    body = """
        os.environ["VTHINK_OWNER"] = identity(os.getppid())
        end_with_owner()
        end_with_owner()
        print(sum(thread.name == "end-with-owner" for thread in threading.enumerate()), flush=True)
    """
    assert read_line(owner(body)) == "1"


def test_our_process_without_an_owner_just_works() -> None:
    env = {name: value for name, value in os.environ.items() if name != "VTHINK_OWNER"}
    program = "from vthink.components.common.launch.process import *; end_with_owner(); print('worked')"
    assert subprocess.check_output([sys.executable, "-c", program], env=env) == b"worked\n"


def test_a_process_of_ours_ends_without_looking_for_garbage() -> None:
    code = """
import sys
from vthink.components.common.launch.process import skip_garbage_collection_at_exit
class Knot:
    def __init__(self): self.itself = self
    def __del__(self): print("found")
if sys.argv[1] == "quickly":
    skip_garbage_collection_at_exit()
import gc
gc.disable()
Knot()
"""
    for how, printed in (("quickly", ""), ("thoroughly", "found\n")):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        assert done.stdout == printed
