"""What a stage's run records in MLflow: a real SQLite database, artifacts on a real S3 server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import TrackingError
from vthink.components.common.tracking.run import Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def test_a_stage_is_a_child_of_its_pipeline_run_and_says_what_it_depends_on(
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTHINK_GIT_COMMIT", "abcdef")
    monkeypatch.setenv("KFP_PIPELINE_RUN_ID", "kfp-7")
    client.set_tag(child.parent_run_id, "kfp.pipeline_run_url", "https://kfp/7")
    with start(child, learning_rate=1e-5, lora={"rank": 8, "targets": ["q", "v"]}) as tracker:
        run = client.get_run(tracker.run_id)
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == child.parent_run_id
    assert tags["vthink.run_id"] == "test-run"
    assert (tags["vthink.stage"], tags["vthink.fingerprint"]) == ("sft", "0123")
    assert tags["vthink.input.data"] == "s3://b/data/manifest.json"
    assert tags["vthink.git_commit"] == "abcdef"
    assert tags["kfp.pipeline_run_id"] == "kfp-7"
    assert tags["kfp.pipeline_run_url"] == "https://kfp/7"
    assert "mlflow" in json.loads(tags["vthink.packages"])
    assert run.data.params == {"learning_rate": "1e-05", "lora.rank": "8", "lora.targets": '["q", "v"]'}
    assert run.info.experiment_id == client.get_run(child.parent_run_id).info.experiment_id


def test_a_stage_continues_its_run_and_another_fingerprint_or_stage_has_its_own(child: RunContext, client: Any) -> None:
    first = start(child, rate=1)
    first.finish()
    again = start(child, rate=1)
    assert again.run_id == first.run_id
    run = client.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["vthink.resumed"] == "1"
    others = {start(child, "4567").run_id, start(child, stage="grpo").run_id}
    assert len(others | {first.run_id}) == 3


def test_a_stage_without_a_pipeline_run_works_alone_and_is_found_again(context: RunContext, client: Any) -> None:
    first = start(context)
    assert start(context).run_id == first.run_id
    assert "mlflow.parentRunId" not in client.get_run(first.run_id).data.tags


def test_the_run_that_a_stage_finds_in_its_environment_is_adopted(
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.get_run(child.parent_run_id).info.experiment_id
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert start(child).run_id == given
    assert client.get_run(given).data.tags["vthink.stage"] == "sft"


def test_the_pipeline_run_in_the_environment_is_not_mistaken_for_the_stages(
    child: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert child.parent_run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", child.parent_run_id)
    assert start(child).run_id != child.parent_run_id


def test_only_the_first_process_of_a_training_records(
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with start(child) as tracker:
        tracker.log_metrics({"sft/loss": 1.0}, step=1)
        tracker.log_params({"a": 1})
        tracker.set_tags({"a": "b"})
        tracker.log_html("x", "x")
        tracker.log_table("t", {"a": [1]})
    assert tracker.run_id is None
    experiment = client.get_run(child.parent_run_id).info.experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [child.parent_run_id]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_run_is_closed_with_what_happened(
    child: RunContext, client: Any, error: BaseException | None, status: str
) -> None:
    tracker = start(child)

    def stage() -> None:
        with tracker:
            if error is not None:
                raise error

    if error is None:
        stage()
    else:
        with pytest.raises(type(error)):
            stage()
    assert client.get_run(tracker.run_id).info.status == status


def test_artifacts_lie_in_the_store(child: RunContext, client: Any, storage: Storage, artifact_root: str) -> None:
    with start(child) as tracker:
        tracker.log_text("notes", "text")
        tracker.log_html("rollouts/step-50", "<p>ü</p>")
    root = client.get_run(tracker.run_id).info.artifact_uri
    assert root.startswith(artifact_root)
    assert storage.read_bytes(join(root, "notes.txt")) == b"text"
    assert storage.read_bytes(join(root, "rollouts/step-50.html")) == "<p>ü</p>".encode()
    parent = client.get_run(child.parent_run_id).info.artifact_uri
    assert storage.read_bytes(join(parent, "config.yaml")) == b"a: 1\n"


def test_a_table_is_one_for_mlflow_and_is_replaced_not_grown(
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(child) as tracker:
        tracker.log_table("rollouts/step-50", {"answer": ["A", "B"], "reward": [0.5, math.nan]})
        tracker.log_table("rollouts/step-50", {"answer": ["C", "D"], "reward": [1.0, math.nan]})
    # It looks for the table in the runs of MLflow's default store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(child.tracking.uri))
    table = client.load_table(
        client.get_run(tracker.run_id).info.experiment_id, "rollouts/step-50.json", [tracker.run_id]
    )
    assert table["answer"].tolist() == ["C", "D"]
    assert table["reward"][0] == 1.0
    assert math.isnan(table["reward"][1])
    listed = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "rollouts/step-50.json", "type": "table"}]


def test_the_list_of_tables_of_a_long_training_stays_readable(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        entries = [{"path": f"rollouts/step-{step:06d}.json", "type": "table"} for step in range(0, 5000, 50)]
        tracker.set_tags({"mlflow.loggedArtifacts": json.dumps(entries)})
        for step in (4950, 5000, 5050):  # the first is repeated by a resumed training
            tracker.log_table(f"rollouts/step-{step:06d}", {"answer": ["A"]})
    listed = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed[-2:]] == ["rollouts/step-005000.json", "rollouts/step-005050.json"]
    assert len(listed) == len({entry["path"] for entry in listed}) == 100


def test_a_table_with_columns_of_different_length_is_refused(child: RunContext) -> None:
    with pytest.raises(ValueError, match="table 't' differ in length"):
        start(child).log_table("t", {"a": [1], "b": [1, 2]})


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_a_name_outside_of_the_run_is_refused(child: RunContext, name: str) -> None:
    with pytest.raises(TrackingError, match="not a name below"):
        start(child).log_text(name, "x")


def test_recording_prints_nothing(child: RunContext) -> None:
    program = """
        import sys
        from vthink.components.common.context import RunContext
        from vthink.components.common.tracking.run import Trace, Tracker
        with Tracker.start(RunContext.load(sys.argv[1]), "sft", "quiet", {}, {}) as tracker:
            tracker.log_metrics({"sft/loss": 1.0}, step=1)
            tracker.log_text("a", "b")
            tracker.log_traces([Trace(name="q", inputs={"a": 1}, outputs={"b": 2}, tags={})])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), child.to_json()], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
