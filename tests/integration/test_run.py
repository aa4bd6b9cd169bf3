"""``vthink run`` from its first stage to a model in service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from vthink.components.common.launch.process import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MICRO = Path(__file__).with_name("micro.yaml")
STAGES = ("prepare", "sft", "grpo", "evaluate", "gate", "register", "deploy")


def test_a_run_goes_from_rows_to_a_model_in_service_and_says_what_came_out(finished, statuses):
    summary = finished.summary
    assert statuses(finished) == dict.fromkeys(STAGES, "done")
    assert set(summary["models"]) == {"base", "sft", "grpo"}
    for about in summary["models"].values():
        for frames in ("ordered", "shuffled"):
            accuracy = about[frames]["accuracy"]
            assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
            assert accuracy["n"] == 12
            assert "multiple_choice" in about[frames]["by_type"]
    assert summary["gate"]["verdict"] == "pass"
    assert (summary["model"]["version"], summary["model"]["alias"]) == (1, "champion")
    assert summary["question"]["question"]
    assert summary["question"]["text"]
    assert set(summary["prefixes"]) == set(STAGES)
    assert all(about["work_seconds"] > 0 for about in summary["stages"].values())


def test_a_run_leaves_a_log_per_stage(finished):  # and no process: the fixture looks, before others start some there
    for stage in STAGES:
        assert f"Executing task '{'plan-data' if stage == 'prepare' else stage}'" in finished.log(stage)
    assert "Executing task 'sft'" not in finished.log("grpo")


def test_mlflow_holds_one_parent_with_a_run_per_stage(finished):
    from vthink.components.common.tracking.client import registry_client
    from vthink.components.common.tracking.config import TrackingConfig

    recorded = finished.summary["mlflow"]
    client = registry_client(TrackingConfig(uri=recorded["uri"]))
    experiment = client.get_experiment_by_name(recorded["experiment"]).experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    parent = runs.pop(recorded["parent_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["vthink.run_id"] == finished.summary["run_id"]
    assert set(runs) == set(recorded["run_ids"].values())
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == recorded["parent_run_id"]
        assert run.info.status == "FINISHED"


def test_a_second_run_reuses_everything_in_seconds(copied, finished, statuses, check):
    start = time.monotonic()
    check(copied.run())
    assert time.monotonic() - start < 90
    # The gate judges anew, because there is a champion now; it compares, and trains nothing.
    assert {stage: status for stage, status in statuses(copied).items() if stage != "gate"} == {
        stage: "reused" for stage in STAGES if stage != "gate"
    }
    assert copied.results() == finished.results()
    assert copied.summary["run_id"] == finished.summary["run_id"]
    assert copied.summary["mlflow"]["parent_run_id"] == finished.summary["mlflow"]["parent_run_id"]
    assert copied.summary["model"]["version"] == 1


def test_a_dry_run_says_what_is_reused_and_changes_nothing(copied, check):
    def planned(*arguments: str) -> list[str]:
        table = [line.split()[:2] for line in check(copied.run("--dry-run", *arguments)).splitlines()]
        plan = {row[0]: row[1] for row in table if row[:1] and row[0] in STAGES}
        assert tuple(plan) == STAGES
        return list(plan.values())

    before = copied.manifests()
    assert planned() == ["reuse", "reuse", "reuse", "reuse", "check", "check", "check"]
    assert planned("--set", "grpo.learning_rate=5e-6") == ["reuse", "reuse", "run", "run", "check", "check", "check"]
    assert planned("--from", "sft") == ["reuse", "run", "run", "run", "check", "check", "check"]
    assert copied.manifests() == before
    assert copied.read("state.json")["redo"] == {}


def test_from_a_stage_redoes_it_and_all_after_it_with_the_same_result(copied, finished, statuses, check):
    check(copied.run("--from", "grpo"))
    found = statuses(copied)
    assert (found["prepare"], found["sft"]) == ("reused", "reused")
    assert {found[stage] for stage in STAGES[2:]} == {"done"}
    assert copied.read("state.json")["redo"] == {"grpo": 1}
    again, first = (demo.summary["models"]["grpo"]["ordered"] for demo in (copied, finished))
    assert again == first
    # Without --from the redone stage is now the one that is reused.
    check(copied.run())
    assert statuses(copied)["grpo"] == "reused"


def test_without_sft_the_policy_starts_from_the_base_model(copied, statuses, check):
    check(copied.run("--set", "sft.enabled=false"))
    assert (statuses(copied)["prepare"], statuses(copied)["sft"]) == ("reused", "skipped")
    assert set(copied.summary["models"]) == {"base", "grpo"}
    assert copied.summary["candidate"] == "grpo"


def test_without_grpo_the_model_of_sft_is_the_candidate(copied, statuses, check):
    check(copied.run("--set", "grpo.enabled=false"))
    assert (statuses(copied)["sft"], statuses(copied)["grpo"]) == ("reused", "skipped")
    assert set(copied.summary["models"]) == {"base", "sft"}
    assert copied.summary["candidate"] == "sft"
    assert "/sft/" in copied.summary["model"]["source"]


def test_a_model_that_fails_its_gate_is_not_deployed_and_the_one_in_service_stays(copied, statuses):
    done = copied.run("--set", "evaluation.gate=[{metric: accuracy, at_least: 1}]")
    assert done.returncode == 3
    assert "refused" in done.stdout
    assert "FAIL  accuracy at least 1: " in done.stdout
    found = statuses(copied)
    assert (found["gate"], found["register"], found["deploy"]) == ("refused", "skipped", "skipped")
    assert copied.summary["gate"]["verdict"] == "fail"
    assert copied.summary["model"] is None
    # The reason is also the output of a task, where KFP shows it.
    said = next((copied.workspace / "kfp").glob("*/refuse/executor_output.json"))
    assert "gate failed" in json.loads(said.read_text())["parameterValues"]["Output"]


def test_a_stage_that_fails_says_why_in_one_line_with_its_log(demo, check):
    check(demo.vthink("data", "synthesize", "world", "--config", str(MICRO)))
    for video in (demo.folder / "world").rglob("*.mp4"):
        video.write_bytes(bytes(300))  # what nobody knows before it is decoded
    done = demo.run("--set", "data.source=world/rows.jsonl")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vthink: stage prepare: world/rows.jsonl: 68 of 68 rows cannot be used")
    assert "not a readable video" in last
    assert last.endswith("(log: .vthink/logs/prepare.log)")
    assert demo.orphans() == {}


def test_a_second_run_at_once_is_refused(demo):
    first = demo.start_run()
    assert demo.wait_until(first, lambda: "Executing task" in demo.log())
    second = demo.run()
    assert second.returncode == 1
    assert f"is in use by process {first.pid}" in second.stderr
    demo.kill(first)
    assert demo.orphans() == {}


def test_stages_run_by_themselves_on_local_rows(demo, check):
    small = ["--config", str(MICRO)]
    check(demo.vthink("data", "synthesize", "world", *small))
    prepared = check(demo.vthink("data", "prepare", "world/rows.jsonl", *small)).splitlines()[-1]
    trained = check(demo.vthink("train", "sft", "--data", prepared, *small)).splitlines()[-1]
    folder = ".vthink/s3/" + trained.removeprefix("s3://").removesuffix("manifest.json")
    evaluated = check(demo.vthink("evaluate", "--data", "world/rows.jsonl", "--sft", folder, *small))
    table = evaluated.partition("12 held-out questions")[2]
    assert [line.split()[0] for line in table.splitlines() if "[" in line] == ["base", "sft"]
    wrong = demo.vthink("evaluate", "--data", "world", *small)
    assert wrong.returncode == 1
    assert "neither an s3:// URI nor a folder below .vthink/s3" in wrong.stderr


def test_the_commands_that_a_run_ends_with_work(copied, check):
    shown = check(copied.vthink("report", "--output", "report.html")).splitlines()[-1]
    assert shown == "report.html"
    assert "<html" in (copied.folder / "report.html").read_text("utf-8")

    for command, path in (("serve", "/v2/health/ready"), ("ui", "/health")):
        url = f"http://127.0.0.1:{(port := free_port())}{path}"
        process = copied.start(command, "--port", str(port))
        try:
            assert copied.wait_until(process, lambda url=url: answers(url))
        finally:
            process.terminate()
            process.communicate(timeout=60)


def test_questions_are_rated_by_a_policy_and_prepared_by_how_hard_they_are(copied, check):
    settings = ("--config", str(MICRO))
    policy = copied.summary["prefixes"]["sft"]
    told = check(copied.vthink("data", "difficulty", "rated.jsonl", "--policy", policy, "--rollouts", "2", *settings))
    rows = [json.loads(line) for line in (copied.folder / "rated.jsonl").read_text("utf-8").splitlines()]
    rated = [row for row in rows if row["split"] == "train"]
    assert {row["metadata"]["pass_rate_rollouts"] for row in rated} == {2}
    assert not any("pass_rate" in row["metadata"] for row in rows if row["split"] != "train")
    hard = [row for row in rated if row["metadata"]["pass_rate"] == 0]
    assert f"never right: {len(hard)}" in told
    assert hard  # three steps taught nothing
    told = check(
        copied.vthink("data", "prepare", "rated.jsonl", *settings, "--set", "data.max_pass_rate=0.1",
                      "--set", "data.order=hard_first")
    )  # fmt: skip
    left_out = len(rated) - len(hard)
    assert f"rows_out: {len(rows) - left_out}" in told


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def test_two_processes_train_together(copied, statuses, check):
    check(copied.run("--from", "sft", "--set", "launch.processes=2"))
    assert (statuses(copied)["sft"], statuses(copied)["grpo"]) == ("done", "done")
    assert "[rank 1]" in copied.log("sft")


CLUSTER_DAG = """
import sys
from pathlib import Path
from kfp import local
from vthink.components.common.launch.config import LaunchConfig
from vthink.pipelines.config import load
from vthink.pipelines.pipeline import arguments, build
from vthink.pipelines.run.state import State
from vthink.pipelines.run.session import session

config = load(sys.argv[1])
with session(config, Path(".vthink")) as opened:
    redo = State.read(opened.workspace.root).redo
    context = opened.context.model_copy(update={"run_id": "as-on-a-cluster", "redo": dict(redo)})
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root="kfp", raise_on_error=True)
    build(LaunchConfig(), evaluation_gpus=0)(**arguments(config, context))
"""


def test_the_dag_of_a_cluster_records_its_run_and_reuses_what_the_laptop_made(copied):
    from mlflow import MlflowClient

    foreign = ("AWS_", "MLFLOW_", "VTHINK_S3_ENDPOINT")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [sys.executable, "-c", CLUSTER_DAG, str(Path(__file__).with_name("micro.yaml"))]
    done = subprocess.run(command, cwd=copied.folder, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("sft", "grpo", "evaluate"):
        assert f"{stage}: reused" in done.stdout
    client = MlflowClient(f"sqlite:///{copied.workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vthink").experiment_id
    (parent,) = client.search_runs(
        [experiment], "tags.`vthink.run_id` = 'as-on-a-cluster' and tags.`vthink.stage` = 'pipeline'"
    )
    assert parent.info.status == "FINISHED"
