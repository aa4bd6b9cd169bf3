"""One run at a time in a workspace; what a killed one left is ended first, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.launch.process import spawn
from vthink.components.common.launch.supervisor import host_identity, identity, is_alive
from vthink.components.common.launch.workspace import Workspace
from vthink.tests.unit.components.common.launch.processes import TREE, read_line, tree_of, until

RUN = """
    workspace = Workspace(sys.argv[1] if len(sys.argv) > 1 else os.environ["WORKSPACE"])
    with workspace.lock():
        print("locked", flush=True)
"""


def test_a_second_run_is_refused_and_told_who_holds_the_workspace(
    owner: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = owner(RUN + "        time.sleep(1000)\n", WORKSPACE=str(tmp_path))
    assert read_line(run) == "locked"
    start = time.monotonic()
    with pytest.raises(UserError, match=f"in use by process {run.pid}") as error:
        with Workspace(tmp_path).lock():
            pass
    assert time.monotonic() - start < 2
    assert "\n" not in str(error.value)
    run.kill()
    run.wait()
    with Workspace(tmp_path).lock():
        pass


def test_a_workspace_can_be_locked_again_and_again_and_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    for _ in range(2):
        with Workspace(tmp_path).lock():
            assert os.environ["VTHINK_OWNER"] == identity()
            assert os.environ["VTHINK_PROCESSES"] == str(tmp_path / "processes")
    assert dict(os.environ) == before


def test_the_next_run_waits_until_nothing_of_a_killed_one_is_left(
    owner: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    body = f"""
        process = spawn([sys.executable, "-c", {textwrap.dedent(TREE)!r}])
        assert next(process.lines) == "ready"
        print(process.pid, flush=True)
        time.sleep(1000)
"""
    run = owner(RUN + body, WORKSPACE=str(tmp_path))
    assert read_line(run) == "locked"
    supervisor = int(read_line(run))
    tree = tree_of(supervisor)
    assert len(tree) == 4
    # A supervisor that cannot act shows that the next run does not rely on it.
    os.kill(supervisor, signal.SIGSTOP)
    run.kill()
    run.wait()
    assert all(is_alive(process) for process in tree)
    with Workspace(tmp_path).lock():
        assert not any(is_alive(process) for process in tree)
        assert list((tmp_path / "processes").glob("*.json")) == []


def test_processes_that_ended_in_order_leave_no_entry(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock():
        with spawn(["sleep", "1000"]):
            until(lambda: len(list(workspace.processes_dir.glob("*.json"))) == 2)
        assert list(workspace.processes_dir.glob("*.json")) == []


def test_processes_of_a_living_owner_are_left_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock(), spawn(["sleep", "1000"]) as process:
        until(lambda: len(list(workspace.processes_dir.glob("*.json"))) == 2)
        assert workspace.reap() == 0
        assert process.poll() is None


@pytest.mark.parametrize("entry", ["recycled", "other host", "damaged"])
def test_an_entry_that_does_not_name_a_leftover_kills_nobody(tmp_path: Path, entry: str) -> None:
    workspace = Workspace(tmp_path)
    innocent = subprocess.Popen(["sleep", "1000"])
    pid, start = identity(innocent.pid).split(":")
    data = {"process": f"{pid}:{start}", "owner": "1:1", "host": host_identity(), "command": ["sleep"]}
    data |= {"process": f"{pid}:{int(start) - 5}"} if entry == "recycled" else {}
    data |= {"host": "another boot"} if entry == "other host" else {}
    path = workspace.processes_dir / f"{pid}-{start}.json"
    path.write_text("{" if entry == "damaged" else json.dumps(data))
    assert workspace.reap(grace_s=0) == 0
    assert innocent.poll() is None
    assert not path.exists()
    # With the right identity the same entry does name it.
    path.write_text(json.dumps({**data, "process": f"{pid}:{start}", "host": host_identity()}))
    threading.Thread(target=innocent.wait).start()
    assert workspace.reap(grace_s=0) == 1
    assert innocent.wait() == -signal.SIGKILL


def test_credentials_are_random_kept_and_private(tmp_path: Path) -> None:
    keys = Workspace(tmp_path / "a").credentials()
    assert keys == Workspace(tmp_path / "a").credentials()
    assert keys != Workspace(tmp_path / "b").credentials()
    assert stat.S_IMODE((tmp_path / "a" / "credentials.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "a").glob(".cred*")] == []
