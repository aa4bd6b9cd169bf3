"""The MLflow run of a whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.tracking.pipeline import begin_pipeline, finish_parent, finish_pipeline, start_parent
from vthink.components.common.tracking.run import Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def test_a_pipeline_run_is_found_again(context: RunContext, client: Any, artifact_root: str) -> None:
    def parent(run_id: str) -> str:
        return start_parent(context.tracking, run_id, "a: 1\n", "laptop", artifact_root, context.storage)

    first = parent("one")
    finish_parent(context.tracking, first)
    assert client.get_run(first).info.status == "FINISHED"
    assert parent("one") == first
    assert parent("two") != first
    run = client.get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["vthink.run_id"] == "one"
    assert run.info.artifact_uri.startswith(artifact_root)


def test_the_pipeline_run_named_in_the_environment_is_used(
    context: RunContext, client: Any, artifact_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = client.create_run(client.create_experiment("theirs", artifact_root)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert start_parent(context.tracking, "x", "a: 1\n", "n", artifact_root, context.storage) == given
    assert client.get_run(given).data.tags["vthink.run_id"] == "x"


def test_a_deleted_experiment_is_restored(context: RunContext, client: Any, artifact_root: str) -> None:
    client.delete_experiment(client.create_experiment(context.tracking.experiment, artifact_root))
    start_parent(context.tracking, "x", "a: 1\n", "n", artifact_root, context.storage)
    assert client.get_experiment_by_name(context.tracking.experiment).lifecycle_stage == "active"


def test_a_pipeline_run_on_a_cluster_is_begun_once_per_run_of_kfp_and_closed(
    context: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(kfp_id: str) -> RunContext:
        monkeypatch.setenv("KFP_PIPELINE_RUN_ID", kfp_id)
        return RunContext.load(begin_pipeline(context.to_json(), '{"name": "laptop"}'))

    first, retried, second = begin("11111111-aa"), begin("11111111-aa"), begin("22222222-bb")
    assert first == retried
    assert (first.run_id, second.run_id) == ("test-run-11111111", "test-run-22222222")
    assert first.parent_run_id not in (None, second.parent_run_id)
    with start(first) as tracker:
        pass
    assert client.get_run(tracker.run_id).data.tags["mlflow.parentRunId"] == first.parent_run_id
    assert client.get_run(first.parent_run_id).data.tags["kfp.pipeline_run_id"] == "11111111-aa"
    assert "name: laptop" in Path(client.download_artifacts(first.parent_run_id, "config.yaml")).read_text()
    for kfp_id, state in (("11111111-aa", "SUCCEEDED"), ("22222222-bb", "CANCELLED"), ("33333333-cc", "FAILED")):
        monkeypatch.setenv("KFP_PIPELINE_RUN_ID", kfp_id)
        finish_pipeline(context.to_json(), state)
    ended = [client.get_run(run.parent_run_id).info.status for run in (first, second)]
    assert ended == ["FINISHED", "KILLED"]


def test_the_parent_of_the_run_that_kfp_gave_a_task_is_the_pipeline_s(
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(child) as task:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", str(task.run_id))
    begun = RunContext.load(begin_pipeline(child.model_copy(update={"parent_run_id": None}).to_json(), ""))
    assert begun.parent_run_id == child.parent_run_id


def test_a_pipeline_s_own_run_has_what_pipelines_are_compared_by(
    context: RunContext, client: Any, artifact_root: str
) -> None:
    config = "name: laptop\ngrpo: {learning_rate: 0.0001, rewards: {temporal: null}}\n"
    parent = start_parent(context.tracking, "ranked", config, "laptop", artifact_root, context.storage)
    child = context.model_copy(update={"parent_run_id": parent})
    with start(child, stage="evaluate") as tracker:
        tracker.log_metrics({"evaluation/grpo/ordered/accuracy": 0.7, "evaluation/grpo/shuffled/accuracy": 0.3})
    with start(child, stage="sft") as tracker:
        tracker.log_metrics({"validation/accuracy": 0.5, "sft/loss": 1.0, "time/total_s": 9.0}, step=3)
    finish_parent(context.tracking, parent)
    start_parent(context.tracking, "ranked", config, "laptop", artifact_root, context.storage)  # goes on
    data = client.get_run(parent).data
    assert data.params == {"name": "laptop", "grpo.learning_rate": "0.0001"}
    assert data.metrics == {"grpo/accuracy": 0.7, "sft/validation/accuracy": 0.5, "sft/total_s": 9.0}
