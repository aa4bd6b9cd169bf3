"""SFT and GRPO as their launcher sees them: what identifies a training, and when it is not repeated."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training import stage as stage_module
from vthink.components.grpo.component import grpo
from vthink.components.grpo.config import GRPOConfig
from vthink.components.sft.component import sft
from vthink.components.sft.config import SFTConfig


class RecordingBackend:
    """Writes down the jobs and leaves their manifests, without training."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.jobs = storage, list[TrainingJob]()

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        self.jobs.append(job)
        manifest = Manifest(stage=job.stage, fingerprint=job.fingerprint, uri=job.prefix)
        manifest.write(self.storage)
        return manifest


@pytest.fixture
def backend(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> RecordingBackend:
    recording = RecordingBackend(storage)
    monkeypatch.setattr(stage_module, "choose_backend", lambda launch: recording)
    return recording


def manifest(storage: Storage, stage: str, fingerprint: str) -> str:
    return Manifest(stage=stage, fingerprint=fingerprint, uri=f"{storage.config.root_uri}{stage}/{fingerprint}/").write(
        storage
    )


def trained(storage: Storage, data: str, **run: Any) -> str:
    context = RunContext(run_id="r", storage=storage.config, **run)
    return sft.python_func(context.to_json(), SFTConfig().to_json(), ModelConfig().to_json(), data)


def test_a_job_says_everything_the_training_needs(backend: RecordingBackend, storage: Storage) -> None:
    data, policy = manifest(storage, "prepare", "d1"), manifest(storage, "sft", "p1")
    run = RunContext(run_id="r", storage=storage.config, launch=LaunchConfig(processes=2))
    uri = grpo.python_func(run.to_json(), GRPOConfig().to_json(), ModelConfig().to_json(), data, policy)
    [job] = backend.jobs
    assert uri == f"{job.prefix}manifest.json"
    assert (job.stage, job.worker, job.data, job.policy) == ("grpo", "vthink.components.grpo", data, policy)
    assert (job.run, job.processes) == (run, 2)
    assert (GRPOConfig.load(job.config), ModelConfig.load(job.model)) == (GRPOConfig(), ModelConfig())
    assert importlib.util.find_spec(job.worker) is not None


def test_finished_work_is_reused(
    backend: RecordingBackend, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    data = manifest(storage, "prepare", "d1")
    first = trained(storage, data)
    assert trained(storage, data, work_dir="/elsewhere", parent_run_id="p") == first
    assert capsys.readouterr().out == f"sft: reused {backend.jobs[0].prefix}\n"
    assert len(backend.jobs) == 1


def test_what_a_result_depends_on_makes_another_one(
    backend: RecordingBackend, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = manifest(storage, "prepare", "d1")
    trained(storage, data)
    trained(storage, manifest(storage, "prepare", "d2"))
    trained(storage, data, launch=LaunchConfig(processes=2))
    trained(storage, data, redo={"sft": 1})
    context, base = RunContext(run_id="r", storage=storage.config).to_json(), ModelConfig().to_json()
    sft.python_func(context, SFTConfig(learning_rate=1e-9).to_json(), base, data)
    sft.python_func(context, SFTConfig().to_json(), ModelConfig(dtype="float32").to_json(), data)
    monkeypatch.setattr(stage_module, "__version__", "another")
    trained(storage, data)
    assert len({job.fingerprint for job in backend.jobs}) == len(backend.jobs) == 7


def test_a_mistake_in_a_section_names_the_stage(backend: RecordingBackend, storage: Storage) -> None:
    context = RunContext(run_id="r", storage=storage.config).to_json()
    with pytest.raises(ConfigError, match=r"^sft: unknown key 'learning_rat'; did you mean 'learning_rate'\?"):
        sft.python_func(context, json.dumps({"learning_rat": 1}), ModelConfig().to_json(), "s3://b/d/manifest.json")
    assert backend.jobs == []
