"""Training on two nodes with the very command and environment that the TrainJob carries.

Each node is a `torchrun` of its own with a scratch folder of its own; the test adds what Kubeflow Trainer adds (the
``PET_*`` variables) and what the pod has (the keys from the secret). A node that gets SIGTERM takes the whole job down,
as in JobSet; the job is started again on empty machines.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import write_job
from vthink.components.common.launch.kubernetes import trainjob
from vthink.components.common.launch.supervisor import descendants
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.grpo.config import GRPOConfig
from vthink.components.sft.config import SFTConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 4
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "images": False,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "gradient_checkpointing": False,
    "save_every_steps": 100,  # no checkpoint but that of SIGTERM
    "log_every_steps": 1,
    "validation": {"every_steps": 100, "num_items": 2, "max_new_tokens": 4},
}
SECTIONS: dict[str, Any] = {
    "sft": SFTConfig(**COMMON, batch_size=2, deepspeed="zero3"),
    "sft-plain": SFTConfig(**COMMON, batch_size=2),
    "grpo": GRPOConfig(**COMMON, num_generations=4, prompts_per_step=2, max_new_tokens=8, deepspeed="zero3"),
}
FROM_THE_POD = ("PATH", "HOME", "PYTHONPATH", "LANG", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def meeting_port() -> int:
    """A free port that no outgoing connection gets: torchrun takes seconds until it listens there."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Job:
    """A training job on nodes that are processes of this machine."""

    def __init__(self, context: RunContext, name: str, data: str, folder: Path) -> None:
        self.stage = name.partition("-")[0]
        self.folder, self.storage = folder / name, Storage(context.storage)
        self.prefix = join(context.storage.root_uri, f"{folder.name}-{name}/")
        launch = LaunchConfig.load(
            {"backend": "trainjob", "nodes": 2, "cluster": {"accelerator": None, "work_dir": str(self.folder)}}
        )
        self.context = context.model_copy(update={"launch": launch})
        job = {
            "config": SECTIONS[name].model_dump(mode="json"),
            "model": ModelConfig(prompt="compact/1").model_dump(mode="json"),
            "data": data,
            "processes": 2,
            **({"policy": ""} if self.stage == "grpo" else {}),
        }
        self.uri = write_job(self.storage, self.context, self.stage, job, "f" * 16, self.prefix)
        self.lines: list[str] = []
        self.processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def start(self, nodes: int = 2) -> None:
        """Start every node, on an empty machine."""
        context = self.context
        command = trainjob.command(context, f"vthink.components.{self.stage}", self.uri)
        body = trainjob.train_job(context, self.stage, "job", 1, command)["spec"]["trainer"]  # type: ignore[arg-type]
        carried = {entry["name"]: entry["value"] for entry in body["env"] if "value" in entry}
        meeting = {"PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": str(body["numProcPerNode"])}
        meeting |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(meeting_port())}
        pod = {name: os.environ[name] for name in FROM_THE_POD if name in os.environ}
        pod["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{pod.get('PATH', '')}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.processes, self._threads = [], []
        for rank in range(nodes):
            scratch = self.folder / f"node-{rank}"
            scratch.mkdir(parents=True)
            # One folder a node, as its volume is; loopback, as this machine has no other network between them.
            own = {"PET_NODE_RANK": str(rank), "VTHINK_WORK_DIR": str(scratch), "GLOO_SOCKET_IFNAME": "lo"}
            own["PYTHONFAULTHANDLER"] = "1"
            process = subprocess.Popen(
                body["command"], env={**pod, **carried, **meeting, **own}, cwd=scratch, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True,
            )  # fmt: skip
            self.processes.append(process)
            thread = threading.Thread(target=self._read, args=(process,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self, process: subprocess.Popen[str]) -> None:
        self.lines.extend(line.rstrip() for line in process.stdout or ())

    def wait_for(self, text: str, timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            running = any(process.poll() is None for process in self.processes)
            assert running, "\n".join(self.lines[-200:])
            assert time.monotonic() < deadline, "\n".join(self.lines[-200:])
            time.sleep(0.02)

    def ended(self, timeout_s: float = 240) -> list[int]:
        try:
            codes = [process.wait(timeout_s) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:  # each worker says where it hangs
                for pid in descendants(process.pid):
                    os.kill(pid, signal.SIGABRT)
            time.sleep(5)
            pytest.fail("it hangs:\n" + "\n".join(self.lines[-200:]))
        for thread in self._threads:
            thread.join(10)
        return codes

    def steps(self) -> dict[str, str]:
        """What each step printed, without its pace; printed again after a restart it must be the same."""
        found: dict[str, str] = {}
        for line in self.lines:
            match = re.search(rf"({self.stage} \d+/{STEPS}) · (.*?) · [\d.]+ s/step", line)
            if match:
                found[match[1]] = re.sub(r"time/\S+ \S+", "", match[2])
        return found

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        manifest = Manifest.find(self.storage, self.prefix)
        assert manifest is not None, "\n".join(self.lines[-200:])
        assert manifest.counts["steps"] == STEPS
        self.storage.download_dir(manifest.files["model"], folder)
        return load_file(folder / "model.safetensors")


@pytest.fixture
def job(context: RunContext, small_world: str, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(name: str, run: str) -> Job:
        folder = tmp_path / run
        folder.mkdir(exist_ok=True)
        made.append(Job(context, name, small_world, folder))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes:
            # Workers have sessions of their own: their torchrun's group does not hold them.
            for pid in [*descendants(process.pid), process.pid] if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)


def interrupt(job: Job) -> None:
    """SIGTERM to one node in the middle; both end with a stored checkpoint, and with a code that asks for a restart."""
    job.start()
    job.wait_for(f"{job.stage} 1/{STEPS}")
    job.processes[1].send_signal(signal.SIGTERM)
    codes = job.ended()
    assert all(code != 0 for code in codes), codes
    assert any("is stored; the next start goes on from it" in line for line in job.lines), "\n".join(job.lines[-60:])
    assert Manifest.find(job.storage, job.prefix) is None


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_two_nodes_that_lose_one_go_on_as_if_undisturbed(name: str, job: Callable[..., Job], tmp_path: Path) -> None:
    undisturbed = job(name, "undisturbed")
    undisturbed.start()
    assert undisturbed.ended() == [0, 0], "\n".join(undisturbed.lines[-60:])
    expected = undisturbed.weights(tmp_path / "expected")
    disturbed = job(name, "disturbed")
    interrupt(disturbed)
    disturbed.start()
    assert disturbed.ended() == [0, 0], "\n".join(disturbed.lines[-60:])
    assert any("going on from checkpoint-" in line for line in disturbed.lines)
    found = disturbed.weights(tmp_path / "found")
    assert disturbed.steps() == undisturbed.steps()
    assert len(undisturbed.steps()) == STEPS
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sft-plain", "sft"])
def test_one_node_goes_on_where_two_were(name: str, job: Callable[..., Job], tmp_path: Path) -> None:
    undisturbed = job(name, "undisturbed")
    undisturbed.start()
    assert undisturbed.ended() == [0, 0], "\n".join(undisturbed.lines[-60:])
    expected = undisturbed.weights(tmp_path / "expected")
    shrunk = job(name, "shrunk")
    interrupt(shrunk)
    shrunk.start(nodes=1)
    assert shrunk.ended() == [0], "\n".join(shrunk.lines[-60:])
    assert any("going on from checkpoint-" in line for line in shrunk.lines)
    found = shrunk.weights(tmp_path / "found")
    assert found.keys() == expected.keys()
    distance = sum(float((found[key] - weight).square().sum()) for key, weight in expected.items()) ** 0.5
    assert distance < 1e-3  # after other batches it is 0.8
