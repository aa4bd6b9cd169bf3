"""A training process is told what its job file says, and what its node alone knows is named."""

from __future__ import annotations

import json

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.job import NodeSettings, TrainingJob
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage


def test_what_is_read_is_what_was_written_whatever_the_environment_says(
    job: TrainingJob, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write(storage)
    for name, value in job.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VTHINK_WORK_DIR", "/scratch")
    monkeypatch.setenv("VTHINK_ROLLOUT_URL", "http://job-vllm-0-0.job:8000")
    assert job.uri == f"{storage.config.root_uri}sft/0123/job.json"
    assert TrainingJob.read(job.uri) == job


def test_what_only_the_node_knows_is_a_field_of_its_own_and_printed(
    job: TrainingJob, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.on_this_node({}) == job
    assert capsys.readouterr().out == ""
    environ = {"VTHINK_WORK_DIR": "/scratch", "VTHINK_ROLLOUT_URL": "http://job-vllm-0-0.job:8000"}
    here = job.on_this_node(environ)
    assert here.node == NodeSettings(work_dir="/scratch", rollout_url="http://job-vllm-0-0.job:8000")
    assert here.model_copy(update={"node": NodeSettings()}) == job
    assert capsys.readouterr().out.splitlines() == [
        "sft: work_dir of this node: /scratch",
        "sft: rollout_url of this node: http://job-vllm-0-0.job:8000",
    ]
    assert job.on_this_node({**environ, "RANK": "1"}) == here  # said once, by rank 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprints": "x"}, "unknown key 'fingerprints'; did you mean 'fingerprint'?"),
        ({"processes": 0}, "'processes': Input should be greater than or equal to 1"),
        ({"run": {"run_id": "r", "work": "x"}}, "unknown key 'run.work'"),
        ({"stage": "sleep"}, "'stage': Input should be"),
    ],
)
def test_a_job_file_that_is_not_one_is_refused_in_one_line(
    job: TrainingJob, storage: Storage, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        TrainingJob.load(json.loads(job.to_json()) | change, source="s3://b/job.json")
    assert str(error.value).startswith("s3://b/job.json: ")
    assert message in str(error.value)


def test_another_ones_manifest_is_not_the_result(job: TrainingJob, storage: Storage) -> None:
    assert job.result(storage) is None
    Manifest(stage="sft", fingerprint="4567", uri=job.prefix).write(storage)
    assert job.result(storage) is None
    made = Manifest(stage="sft", fingerprint="0123", uri=job.prefix)
    made.write(storage)
    assert job.result(storage) == made


def test_threads_are_left_to_the_library_when_zero(job: TrainingJob) -> None:
    assert job.environment()["OMP_NUM_THREADS"] == "1"
    free = job.run.model_copy(update={"launch": LaunchConfig(threads=0)})
    assert "OMP_NUM_THREADS" not in job.model_copy(update={"run": free}).environment()
