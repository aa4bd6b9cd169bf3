"""GRPO on several processes does what it does on one: real torchrun, gloo and DeepSpeed, images and videos mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.s3 import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WORKER = Path(__file__).with_name("grpo_worker.py")
SETTINGS: dict[str, Any] = {
    "num_generations": 4,
    "max_new_tokens": 10,
    "max_steps": 4,
    "top_p": 1.0,
    "temperature": 0.25,  # an untrained model's 900 tokens are nearly equally likely: the last bit would pick another
    "learning_rate": 0.05,
    "lr_schedule": "constant",
    "weight_decay": 0.5,  # of all but biases and norms: a resumed training must know which
    "kl_coefficient": 0.04,
    "gradient_checkpointing": False,
    "rewards": {"temporal": {}, "extra": {"grpo_worker_rewards:brevity": 1.0}},
    "save_every_steps": 2,
    "log_every_steps": 1,
    "validation": {"every_steps": 2, "num_items": 2, "max_new_tokens": 4},
}


@dataclass
class Trained:
    """What a run did."""

    code: int
    rollouts: dict[str, Any]
    norms: dict[str, float]
    weights: dict[str, torch.Tensor]
    output: str


class Trainings:
    """Runs the worker and remembers undisturbed runs."""

    def __init__(self, prepared: PreparedSet, storage: Storage, folder: Path) -> None:
        self.prepared, self.storage, self.folder = prepared, storage, folder
        model, _ = build_tiny(TinyModelConfig(), prepared.video, 0)
        model.save_pretrained(folder / "start")
        split = prepared.split("train")
        videos = [i for i, sample in enumerate(split.samples) if sample.media.kind == "video"]
        images = [i for i, sample in enumerate(split.samples) if sample.media.kind == "image"]
        self.rows = [*videos[:9], *images[:3]]

    def run(
        self,
        name: str,
        processes: int,
        planned: int | None = None,
        fault: tuple[str, int, int] | None = None,
        best: bool = False,
        **settings: Any,
    ) -> Trained:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        planned = planned or processes
        job = {
            "storage": self.storage.config.to_json(),
            "data": self.prepared.manifest.manifest_uri,
            "folder": str(folder),
            "start": str(self.folder / "start"),
            "prefix": f"{self.storage.config.root_uri}{name}/",
            "rows": self.rows,
            "planned_processes": planned,
            "settings": SETTINGS | {"prompts_per_step": 4 // planned} | settings,
            "best": best,
            "fault": fault[0] if fault else "",
            "fault_rank": fault[1] if fault else -1,
            "fault_step": fault[2] if fault else -1,
        }
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*command, str(WORKER), str(path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        rollouts: dict[str, Any] = {}
        norms: dict[str, float] = {}
        if done.returncode == 0:
            for rank in range(processes):
                trace = json.loads((folder / f"trace-{rank}.json").read_text())
                rollouts |= trace["rollouts"]
                norms |= trace["norms"]
        weights = torch.load(folder / "weights.pt") if done.returncode == 0 else {}
        return Trained(done.returncode, rollouts, norms, weights, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def once() -> dict[str, Trained]:
    return {}


@pytest.fixture
def trainings(prepared: PreparedSet, storage: Storage, tmp_path: Path) -> Trainings:
    return Trainings(prepared, storage, tmp_path)


@pytest.fixture
def alone(trainings: Trainings, once: dict[str, Trained]) -> Trained:
    """One process, undisturbed."""
    if "alone" not in once:
        once["alone"] = trainings.run("alone", 1)
        assert once["alone"].code == 0, once["alone"].output[-3000:]
    return once["alone"]


def same(found: Trained, expected: Trained, steps: set[str] | None = None) -> None:
    """Completions equal; advantages, reference log-probabilities, gradient norms and weights within 1e-3 relative."""
    assert found.code == 0, found.output[-3000:]
    wanted = {key: v for key, v in expected.rollouts.items() if steps is None or key.split("/")[0] in steps}
    assert found.rollouts.keys() == wanted.keys()
    for key, rollout in wanted.items():
        assert found.rollouts[key]["ids"] == rollout["ids"], key
        assert found.rollouts[key]["advantages"] == pytest.approx(rollout["advantages"], rel=1e-3, abs=1e-3), key
        for ours, theirs in zip(found.rollouts[key]["ref"], rollout["ref"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), key
    for step, norm in found.norms.items():
        assert norm == pytest.approx(expected.norms[step], rel=1e-3), step
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert float((found.weights[name] - weight).norm()) <= 1e-3 * float(weight.norm()), name


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_two_processes_do_what_one_does(trainings: Trainings, alone: Trained, deepspeed: str) -> None:
    found = trainings.run(deepspeed, 2, deepspeed=deepspeed)
    same(found, alone)
    # Pictures took part, on one rank only in some step: those rows had no shuffled rollouts, and nobody waited.
    kinds = [rollout["video"] for rollout in found.rollouts.values()]
    assert any(kinds)
    assert not all(kinds)


def test_the_comparison_catches_another_learning_rate(trainings: Trainings, alone: Trained) -> None:
    other = trainings.run("other", 1, learning_rate=0.06)
    with pytest.raises(AssertionError):
        same(other, alone)


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_a_rank_killed_in_the_middle_of_a_step_costs_nothing_but_time(
    trainings: Trainings, alone: Trained, deepspeed: str
) -> None:
    killed = trainings.run("killed", 2, fault=("SIGKILL", 1, 3), deepspeed=deepspeed)
    assert killed.code != 0
    same(trainings.run("killed", 2, deepspeed=deepspeed), alone, steps={"2", "3"})


@pytest.mark.parametrize("deepspeed", ["none", "zero2", "zero3"])
def test_sigterm_stores_a_checkpoint_and_fewer_processes_go_on(
    trainings: Trainings, alone: Trained, deepspeed: str
) -> None:
    stopped = trainings.run("stopped", 2, fault=("SIGTERM", 1, 0), deepspeed=deepspeed)
    assert stopped.code != 0
    assert "checkpoint 1 is stored" in stopped.output
    rest = trainings.run("stopped", 1, planned=2, deepspeed=deepspeed)
    same(rest, alone, steps={"1", "2", "3"})


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_adapters_are_trained_and_resumed_on_two_processes_as_on_one(
    trainings: Trainings, once: dict[str, Trained], deepspeed: str
) -> None:
    lora = {"lora": {"rank": 4}, "deepspeed": deepspeed}
    if "lora" not in once:
        once["lora"] = trainings.run("lora", 1, lora=lora["lora"])
    killed = trainings.run("killed", 2, fault=("SIGKILL", 1, 3), **lora)
    assert killed.code != 0
    same(trainings.run("killed", 2, **lora), once["lora"], steps={"2", "3"})


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}}], ids=["full", "lora"])
@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_the_best_checkpoint_is_loaded_without_its_optimiser(
    trainings: Trainings, once: dict[str, Trained], deepspeed: str, changes: dict[str, Any]
) -> None:
    """Nothing an untrained model says is right, so the first checkpoint remains the best."""
    name = f"best {changes}"
    if name not in once:
        once[name] = trainings.run("best", 1, best=True, **changes)
    found = trainings.run(deepspeed, 2, best=True, deepspeed=deepspeed, **changes)
    same(found, once[name])
    short = trainings.run("short", 1, max_steps=2, **changes)
    assert all(torch.equal(weight, once[name].weights[key]) for key, weight in short.weights.items())
