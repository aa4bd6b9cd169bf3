from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from vthink.pipelines.cli.main import app

VTHINK = [sys.executable, "-m", "vthink.pipelines.cli.main"]


def commands(group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        command = command.load() if hasattr(command, "load") else command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def vthink(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment}
    return subprocess.run([*VTHINK, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed because of its user."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("vthink: ")
    return lines[0]


def test_the_commands_are_those_of_the_manual():
    assert {" ".join(path) for path in COMMANDS} >= {
        "run", "compile", "submit", "data synthesize", "data prepare", "data validate", "train sft", "train grpo",
        "evaluate", "serve", "ask", "ui", "report", "config show", "config validate", "config presets",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_every_command_says_what_it_does_with_an_example_of_itself(path):
    command = COMMANDS[path]
    assert command.help
    assert f"vthink {' '.join(path)}" in (command.epilog or "")


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_the_options_of_every_example_exist(path):
    command = COMMANDS[path]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert set(re.findall(r"(?<=\s)--[a-z-]+", command.epilog)) <= known


def test_help_answers_at_once_because_nothing_heavy_is_imported():
    code = "import sys, vthink.pipelines.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "kfp", "mlflow", "boto3", "pydantic", "numpy", "transformers", "yaml", "ruamel"} & set(loaded)

    def cpu_seconds() -> float:
        before = os.times()
        assert vthink("--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # Of the processor's time, so that a busy machine does not matter.
    assert min(cpu_seconds() for _ in range(5)) < 0.5


def test_no_command_s_module_brings_what_only_some_installations_have():
    names = "artifacts, cluster, data, evaluate, serve, train"
    code = f"import sys; from vthink.pipelines.cli import {names}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "PIL", "av", "decord", "datasets", "pyarrow", "kserve"} & set(loaded)


def test_a_command_s_module_is_imported_only_when_it_is_called():
    code = "import sys, typer; from vthink.pipelines.cli.main import app; typer.main.get_command(app)"
    code += ".commands['config'].load(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vthink.pipelines.cli.train" in loaded
    assert "vthink.pipelines.cli.cluster" not in loaded


def test_the_version_is_the_package_s():
    from vthink import __version__

    assert vthink("--version").stdout.strip() == __version__


def test_a_mistake_in_the_configuration_is_one_line(tmp_path):
    (tmp_path / "my.yaml").write_text("extends: laptop\ngrpo:\n  learing_rate: 1\n")
    said = one_line(vthink("run", "--config", "my.yaml", cwd=tmp_path))
    assert said == "vthink: my.yaml:3: unknown key 'grpo.learing_rate'; did you mean 'learning_rate'?"
    assert not (tmp_path / ".vthink").exists()


def test_an_unknown_stage_is_named_with_the_known_ones(tmp_path):
    done = vthink("run", "--from", "gpro", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'grpo'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_object_store_that_cannot_be_reached_is_one_line(tmp_path):
    said = one_line(vthink("run", "--set", "storage.endpoint_url=http://127.0.0.1:9", cwd=tmp_path,
                           AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b"))  # fmt: skip
    assert "cannot reach the S3 endpoint http://127.0.0.1:9" in said


def test_wrong_credentials_are_one_line(tmp_path, s3):
    said = one_line(vthink("run", "--set", f"storage.endpoint_url={s3.endpoint_url}", cwd=tmp_path,
                           AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY="else"))  # fmt: skip
    assert "refused the credentials" in said or "denied access" in said


def test_rows_with_mistakes_are_listed_with_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\nnot json\n')
    done = vthink("data", "validate", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "rows.jsonl:1: " in done.stdout
    assert "rows.jsonl:2: " in done.stdout
    assert "0 rows are fine, 2 are not" in done.stdout


def test_a_generated_world_is_found_valid(tmp_path):
    sizes = ["data.synthesize.num_train=3", "data.synthesize.num_validation=1", "data.synthesize.num_test=1"]
    changes = [part for size in sizes for part in ("--set", size)]
    assert vthink("data", "synthesize", "world", *changes, cwd=tmp_path).returncode == 0
    done = vthink("data", "validate", "world/rows.jsonl", cwd=tmp_path)
    assert done.returncode == 0
    assert "5 rows are fine, 0 are not" in done.stdout


def test_a_missing_video_is_found(tmp_path):
    changes = [part for split in ("train", "validation") for part in ("--set", f"data.synthesize.num_{split}=0")]
    assert (
        vthink("data", "synthesize", "world", *changes, "--set", "data.synthesize.num_test=2", cwd=tmp_path).returncode
        == 0
    )
    next((tmp_path / "world" / "videos").rglob("*.mp4")).unlink()
    done = vthink("data", "validate", "world/rows.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 are missing" in done.stdout


def test_a_question_to_no_server_is_one_line(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    said = one_line(vthink("ask", "http://127.0.0.1:9", "clip.mp4", "What?", cwd=tmp_path))
    assert "http://127.0.0.1:9 cannot be reached (" in said


def test_kubeflow_pipelines_that_cannot_be_reached_is_one_line():
    said = one_line(vthink("submit", "--host", "http://127.0.0.1:9"))
    assert said.startswith("vthink: cannot reach Kubeflow Pipelines at http://127.0.0.1:9 (")


def test_a_report_of_no_run_is_one_line(tmp_path):
    assert "no run has finished" in one_line(vthink("report", cwd=tmp_path))


@pytest.mark.parametrize("command", [["compile", "--output", "none/x.yaml"], ["run", "--workspace", "file/x"]])
def test_a_file_that_cannot_be_written_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert re.search(r"No such file|Not a directory", one_line(vthink(*command, cwd=tmp_path)))


def test_a_bug_keeps_its_traceback(monkeypatch):
    from vthink.pipelines.cli import main

    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(main, "app", broken)
    with pytest.raises(KeyError):
        main.main()


def test_presets_are_listed_and_shown():
    listed = vthink("config", "presets").stdout
    assert "video_thinker_7b" in listed
    shown = vthink("config", "show", "--preset", "zero", "--set", "grpo.learning_rate=5e-6")
    assert shown.returncode == 0
    assert re.search(r"learning_rate: 5\.?0?e-06", shown.stdout)
