"""Runs of this machine are looked at in no time, from files alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from vthink.components.common.config import STAGES
from vthink.components.common.errors import UserError
from vthink.components.common.launch.workspace import Workspace
from vthink.pipelines.cli.main import app
from vthink.pipelines.run.progress import StageProgress
from vthink.pipelines.run.status import ProgressFile, is_running, read_progress, stage_log


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    stages = {stage: StageProgress(stage) for stage in STAGES}
    stages["prepare"].status = "done"
    stages["sft"] = StageProgress("sft", status="running", started=1.0, seconds=61.0, done=3, total=9, left_s=120.0)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/sft.log").write_text("step 3\n")
    ProgressFile(tmp_path, "my-1").update(stages)
    return tmp_path


def show(workspace: Path, *command: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*command, "--workspace", str(workspace)])
    assert result.exit_code == 0, result.output
    return result.output


def test_progress_comes_back_as_it_was(workspace: Path) -> None:
    name, stages = read_progress(workspace) or ("", {})
    assert name == "my-1"
    assert (stages["sft"].status, stages["sft"].done, stages["grpo"].status) == ("running", 3, "waiting")


def test_status_shows_stages_and_the_model_in_service(workspace: Path) -> None:
    output = show(workspace, "status")
    assert "3/9 · 2 min left" in output
    assert (
        "run my-1 was interrupted; vthink run goes on: sft begins anew: no checkpoint was whole yet, 3 steps" in output
    )
    assert "champion: none yet" in output
    with Workspace(workspace).lock():
        assert is_running(workspace)
        assert "run my-1 runs" in show(workspace, "status")


def checkpoint(workspace: Path, stage: str, step: int) -> None:
    folder = workspace / f"work/{stage}/0123/checkpoints/checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "sealed.json").write_text("{}")


@pytest.mark.parametrize(
    ("stage", "done", "steps", "expected"),
    [
        ("sft", 47, [20, 40], "sft goes on from step 40; 7 steps are repeated"),
        ("grpo", 40, [40], "grpo goes on from step 40; nothing is repeated"),
        ("grpo", 0, [], "grpo begins anew: no checkpoint was whole yet"),
        ("evaluate", 9, [], "evaluate goes on; a batch of answers is repeated"),
        ("prepare", 9, [], "about half a minute is repeated"),
        ("register", 0, [], "register begins anew"),
    ],
)
def test_a_run_that_was_cut_off_says_what_is_repeated(tmp_path: Path, stage, done, steps, expected) -> None:
    for step in steps:
        checkpoint(tmp_path, stage, step)
    torn = tmp_path / f"work/{stage}/0123/checkpoints/checkpoint-60"  # without its seal
    torn.mkdir(parents=True)
    ProgressFile(tmp_path, "my-1").update({stage: StageProgress(stage, status="running", done=done, total=99)})
    assert expected in show(tmp_path, "status").replace("\n", " ")


def test_watching_follows_a_run_to_its_end(workspace: Path) -> None:
    ended = {stage: StageProgress(stage, status="done", seconds=3.0) for stage in STAGES}
    with Workspace(workspace).lock():
        timer = threading.Timer(0.7, lambda: ProgressFile(workspace, "my-1").update(ended))
        timer.start()
        command = [sys.executable, "-m", "vthink.pipelines.cli.main", "watch", "--workspace", str(workspace)]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        timer.join()
        time.sleep(1.5)
    output, _ = watching.communicate(timeout=60)
    assert output.splitlines()[-1] == "run my-1 is over"
    assert "✓ grpo done 3 s" in output


def test_there_is_nothing_to_watch_before_a_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", "--workspace", str(tmp_path)])
    assert "no run in" in str(result.exception)


def test_status_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    assert "no run in" in show(tmp_path, "status")


def test_logs_are_those_of_the_stage_that_runs(workspace: Path) -> None:
    assert show(workspace, "logs") == show(workspace, "logs", "sft") == "step 3\n"
    with pytest.raises(UserError, match="grpo has printed nothing yet"):
        stage_log(workspace, "grpo")


def test_status_takes_less_than_a_second_of_the_processor(workspace: Path) -> None:
    code = "import sys; from vthink.pipelines.cli import status; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlflow", "kfp", "kfp_server_api", "boto3", "torch"} & set(loaded)
    before = time.process_time()
    show(workspace, "status")
    assert time.process_time() - before < 1
