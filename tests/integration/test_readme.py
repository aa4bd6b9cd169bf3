"""Every command of the README is run, or checked in the way that the table says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from vthink.components.common.launch.process import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    fenced = README.split("```")[1::2]
    return [text for first, _, text in (block.partition("\n") for block in fenced) if first == language]


def commands() -> list[str]:
    """Every command line, without its comment and without the environment's folder."""
    lines = [line.partition("  #")[0].strip() for block in blocks("") for line in block.splitlines()]
    shown = [line.removeprefix(".venv/bin/") for line in lines]
    return [line for line in shown if line.startswith(("make ", "vthink "))]


RUN = {
    "vthink config presets",
    "vthink config show grpo --preset video_r1_7b",
    "vthink compile --output vthink.yaml",
    "vthink plan --preset video_r1_7b --gpus 8",
    "vthink data validate rows.jsonl",
    "vthink data synthesize world --set data.synthesize.num_train=0 --set data.synthesize.num_validation=0 "
    "--set data.synthesize.num_test=1",
}
"""Commands that are run as they stand, in a folder with a `rows.jsonl`."""

ELSEWHERE = {
    "make demo": "`make -n` here; the pipeline itself in test_run.py, with fewer steps",
    "make test": "`make -n` here; it is how these tests are run",
    "vthink run --preset laptop": "test_run.py",
    "vthink run --dry-run": "test_run.py",
    "vthink run --from grpo": "test_run.py",
    "vthink run --set launch.processes=8": "options here; two processes in test_run.py",
    "vthink data prepare rows.jsonl": "test_run.py",
    "vthink data report rows.jsonl": "data_prep/report/test_page.py",
    "vthink data curate captions.json -o curated.jsonl --dry-run": "test_curate.py",
    "vthink train sft --data rows.jsonl": "test_run.py",
    "vthink evaluate --benchmark vsi-bench --data DIR --model M --output OUT": "options; test_evaluate_benchmark.py",
    "vthink compare base=OUT1 ours=OUT --report report.html": "options here; test_cli_compare.py",
    "vthink init my.yaml --rows rows.csv": "pipelines/test_init.py",
    "vthink run --config my.yaml --dry-run": "test_first_hour.py",
    "vthink run --config my.yaml": "test_first_hour.py",
    "vthink serve": "test_server.py",
    "vthink doctor --preset video_r1_7b": "test_doctor.py",
    "vthink submit --host https://kubeflow.example.org/pipeline --preset video_r1_7b --wait": "test_submit.py",
    "vthink status": "test_submit.py",
    "vthink prune --older-than 30": "test_retention.py",
    'vthink ask http://127.0.0.1:8080 world/videos/test-motion-000000.mp4 "Which direction does the square move?" '
    "-o left -o right -o up -o down": "test_the_question_of_the_readme_is_answered",
}
"""Commands that take long or need something else, and where they are tested."""


def test_the_table_above_is_complete():
    assert sorted(commands()) == sorted(RUN | set(ELSEWHERE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the README's row and its video."""
    from vthink.components.data_prep.config import SynthesizeConfig
    from vthink.components.data_prep.world.synthesize import synthesize

    made = tmp_path_factory.mktemp("user")
    synthesize(SynthesizeConfig(num_train=0, num_validation=0, num_test=1), made / "generated")
    (made / "videos").mkdir()
    next((made / "generated" / "videos").glob("*.mp4")).rename(made / "videos" / "clip-1.mp4")
    (row,) = blocks("json")
    (made / "rows.jsonl").write_text(row, "utf-8")
    return made


@pytest.mark.parametrize("command", sorted(RUN))
def test_a_command_works_as_it_stands(command, folder, vthink):
    words = shlex.split(command)
    done = vthink(folder, *words[1:])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", sorted(command for command in ELSEWHERE if command.startswith("vthink ")))
def test_the_options_of_a_command_exist(command):
    from vthink.pipelines.cli.main import app

    words = shlex.split(command)[1:]
    found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]
        found = found.load() if hasattr(found, "load") else found
    known = {name for parameter in found.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("command", sorted(command for command in ELSEWHERE if command.startswith("make ")))
def test_a_make_target_exists_and_does_what_is_said(command, tmp_path):
    done = subprocess.run(
        ["make", "-n", command.split()[1], f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = {"make demo": "vthink run --preset laptop", "make test": "pytest"}[command]
    assert "-m venv" in done.stdout
    assert wanted in done.stdout


def test_the_readme_s_row_is_a_row(folder):
    from vthink.components.common.rows.files import read_samples
    from vthink.components.common.rows.sample import Sample

    (row,) = read_samples(folder / "rows.jsonl")
    assert isinstance(row, Sample), row
    assert json.loads(blocks("json")[0])["answer"] == row.answer


def test_the_files_and_folders_that_are_named_exist():
    for name in re.findall(r"\b(?:CONTRIBUTING|CHANGELOG)\.md\b", README):
        assert (ROOT / name).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_question_of_the_readme_is_answered(finished, demo, vthink):
    port = free_port()
    process = finished.start("serve", "--port", str(port))
    try:
        assert vthink(demo.folder, *shlex.split(next(c for c in RUN if "synthesize" in c))[1:]).returncode == 0
        words = shlex.split(next(command for command in ELSEWHERE if command.startswith("vthink ask")))[1:]
        words = [word.replace(":8080", f":{port}") for word in words]
        assert finished.wait_until(process, lambda: vthink(demo.folder, *words).returncode == 0)
    finally:
        process.terminate()
        process.communicate(timeout=60)
