"""What a run records in MLflow: a real SQLite database, artifacts on a real S3 server."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.process import LaunchError, free_port
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import TrackingError, mlflow_environment, registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.tracking.links import experiment_url, model_version_url, run_url
from vthink.components.common.tracking.pipeline import begin_pipeline, finish_parent, finish_pipeline, start_parent
from vthink.components.common.tracking.run import Trace, Tracker
from vthink.components.common.tracking.server import start_ui


@pytest.fixture
def client(context: RunContext) -> Any:
    return registry_client(context.tracking, context.storage)


@pytest.fixture
def artifact_root(context: RunContext) -> str:
    return join(context.storage.root_uri, "mlflow")


@pytest.fixture
def child(context: RunContext, artifact_root: str) -> RunContext:
    """A context whose pipeline run has begun."""
    parent = start_parent(context.tracking, "test-run", "a: 1\n", "laptop", artifact_root, context.storage)
    return context.model_copy(update={"parent_run_id": parent})


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def steps(client: Any, tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(tracker.run_id, name))


# --- which run ---


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
    child: RunContext, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    with start(child) as tracker:
        tracker.log_metrics({"sft/loss": 1.0}, step=1)
        tracker.log_params({"a": 1})
        tracker.set_tags({"a": "b"})
        tracker.log_html("x", "x")
        tracker.log_table("t", {"a": [1]})
        tracker.log_image("i", np.zeros((2, 2, 3), np.uint8))
        tracker.log_artifact(tmp_path)
    assert tracker.run_id is None
    experiment = client.get_run(child.parent_run_id).info.experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [child.parent_run_id]


# --- how it ends ---


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


# --- numbers ---


def test_values_keep_their_steps(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        for step in range(1, 4):
            tracker.log_metrics({"sft/loss": 1 / step, "sft/grad_norm": step}, step=step)
        tracker.log_metrics({"validation/accuracy": 0.5})
    assert steps(client, tracker, "sft/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert steps(client, tracker, "validation/accuracy") == [(0, 0.5)]


def test_a_value_that_is_not_a_number_is_recorded_as_such(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        tracker.log_metrics({"sft/loss": math.nan}, step=1)
    assert math.isnan(client.get_metric_history(tracker.run_id, "sft/loss")[0].value)


def test_a_final_value_can_be_replaced(child: RunContext, client: Any) -> None:
    for value in (0.5, 0.75):
        with start(child, rate=1) as tracker:
            tracker.log_metrics({"validation/accuracy": value})
    assert client.get_run(tracker.run_id).data.metrics == {"validation/accuracy": 0.75}


KILLED_STAGE = """
    import os, signal, sys
    from vthink.components.common.context import RunContext
    from vthink.components.common.tracking.run import Tracker
    tracker = Tracker.start(RunContext.load(sys.argv[1]), "sft", "0123", {"rate": 1}, {})
    for step in range(1, 58):
        tracker.log_metrics({"sft/loss": 100.0 - step}, step=step)
        if step % 10 == 0:
            tracker.log_metrics({"validation/accuracy": step / 100}, step=step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_steps_repeated_after_a_kill_appear_once(child: RunContext, client: Any) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED_STAGE), child.to_json()], check=False)
    assert done.returncode == -9
    # The checkpoint is of step 50; 51 to 57 are trained again.
    with start(child, rate=1) as tracker:
        for step in range(51, 71):
            tracker.log_metrics({"sft/loss": 100.0 - step}, step=step)
            if step % 10 == 0:
                tracker.log_metrics({"validation/accuracy": step / 100}, step=step)
    assert steps(client, tracker, "sft/loss") == [(step, 100.0 - step) for step in range(1, 71)]
    assert [step for step, _ in steps(client, tracker, "validation/accuracy")] == [10, 20, 30, 40, 50, 60, 70]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_database_that_is_busy_for_a_while_loses_no_value(
    child: RunContext, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = child.tracking.model_copy(update={"outage_s": 0.0})
    tracker = start(child.model_copy(update={"tracking": impatient}))
    tracker.log_metrics({"sft/loss": 1.0}, step=1)
    database = sqlite3.connect(str(child.tracking.uri).removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    tracker.log_metrics({"sft/loss": 2.0}, step=2)
    assert "did not take 1 values" in caplog.text
    with pytest.raises(TrackingError, match="cannot close"):
        tracker.finish()
    database.execute("ROLLBACK")
    database.close()
    tracker.log_metrics({"sft/loss": 3.0}, step=3)
    tracker.finish()
    assert steps(client, tracker, "sft/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


# --- artifacts ---


def test_artifacts_lie_in_the_store(
    child: RunContext, client: Any, storage: Storage, artifact_root: str, tmp_path: Path
) -> None:
    (tmp_path / "file.bin").write_bytes(b"bytes")
    with start(child) as tracker:
        tracker.log_text("notes", "text")
        tracker.log_html("rollouts/step-50", "<p>ü</p>")
        tracker.log_image("frames", np.full((4, 4, 3), 200, np.uint8), step=50)
        tracker.log_artifact(tmp_path / "file.bin", "files")
    root = client.get_run(tracker.run_id).info.artifact_uri
    assert root.startswith(artifact_root)
    assert storage.read_bytes(join(root, "notes.txt")) == b"text"
    assert storage.read_bytes(join(root, "rollouts/step-50.html")) == "<p>ü</p>".encode()
    assert storage.read_bytes(join(root, "frames/step-000050.png")).startswith(b"\x89PNG")
    assert storage.read_bytes(join(root, "files/file.bin")) == b"bytes"
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


TRACES = [
    Trace(name=f"q{n}", inputs={"question": "Which?"}, outputs={"answer": "A", "score": math.nan}, tags={"k": "v"})
    for n in range(3)
]


def test_traces_belong_to_their_run_and_are_recorded_once(child: RunContext, client: Any) -> None:
    tracker, other = start(child), start(child, "4567")
    tracker.log_traces(TRACES)
    tracker.log_traces(TRACES)  # of an attempt after a kill
    experiment = client.get_run(tracker.run_id).info.experiment_id

    def found(run: Tracker) -> list[str]:
        traces = client.search_traces(locations=[experiment], run_id=run.run_id)
        return sorted(trace.data.spans[0].name for trace in traces)

    assert found(tracker) == ["q0", "q1", "q2"]
    assert found(other) == []


def test_traces_that_mlflow_does_not_take_do_not_fail_the_stage(
    child: RunContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(child)
    monkeypatch.setattr(tracker, "run_id", "f" * 32)
    tracker.log_traces(TRACES)
    assert "MLflow did not take the traces" in caplog.text


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_a_name_outside_of_the_run_is_refused(child: RunContext, name: str) -> None:
    with pytest.raises(TrackingError, match="not a name below"):
        start(child).log_text(name, "x")


# --- the registry ---


def test_a_version_registered_by_its_prefix_keeps_it_and_takes_an_alias(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        name = child.tracking.registered_model
        client.create_registered_model(name)
        version = client.create_model_version(name, source="s3://b/models/7/", run_id=tracker.run_id)
        client.set_registered_model_alias(name, "candidate", version.version)
    found = client.get_model_version_by_alias(name, "candidate")
    assert (found.source, found.run_id) == ("s3://b/models/7/", tracker.run_id)


# --- mistakes ---


def test_a_missing_tracking_uri_is_named(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"set tracking\.uri or MLFLOW_TRACKING_URI"):
        start(context.model_copy(update={"tracking": TrackingConfig()}))


@pytest.mark.parametrize("uri", ["nonsense://user:secret@host/x", "sqlite:////proc/no/such/folder/x.db"])
def test_an_unusable_tracking_uri_gives_one_line_without_its_password(context: RunContext, uri: str) -> None:
    broken = context.model_copy(update={"tracking": TrackingConfig(uri=uri)})
    with pytest.raises(TrackingError) as error:
        start(broken)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_an_unreachable_tracking_server_gives_one_line(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    away = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError, match="MLflow") as error:
        start(context.model_copy(update={"tracking": away}))
    assert "\n" not in str(error.value)


# --- MLflow itself ---


def test_importing_what_stages_share_loads_neither_torch_nor_mlflow() -> None:
    program = """
        import sys
        from vthink.components.common import config, launch, storage, tracking
        heavy = {"torch", "transformers", "mlflow", "boto3", "numpy", "pandas"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_mlflow_writes_to_our_store_and_tells_nobody(context: RunContext) -> None:
    env = mlflow_environment(StorageConfig(endpoint_url="http://x:1", ca_bundle="/ca.pem", region="eu"))
    assert env["MLFLOW_DISABLE_TELEMETRY"] == env["DO_NOT_TRACK"] == "true"
    assert env["MLFLOW_S3_ENDPOINT_URL"] == "http://x:1"
    assert env["AWS_CA_BUNDLE"] == "/ca.pem"
    assert "MLFLOW_S3_ENDPOINT_URL" not in mlflow_environment(StorageConfig())


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


def test_links_lead_to_the_pages_of_mlflow() -> None:
    assert experiment_url("http://h:1/", "3") == "http://h:1/#/experiments/3/runs"
    assert run_url("http://h:1", "3", "abc") == "http://h:1/#/experiments/3/runs/abc"
    assert model_version_url("http://h:1", "team/model", 7) == "http://h:1/#/models/team%2Fmodel/versions/7"


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as response:
        return bytes(response.read())


@pytest.mark.slow
def test_the_user_interface_shows_runs_and_artifacts_and_ends_with_us(
    child: RunContext, artifact_root: str, tmp_path: Path
) -> None:
    with start(child) as tracker:
        tracker.log_text("notes", "seen")
    with start_ui(child.tracking, child.storage, artifact_root, tmp_path / "ui.log") as ui:
        assert ui.url.startswith("http://127.0.0.1:")
        assert b"<html" in fetch(ui.url)
        run = json.loads(fetch(f"{ui.url}/api/2.0/mlflow/runs/get?run_id={tracker.run_id}"))
        assert run["run"]["info"]["status"] == "FINISHED"
        assert fetch(f"{ui.url}/get-artifact?path=notes.txt&run_uuid={tracker.run_id}") == b"seen"
    assert ui.process.poll() is not None
    with pytest.raises(OSError):
        fetch(ui.url)


def test_the_user_interface_of_a_tracking_server_is_its_own(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="already runs at http://team:5000: open it"):
        start_ui(TrackingConfig(uri="http://u:p@team:5000"), context.storage, "s3://b/", tmp_path / "log")


def test_a_user_interface_that_cannot_start_says_why(context: RunContext, artifact_root: str, tmp_path: Path) -> None:
    broken = TrackingConfig(uri="nonsense://x")
    with pytest.raises(LaunchError, match=r"MLflow ended with exit code \d+: .*ui\.log") as error:
        start_ui(broken, context.storage, artifact_root, tmp_path / "ui.log")
    assert "\n" not in str(error.value)
    assert os.path.exists(tmp_path / "ui.log")


# --- the pipeline's description ---


def note(client: Any, context: RunContext) -> str:
    return str(client.get_run(context.parent_run_id).data.tags.get("mlflow.note.content", ""))


def test_the_pipeline_s_description_links_what_its_stages_made(child: RunContext, client: Any) -> None:
    with start(child) as sft:
        assert f"/runs/{sft.run_id}) running" in note(client, child)
    with start(child, stage="grpo") as grpo:
        for step in (0, 50):
            grpo.log_html(f"rollouts/step-{step:06d}", "<p>rollouts</p>")
        grpo.log_table("rollouts/step-000050", {"answer": ["A"]})
    with start(child, stage="evaluate") as evaluate:
        evaluate.log_html("evaluation_report", "<p>report</p>")
    with start(child, stage="gate") as gate:
        gate.set_tags({"vthink.gate": "pass"})
    with start(child, stage="register") as register:
        register.set_tags({"vthink.model_version": "7"})
    experiment = client.get_run(sft.run_id).info.experiment_id
    model, pages, curves, stages = note(client, child).splitlines()[1:]
    assert model == "- model: [vthink version 7](./#/models/vthink/versions/7)"
    rollouts, report = (run_url(".", experiment, run.run_id) + "/artifacts" for run in (grpo, evaluate))
    assert pages == (
        f"- pages: [rollouts/step-000050]({rollouts}/rollouts/step-000050.html), "
        f"[evaluation report]({report}/evaluation_report.html)"
    )
    assert curves.startswith("- curves: [validation accuracy of sft and grpo](./#/metric?runs=")
    assert str(sft.run_id) in curves
    assert str(grpo.run_id) in curves
    assert stages == "- stages: " + ", ".join(
        f"[{name}]({run_url('.', experiment, tracker.run_id)}) {said}"
        for name, tracker, said in (
            ("sft", sft, "finished"), ("grpo", grpo, "finished"), ("evaluate", evaluate, "finished"),
            ("gate", gate, "pass"), ("register", register, "finished"),
        )
    )  # fmt: skip


def test_a_stage_that_failed_is_described_as_such(child: RunContext, client: Any) -> None:
    with pytest.raises(ZeroDivisionError), start(child):
        raise ZeroDivisionError
    assert note(client, child).endswith(") failed")


def test_a_reused_stage_of_an_earlier_pipeline_run_is_found_through_the_manifests(
    child: RunContext, client: Any, storage: Storage, artifact_root: str
) -> None:
    with start(child) as sft:
        pass
    made = {}
    for stage, run_id in (("sft", sft.run_id), ("evaluate", None)):
        uri = join(storage.config.root_uri, stage, "0123/")
        made[stage] = Manifest(stage=stage, fingerprint="0123", uri=uri, inputs=dict(made), mlflow_run_id=run_id)
        made[stage] = made[stage].write(storage)
    parent = start_parent(child.tracking, "later-run", "a: 2\n", "laptop", artifact_root, child.storage)
    later = child.model_copy(update={"run_id": "later-run", "parent_run_id": parent})
    with Tracker.start(later, "gate", "4567", {}, {"evaluation": made["evaluate"]}):
        pass
    assert f"/runs/{sft.run_id}) finished" in note(client, later)
    # Not so the champion, with which the gate only compares.
    parent = start_parent(child.tracking, "third-run", "a: 3\n", "laptop", artifact_root, child.storage)
    third = child.model_copy(update={"run_id": "third-run", "parent_run_id": parent})
    with Tracker.start(third, "gate", "89ab", {}, {"champion": made["evaluate"]}):
        pass
    assert "[sft]" not in note(client, third)


def test_what_a_person_wrote_into_the_description_stays(child: RunContext, client: Any) -> None:
    client.set_tag(child.parent_run_id, "mlflow.note.content", "Second try, with more frames.\n\n")
    for stage in ("sft", "grpo"):
        with start(child, stage=stage):
            pass
    written = note(client, child)
    assert written.startswith("Second try, with more frames.\n\n### What this run made\n- curves")
    assert written.count("### What this run made") == 1


def test_a_description_that_cannot_be_written_does_not_fail_the_stage(
    child: RunContext, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with start(child) as tracker:
        client.delete_run(child.parent_run_id)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "cannot describe the MLflow run" in caplog.text


# --- a pipeline run on a cluster ---


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
