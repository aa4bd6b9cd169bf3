"""``vthink init``: from rows as people have them to a configuration that needs nothing more."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from vthink.pipelines.cli.main import app
from vthink.pipelines.config import load
from vthink.pipelines.preflight.rows import examine_rows
from vthink.pipelines.run.state import STAGES, is_enabled


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person works, on a machine without a GPU; forty files that are there, which is all that init looks at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "v").mkdir()
    for number in range(40):
        (tmp_path / f"v/{number}.mp4").write_bytes(b"x")
        (tmp_path / f"v/{number}.png").write_bytes(b"x")
    return tmp_path


def init(*options: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["init", "my.yaml", *options])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def all_is_well() -> bool:
    config = load("my.yaml")
    stages = [stage for stage in STAGES if is_enabled(config, stage)]
    return all(finding.verdict == "ok" for finding in examine_rows(config, stages))


KINDS = {
    "multiple_choice": {"options": "left|right", "answer": "left"},
    "numerical": {"problem_type": "numerical", "answer": "3"},
    "ocr": {"problem_type": "ocr", "answer": "EXIT"},
    "free_form": {"answer": "A ball rolls."},
    "regression": {"problem_type": "regression", "answer": "2.5"},
}
EVIDENCE = [{"start_s": 0, "end_s": 1, "caption": "It rolls."}]


@pytest.mark.parametrize("types", [["multiple_choice"], list(KINDS)])
@pytest.mark.parametrize("suffix", ["mp4", "png"])
@pytest.mark.parametrize("knows", ["answers", "reasoning", "evidence"])
def test_twelve_kinds_of_rows_need_nothing_more(folder: Path, types: list[str], suffix: str, knows: str) -> None:
    more = {"reasoning": "It goes."} if knows != "answers" else {}
    more |= {"evidence": EVIDENCE} if knows == "evidence" and suffix == "mp4" else {}  # type: ignore[dict-item]
    rows = [{"path": f"v/{n}.{suffix}", "question": "What?", **KINDS[types[n % len(types)]], **more} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = init("--rows", "rows.jsonl")
    assert "40 of 40 rows can be used" in output
    assert "still to do" not in output
    assert all_is_well()
    config = load("my.yaml")
    assert config.sft.enabled == (knows != "answers")
    assert config.data.shards == 1
    assert max(map(len, (folder / "my.yaml").read_text().splitlines())) < 130


def test_many_rows_get_more_shards_and_the_whole_gate(folder: Path) -> None:
    row = {"question": "What?", "answer": "x", "reasoning": "y", "video": "v/0.mp4"}
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(6000):
            split = {"split": "test" if number % 40 == 1 else "validation" if number % 40 == 2 else "train"}
            file.write(json.dumps(row | split | {"video": f"v/{number % 40}.mp4"}) + "\n")
    output = init("--rows", "rows.jsonl", "--preset", "video_r1_7b")
    assert "next:\n  vthink run --config my.yaml --dry-run" in output
    config = load("my.yaml")
    assert config.data.shards == 3
    assert config.data.holdout == {"validation": 0, "test": 0}  # they say their split; the preset would move more
    assert [rule.metric for rule in config.evaluation.gate] == ["accuracy"]  # 150 test rows are few


def test_mistakes_are_listed_and_tolerated_where_they_are_many(folder: Path) -> None:
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Clip", "Prompt", "Label"])
        table.writerows([f"v/{n}.mp4", "What?", "" if n % 4 == 0 else "x"] for n in range(40))
    output = init("--rows", "rows.csv")
    assert "rows.csv:2: there is no answer" in output
    assert "columns: video ← Clip, question ← Prompt, answer ← Label" in output
    assert all_is_well()


def test_a_folder_of_videos_with_captions_will_do(folder: Path) -> None:
    for number in range(40):
        (folder / f"v/{number}.txt").write_text("A ball\nrolls.\n")
    (folder / "v/0.json").write_text(json.dumps([{"question": "How many?", "answer": "1"}]))
    output = init("--rows", "v")
    assert "my.rows.jsonl: 41 rows of the videos in v" in output
    assert all_is_well()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rows", "v"], "nothing that says what is in them; put 0.txt"),
        (["--rows", "few.csv"], "2 videos are too few to hold some out"),
        ([], "--rows FILE: a table with the columns"),
        (["--rows", "few.csv", "--column", "film=x"], "--column film=x: expected FIELD=COLUMN"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, options: list[str], expected: str) -> None:
    (folder / "few.csv").write_text("video,question,answer\nv/0.mp4,a,b\nv/1.mp4,a,b\n")
    result = CliRunner().invoke(app, ["init", "my.yaml", *options])
    assert expected in str(result.exception)
    assert not (folder / "my.yaml").exists()


def test_a_file_that_is_there_stays(folder: Path) -> None:
    (folder / "my.yaml").write_text("mine")
    result = CliRunner().invoke(app, ["init", "my.yaml", "--rows", "v"])
    assert "is there already; --force" in str(result.exception)
    assert (folder / "my.yaml").read_text() == "mine"
