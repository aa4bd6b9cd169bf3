from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from vthink.components.common.config import STAGES
from vthink.components.common.launch.workspace import WorkspaceLockedError
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError
from vthink.pipelines.config import load
from vthink.pipelines.run import state as state_module
from vthink.pipelines.run import summary
from vthink.pipelines.run.execute import _Watcher
from vthink.pipelines.run.session import RunError, find_manifest, session
from vthink.pipelines.run.state import State, plan, stage_keys


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No store and no MLflow but the workspace's own."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "VTHINK_")):
            monkeypatch.delenv(name)
    return tmp_path / ".vthink"


# --- keys, state, plan


def changed(*overrides: str) -> set[str]:
    before = stage_keys(load("laptop"), State())
    after = stage_keys(load("laptop", list(overrides)), State())
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.max_rows=3", "prepare"),
        ("video.num_frames=4", "prepare"),
        ("model.seed=3", "sft"),
        ("sft.max_steps=3", "sft"),
        ("grpo.max_steps=3", "grpo"),
        ("evaluation.max_items=3", "evaluate"),
        ("deployment.smoke_items=3", "register"),
    ],
)
def test_a_changed_setting_changes_its_stage_and_all_after_it(override, first):
    assert changed(override) == set(STAGES[STAGES.index(first) :])


def test_settings_of_the_machine_change_no_stage():
    assert changed("launch.processes=2", "tracking.experiment=other") == set()


def test_a_redo_changes_its_stage_and_all_after_it():
    before, after = (stage_keys(load("laptop"), State(redo=redo)) for redo in ({}, {"grpo": 1}))
    assert {stage for stage in STAGES if before[stage] != after[stage]} == set(STAGES[2:])


def test_the_state_survives_being_written(tmp_path):
    state = State(redo={"sft": 2}, runs={"k": "r"}, finished={"sft": {"k": "s3://b/sft/x/manifest.json"}})
    state.write(tmp_path / "state.json")
    assert State.read(tmp_path / "state.json") == state
    assert State.read(tmp_path / "none.json") == State()


def manifest(opened, stage: str, fingerprint: str = "f") -> str:
    uri = f"{opened.storage.config.root_uri}{stage}/{fingerprint}/"
    return Manifest(stage=stage, fingerprint=fingerprint, uri=uri).write(opened.storage)


def test_the_plan_reuses_what_is_there_and_runs_what_is_gone(elsewhere):
    config = load("laptop", ["grpo.enabled=false"])
    with session(config, elsewhere) as opened:
        keys = stage_keys(config, State())
        finished = {stage: {keys[stage]: manifest(opened, stage)} for stage in ("prepare", "sft")}
        State(finished=finished).write(opened.workspace.root / state_module.STATE)
        assert [entry.action for entry in plan(opened)] == ["reuse", "reuse", "skip", "run", "check", "check", "check"]
        assert [entry.action for entry in plan(opened, "prepare")][:2] == ["run", "run"]
        opened.storage.delete_prefix(finished["sft"][keys["sft"]].removesuffix("manifest.json"))
        assert [entry.action for entry in plan(opened)][:2] == ["reuse", "run"]


# --- the workspace in use


def test_a_session_brings_up_a_store_and_leaves_the_environment_as_it_was(elsewhere):
    before = dict(os.environ)
    with session(load("laptop"), elsewhere) as opened:
        opened.storage.write_bytes("s3://vthink/x", b"1")
        assert (elsewhere / "s3" / "vthink" / "x").read_bytes() == b"1"
        assert os.environ["AWS_ENDPOINT_URL_S3"] == opened.context.storage.endpoint_url
        assert opened.context.tracking.uri == f"sqlite:///{elsewhere}/mlflow.db"
    assert dict(os.environ) == before


def test_a_second_session_is_refused_but_one_that_only_reads_is_not(elsewhere):
    with session(load("laptop"), elsewhere):
        with session(load("laptop"), elsewhere, exclusive=False) as reading:
            assert not reading.storage.exists("s3://vthink/x")
        other = textwrap.dedent(f"""
            from pathlib import Path
            from vthink.pipelines.config import load
            from vthink.pipelines.run.session import session
            with session(load("laptop"), Path({str(elsewhere)!r})): pass
        """)
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert WorkspaceLockedError.__name__ in done.stderr
        assert f"in use by process {os.getpid()}" in done.stderr


def test_a_manifest_is_found_by_uri_prefix_and_folder(elsewhere):
    with session(load("laptop"), elsewhere) as opened:
        uri = manifest(opened, "sft", "0123")
        assert find_manifest(opened, uri) == uri
        assert find_manifest(opened, uri.removesuffix("manifest.json")) == uri
        assert find_manifest(opened, uri.removesuffix("/manifest.json")) == uri
        assert find_manifest(opened, str(elsewhere / "s3" / "vthink" / "sft" / "0123")) == uri
        with pytest.raises(StorageError, match="does not exist"):
            find_manifest(opened, "s3://vthink/sft/4567/")
        with pytest.raises(RunError, match="neither an s3:// URI nor a folder below"):
            find_manifest(opened, "/somewhere")


# --- watching kfp.local

DAG = """
    import sys
    from kfp import dsl, local

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def merge_data() -> str:
        print("decoding 3 of 7")
        return "s3://b/prepare/1/manifest.json"

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def sft(data: str, fails: bool) -> str:
        print("step 1 of 9")
        if fails:
            raise ValueError("sft: the loss is not a number")
        return "s3://b/sft/1/manifest.json"

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def gate(model: str) -> str:
        return "fail"

    @dsl.pipeline(name="small")
    def small(fails: bool = False):
        model = sft(data=merge_data().output, fails=fails)
        gate(model=model.output)

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
    small(fails=sys.argv[2] == "fails")
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    def watch(outcome: str) -> tuple[_Watcher, int]:
        folder = tmp_path_factory.mktemp("dag")
        (folder / "dag.py").write_text(textwrap.dedent(DAG))
        printed = folder / "pipeline.log"
        with printed.open("w") as log:
            done = subprocess.run(
                [sys.executable, "dag.py", str(folder / "kfp"), outcome],
                cwd=folder,
                stdout=log,
                stderr=log,
                check=False,
            )
        watcher = _Watcher(printed, folder / "kfp", folder, ["grpo"])
        while watcher.poll():
            pass
        return watcher, done.returncode

    return watch


def test_what_kfp_prints_becomes_progress_and_a_log_per_stage(watched):
    watcher, code = watched("works")
    assert code == 0
    stages = watcher.stages
    assert (stages["prepare"].status, stages["prepare"].line) == ("done", "decoding 3 of 7")
    assert stages["prepare"].output == "s3://b/prepare/1/manifest.json"
    assert (stages["sft"].status, stages["sft"].line) == ("done", "step 1 of 9")
    assert stages["grpo"].status == "skipped"
    assert (stages["gate"].status, stages["gate"].output) == ("refused", "fail")
    assert (stages["register"].status, stages["evaluate"].status) == ("skipped", "waiting")
    assert watcher.fail() is None


def test_a_failed_task_leaves_its_stage_its_reason_and_its_last_lines(watched):
    watcher, code = watched("fails")
    assert code != 0
    failed = watcher.fail()
    assert (failed.stage, failed.status) == ("sft", "failed")
    assert watcher.last_exception == "sft: the loss is not a number"
    assert "step 1 of 9" in watcher.last_lines
    assert "Traceback" not in "".join(watcher.last_lines)


def test_the_summary_of_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match="no run has finished in this workspace; start one with `vthink run`"):
        summary.read_summary(tmp_path)
    (tmp_path / state_module.SUMMARY).write_text(json.dumps({"run_id": "r"}))
    assert summary.read_summary(tmp_path) == {"run_id": "r"}


def test_the_table_by_kind_lists_the_most_asked_first_and_fits_a_terminal():
    from rich.console import Console
    from vthink.pipelines.cli.run import kinds_table

    def about(value: float, n: int) -> dict:
        return {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}}

    models = {
        name: {"ordered": {"by_kind": {"ocr": about(0.25, 9), "direction": about(0.5, 600)}}}
        for name in ("sft", "grpo")
    }
    table = kinds_table({"models": models, "candidate": "grpo"})
    assert table is not None
    console = Console(width=80, no_color=True)
    with console.capture() as shown:
        console.print(table)
    lines = shown.get().splitlines()
    assert lines[1].split() == ["sft", "grpo"]
    assert lines[2].split()[:3] == ["direction", "(600)", "0.50"]
    assert "…" not in shown.get()
    one = {"models": {"sft": {"ordered": {"by_kind": {"ocr": about(0.25, 9)}}}}, "candidate": "sft"}
    assert kinds_table(one) is None
