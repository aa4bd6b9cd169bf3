"""``vthink run`` in processes of its own, as a user starts it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MICRO = Path(__file__).with_name("micro.yaml")
VTHINK = [sys.executable, "-m", "vthink.pipelines.cli.main"]
FOREIGN = ("AWS_", "MLFLOW_", "VTHINK_S3_ENDPOINT", "VTHINK_STORAGE", "VTHINK_OWNER", "VTHINK_PROCESSES")


def clean_environment() -> dict[str, str]:
    """This process's environment without the stores of other tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**env, "NO_COLOR": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}


def run_vthink(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``vthink ARGUMENTS`` as a user types it in ``folder``."""
    command = [*VTHINK, *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)


class Demo:
    """A folder in which a user works with the micro configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / ".vthink"

    def vthink(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any command, waited for."""
        return run_vthink(self.folder, *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``vthink run``, waited for."""
        return self.vthink("run", "--config", str(MICRO), *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Any command, in the background."""
        return subprocess.Popen(
            [*VTHINK, *arguments],
            cwd=self.folder,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that were started in the background ignore SIGINT, and their children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def start_run(self, *arguments: str) -> subprocess.Popen[str]:
        """``vthink run``, in the background."""
        return self.start("run", "--config", str(MICRO), *arguments)

    def wait_until(self, process: subprocess.Popen[str], happened: Callable[[], bool], timeout_s: float = 300) -> bool:
        """Wait for something in the workspace; False when the process ended first."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.005)
        return True

    def log(self, stage: str = "pipeline") -> str:
        path = self.workspace / "logs" / f"{stage}.log"
        return path.read_text("utf-8", errors="replace") if path.exists() else ""

    def processes(self) -> dict[int, str]:
        """Every living process that was started for this workspace, with its command line."""
        mark = f"VTHINK_PROCESSES={self.workspace / 'processes'}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL ``vthink run`` alone, as ``kill -9`` or the kernel would, and wait for it."""
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def orphans(self, grace_s: float = 10) -> dict[int, str]:
        """What is left of this workspace's processes after ``grace_s`` at most."""
        deadline = time.monotonic() + grace_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def read(self, name: str) -> Any:
        return json.loads((self.workspace / name).read_text("utf-8"))

    @property
    def summary(self) -> dict[str, Any]:
        return self.read("summary.json")

    def manifests(self) -> dict[str, str]:
        """When each finished stage wrote its manifest, by the manifest's path in the store."""
        store = self.workspace / "s3"
        return {
            str(path.relative_to(store)): json.loads(path.read_text("utf-8"))["created"]
            for path in store.glob("*/*/*/manifest.json")
        }

    def results(self) -> dict[str, Any]:
        """What must not depend on how often a run was interrupted: all metrics, and the checksums of all weights."""
        store = self.workspace / "s3"
        weights = {
            str(path.relative_to(store)): json.loads(path.read_text("utf-8"))["files"]["model.safetensors"]["sha256"]
            for path in sorted(store.glob("*/*/*/model/_COMPLETE.json"))
        }
        summary = self.summary
        return {"models": summary["models"], "weights": weights, "answer": summary["question"]["text"]}


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def vthink() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a folder, without the stores of other tests."""
    return run_vthink


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    """An empty folder."""
    return Demo(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A folder in which the micro run has finished, undisturbed. Tests must leave it as it is.

    One for all workers of pytest-xdist, whose temporary folders lie side by side: a test may start a server in it
    and look at what it serves, and nothing else.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = Demo(shared / "finished")
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.folder.exists():
            made.folder.mkdir()
            try:
                succeeded(made.run())
                assert made.orphans() == {}, "the run left processes"
            except BaseException:
                shutil.rmtree(made.folder)
                raise
    return made


@pytest.fixture
def copied(finished: Demo, tmp_path: Path) -> Demo:
    """A copy of the finished folder, to do something with."""
    shutil.copytree(finished.workspace, tmp_path / ".vthink", symlinks=True)
    return Demo(tmp_path)


@pytest.fixture
def statuses() -> Callable[[Demo], dict[str, str]]:
    """How each stage of the last run ended."""
    return lambda demo: {stage: about["status"] for stage, about in demo.summary["stages"].items()}


@pytest.fixture(scope="session")
def check() -> Callable[[subprocess.CompletedProcess[str]], str]:
    """The output of a command that must have succeeded."""
    return succeeded
