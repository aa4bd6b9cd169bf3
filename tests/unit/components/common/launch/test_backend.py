"""Training with torchrun on this machine: what its workers leave, say and do when they are asked to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.launch import backend
from vthink.components.common.launch.backend import choose_backend, torchrun_command
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.process import LaunchError
from vthink.components.common.launch.supervisor import identity, pid_of
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.tests.unit.components.common.launch.processes import gone, read_line, tree_of

WORKER = """
    import argparse, os, signal, subprocess, sys, time
    from vthink.components.common.launch.job import TrainingJob
    from vthink.components.common.launch.process import end_with_owner
    from vthink.components.common.storage.manifest import Manifest
    from vthink.components.common.storage.s3 import Storage

    end_with_owner()
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = TrainingJob.read(parser.parse_args().job)
    rank = int(os.environ.get("RANK", "0"))
    print(f"threads {os.environ.get('OMP_NUM_THREADS')} rank {rank}", flush=True)
    if job.config["do"] == "fail":
        raise ValueError("the learning rate is silly")
    if job.config["do"] == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.config["do"] == "hang":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("pid", os.getpid(), flush=True)
        time.sleep(1000)
    if job.config["do"] == "save when asked":
        def save(*_):
            Storage(job.run.storage).write_json(job.prefix + "saved.json", rank)
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("pid", os.getpid(), flush=True)
        while True:
            time.sleep(0.1)
    if rank == 0 and job.config["do"] != "forget":
        manifest = Manifest(
            stage=job.stage, fingerprint=job.fingerprint, uri=job.prefix,
            counts={"world": int(os.environ.get("WORLD_SIZE", "1"))},
        )
        manifest.write(Storage(job.run.storage))
"""


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ``tiny_worker``, where torchrun's Python finds it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tiny_worker.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)


@pytest.fixture
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the worker itself: torchrun takes seconds, and these tests are about what is around it."""

    monkeypatch.setattr(backend, "torchrun_command", lambda job, log_dir: [sys.executable, *job.worker_command()])


def doing(job: TrainingJob, do: str, **launch: Any) -> TrainingJob:
    """The job with something else to do, launched otherwise."""
    run = job.run.model_copy(update={"launch": LaunchConfig(**{"threads": 1, **launch})})
    return job.model_copy(update={"config": {"do": do}, "run": run})


def train(job: TrainingJob, lines: list[str] | None = None) -> Manifest:
    return choose_backend(job.run.launch).train(job, [].append if lines is None else lines.append)


@pytest.mark.usefixtures("without_torchrun")
def test_training_returns_the_manifest_that_its_worker_wrote(job: TrainingJob, storage: Storage) -> None:
    lines: list[str] = []
    manifest = train(doing(job, "train"), lines)
    assert lines == ["threads 1 rank 0"]
    assert manifest == Manifest.read(storage, manifest.manifest_uri)
    assert TrainingJob.load(storage.read_json(job.uri)) == job
    assert list((Path(str(job.run.work_dir))).iterdir()) == []


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_fails_is_quoted_in_one_line(job: TrainingJob) -> None:
    with pytest.raises(LaunchError, match=r"sft: .*exit code 1; ValueError: the learning rate is silly") as error:
        train(doing(job, "fail"), [])
    assert "\n" not in str(error.value)
    assert error.value.lines[0] == "threads 1 rank 0"


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_is_killed_hints_at_memory(job: TrainingJob) -> None:
    with pytest.raises(LaunchError, match=r"killed.*out of memory"):
        train(doing(job, "be killed"), [])


@pytest.mark.usefixtures("without_torchrun")
def test_a_worker_that_writes_no_manifest_has_failed(job: TrainingJob) -> None:
    with pytest.raises(LaunchError, match="without writing its manifest"):
        train(doing(job, "forget"), [])


def test_several_nodes_need_a_cluster(job: TrainingJob) -> None:
    with pytest.raises(LaunchError, match=r"launch\.nodes=2: launch\.backend=local trains on one node"):
        train(doing(job, "train", nodes=2))


def test_a_training_job_without_a_cluster_is_one_line(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(LaunchError, match=r"no Kubernetes cluster: .*; set KUBECONFIG, or run in a pod"):
        train(doing(job, "train", backend="trainjob"))


def launcher(job: TrainingJob, direct: bool) -> str:
    """A stage's process: the program that trains."""
    replace = "backend.torchrun_command = lambda job, log_dir: [sys.executable, *job.worker_command()]"
    return f"""
from vthink.components.common.launch import backend
from vthink.components.common.launch.job import TrainingJob
{replace if direct else ""}
job = TrainingJob.load({job.to_json()!r})
backend.LocalBackend().train(job, lambda line: print(line, flush=True))
"""


def pids_of_workers(stage: subprocess.Popen[str], count: int = 1) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        line = read_line(stage)
        assert line or stage.poll() is None, "the stage ended"
        if match := re.search(r"pid (\d+)", line):
            found.append(identity(int(match[1])))
    return found


def test_a_killed_stage_leaves_no_worker(job: TrainingJob, owner: Callable[..., subprocess.Popen[str]]) -> None:
    stage = owner(launcher(doing(job, "hang"), direct=True))
    [worker] = pids_of_workers(stage)
    tree = tree_of(stage.pid)[1:]
    assert worker in tree
    assert len(tree) == 3
    stage.kill()
    gone(tree)


def test_a_stage_that_is_asked_to_end_lets_its_worker_save_first(
    job: TrainingJob, owner: Callable[..., subprocess.Popen[str]], storage: Storage
) -> None:
    stage = owner(launcher(doing(job, "save when asked"), direct=True))
    pids_of_workers(stage)
    tree = tree_of(stage.pid)[1:]
    stage.terminate()
    assert stage.wait(20) == 143
    gone(tree)
    assert storage.read_json(f"{job.prefix}saved.json") == 0


def test_torchrun_trains_with_two_processes(job: TrainingJob) -> None:
    lines: list[str] = []
    manifest = train(doing(job, "train", processes=2), lines)
    assert manifest.counts == {"world": 2}
    assert {"[rank 0] threads 1 rank 0", "[rank 1] threads 1 rank 1"} <= set(lines)


def test_torchrun_with_one_process_prefixes_nothing(job: TrainingJob) -> None:
    lines: list[str] = []
    with pytest.raises(LaunchError, match="exit code 1; ValueError: the learning rate is silly") as error:
        train(doing(job, "fail"), lines)
    assert "threads 1 rank 0" in lines
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_killed_stage_leaves_nothing_of_torchrun(
    job: TrainingJob, owner: Callable[..., subprocess.Popen[str]]
) -> None:
    stage = owner(launcher(doing(job, "hang", processes=2), direct=False))
    workers = pids_of_workers(stage, 2)
    tree = tree_of(stage.pid)[1:]
    assert set(workers) <= set(tree)
    # Workers of torchrun are in sessions of their own: ending a process group would miss them.
    assert len({os.getsid(pid_of(process)) for process in workers}) == 2
    stage.kill()
    gone(tree)


@pytest.mark.slow
def test_torchrun_passes_on_the_request_to_end(
    job: TrainingJob, owner: Callable[..., subprocess.Popen[str]], storage: Storage
) -> None:
    stage = owner(launcher(doing(job, "save when asked", processes=2), direct=False))
    pids_of_workers(stage, 2)
    tree = tree_of(stage.pid)[1:]
    stage.terminate()
    assert stage.wait(60) == 143
    gone(tree)
    assert storage.exists(f"{job.prefix}saved.json")


def test_torchrun_is_that_of_this_python(job: TrainingJob) -> None:
    command = torchrun_command(job, Path("logs"))
    assert command[:4] == [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    assert command[-4:] == ["-m", "tiny_worker", "--job", job.uri]
