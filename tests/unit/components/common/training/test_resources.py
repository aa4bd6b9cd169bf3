"""What a node that trains needs: against files that were really written, and as everybody is told it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.kubernetes.trainjob import train_job
from vthink.components.common.model.shapes import SHAPES
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training import stage as stage_module
from vthink.components.common.training.resources import GIB, checkpoint_bytes, node_resources
from vthink.components.grpo.config import GRPOConfig
from vthink.components.sft.config import SFTConfig
from vthink.pipelines.config import load
from vthink.pipelines.doctor import pod_requests
from vthink.pipelines.plan.stage import node_of

SEVEN_B = SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
EIGHT = LaunchConfig(backend="trainjob", processes=8)


def test_a_node_of_eight_processes_can_resume_and_end_a_run_of_7b() -> None:
    grpo, sft = GRPOConfig(deepspeed="zero3"), SFTConfig(deepspeed="zero2")
    node = node_resources(grpo, SEVEN_B, EIGHT, best=True)
    assert node.cpus >= 8 * 8
    # Eight processes, and the optimiser's 99.5 GB that they load together when they resume.
    assert node.memory_gib * GIB > 8 * 6 * GIB + 99.5e9
    assert node.memory_gib >= 8 * 20 * 0.9
    # ZeRO-2: each of them reads all 16-bit weights too.
    assert node_resources(sft, SEVEN_B, EIGHT, best=False).memory_gib * GIB > 8 * (6 * GIB + 16.5e9) + 99.5e9


def test_processes_nodes_and_data_change_what_a_node_needs() -> None:
    def of(data_bytes: int = 0, **launch: Any) -> tuple[int, int, int]:
        node = node_resources(GRPOConfig(deepspeed="zero3"), SEVEN_B, LaunchConfig(**launch), True, data_bytes)
        return node.cpus, node.memory_gib, node.scratch_gib

    eight, four, twice = of(processes=8), of(processes=4), of(processes=8, nodes=2)
    assert four[0] == eight[0] // 2
    assert four[1] < eight[1]
    assert twice[1] < eight[1]  # each node reads half of the optimiser
    assert of(100 * GIB, processes=8)[2] == pytest.approx(eight[2] + 105, abs=1)


@pytest.mark.parametrize(("zero", "expected"), [("none", 12), ("zero2", 16), ("zero3", 14)])
def test_a_checkpoint_is_what_deepspeed_was_measured_to_write(zero: Any, expected: int) -> None:
    assert checkpoint_bytes(GRPOConfig(deepspeed=zero), SEVEN_B) == expected * SEVEN_B.parameters


def test_the_trainjob_plan_and_doctor_say_the_same(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[TrainingJob] = []

    class Recording:
        def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
            jobs.append(job)
            return Manifest(stage=job.stage, fingerprint=job.fingerprint, uri=job.prefix)

    monkeypatch.setattr(stage_module, "choose_backend", lambda launch: Recording())
    config = load("video_r1_7b", ["launch.backend=trainjob"])
    details = {"video": config.video.model_dump(), "index": "i", "files": {"a": (7 * GIB, "x")}}
    data = Manifest(stage="prepare", fingerprint="d", uri=f"{storage.config.root_uri}d/", details=details).write(
        storage
    )
    context = RunContext(run_id="r", storage=storage.config, launch=config.launch)
    sections = context.to_json(), config.sft.to_json(), config.model.to_json()
    stage_module.train_stage("sft", SFTConfig, "vthink.components.sft", *sections, data)
    [job] = jobs
    assert job.resources == node_of(config, "sft", SEVEN_B, 7 * GIB)
    asked = train_job(job, 1)["spec"]["trainer"]["resourcesPerNode"]
    without_data = pod_requests(config, "sft")
    assert {name: asked["requests"][name] for name in ("cpu", "memory", "nvidia.com/gpu")} == {
        name: without_data[name] for name in ("cpu", "memory", "nvidia.com/gpu")
    }
    assert asked["limits"].keys() == asked["requests"].keys() - {"ephemeral-storage"}


def test_what_the_configuration_says_goes_before_and_an_unknown_model_gets_a_share_per_process() -> None:
    named = load("video_r1_7b", ["launch.cluster.memory=900Gi", "launch.cluster.cpu=96"])
    assert {"cpu": "96", "memory": "900Gi"}.items() <= pod_requests(named, "grpo").items()
    unknown = load("video_r1_7b", ["model.name=somebody/some-model"])
    assert pod_requests(unknown, "grpo") == {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "8"}


def test_a_tiny_model_asks_for_little_more_than_its_processes() -> None:
    assert pod_requests(load("laptop", ["launch.processes=2"]), "sft")["memory"] == "14Gi"
