"""The description of a pipeline's run."""

from __future__ import annotations

from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.pipeline import experiment_url, model_version_url, run_url, start_parent
from vthink.components.common.tracking.run import Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def test_links_lead_to_the_pages_of_mlflow() -> None:
    assert experiment_url("http://h:1/", "3") == "http://h:1/#/experiments/3/runs"
    assert run_url("http://h:1", "3", "abc") == "http://h:1/#/experiments/3/runs/abc"
    assert model_version_url("http://h:1", "team/model", 7) == "http://h:1/#/models/team%2Fmodel/versions/7"


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
