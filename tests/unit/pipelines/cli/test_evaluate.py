"""``vthink compare`` and ``gate`` on folders as ``vthink evaluate --benchmark`` leaves them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def written(folder: Path, right: int, questions: str = "q") -> Path:
    """A benchmark's folder: 20 videos of 3 questions, of which the model answered so many rightly."""
    estimate = {"value": right / 60, "low": max(0.0, right / 60 - 0.1), "high": min(1.0, right / 60 + 0.1), "n": 60}
    cell = {"accuracy": estimate, "by_kind": {}, "by_type": {}, "scores": {"accuracy": estimate}, "failed": 0}
    result = {
        "benchmark": "video-holmes",
        "title": "Video-Holmes",
        "source": "arXiv",
        "headline": "accuracy",
        "model": {"kind": "folder", "uri": f"/models/{folder.name}"},
        "conditions": {"ordered": cell},
        "settings": {"questions": questions},
        "items": 60,
        "videos": 20,
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    rows = [
        {
            "id": f"q{number}",
            "video": f"{number % 20}.mp4",
            "frames": "ordered",
            "problem_type": "multiple_choice",
            "metrics": {"accuracy": float(number < right)},
            "correct": number < right,
        }
        for number in range(60)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def vthink(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from vthink.pipelines.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=wide)


def test_models_are_compared_in_words_and_in_a_report(tmp_path):
    base, ours = written(tmp_path / "base", 10), written(tmp_path / "ours", 50)
    report = tmp_path / "out" / "report.html"
    done = vthink("compare", f"base={base}", ours, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "+66.7 points" in done.stdout
    assert "higher" in done.stdout
    assert "Video-Thinker-7B @16" in report.read_text()
    same = vthink("compare", f"a={base}", f"b={base}")
    assert "no significant difference" in same.stdout


def test_a_folder_that_holds_no_result_is_one_line(tmp_path):
    done = vthink("compare", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vthink: {tmp_path}/result.json: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "rules.yaml").write_text(
        "- {metric: accuracy, at_least: 0.8}\n- {metric: accuracy, benchmark: video-holmes, above: champion}\n"
    )
    (folder / "damaged.yaml").write_text("- {metric: accuracy\n")
    written(folder / "old", 10)
    written(folder / "new", 50)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["{metric: accuracy, benchmark: video-holmes, not_worse_than: champion, by: 0.01}"],
            0,
            "gate passed: 1 of 1 rules hold",
        ),
        (["--rules", "{folder}/rules.yaml"], 0, "gate passed: 2 of 2 rules hold"),
        (
            ["{metric: accuracy, at_least: 0.9}", "--rules", "{folder}/rules.yaml"],
            3,
            "FAIL  accuracy at least 0.9: 0.8333 over 60 questions",
        ),
        (["{metric: acuracy, at_least: 0.9}"], 1, "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (["{metric: accuracy, benchmark: mmvu, at_least: 0.9}"], 1, "was not measured; there are: video-holmes"),
        (
            ["video_holmes.accuracy > 0.9"],
            1,
            "write {metric: accuracy, above: base} or {metric: accuracy, at_least: 0.5}",
        ),
        (["{metric: accuracy"], 1, "not YAML"),
        (["--rules", "{folder}/damaged.yaml"], 1, "damaged.yaml: not YAML"),
        (["--rules", "{folder}/nothing.yaml"], 1, "nothing.yaml: No such file or directory"),
        ([], 1, "there are no rules: give one, such as '{metric: accuracy, at_least: 0.4}'"),
        # Without the results of a model that a rule compares with, nothing is judged and nothing passes.
        (
            ["{metric: accuracy, above: base}"],
            1,
            "rule 'accuracy above base' needs the results of base: give --base DIR",
        ),
        (["{metric: accuracy, above: sft}"], 1, "there is no model 'sft' in this evaluation; it has: candidate, cham"),
    ],
)
def test_a_gate_says_line_by_line_what_holds_and_exits_by_it(folders, arguments, code, line):
    arguments = [argument.replace("{folder}", str(folders)) for argument in arguments]
    done = vthink("gate", *arguments, "--candidate", folders / "new", "--champion", folders / "old")
    assert done.returncode == code, done.stderr
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (code == 1)


def test_a_rule_about_the_champion_needs_its_results(folders):
    done = vthink("gate", "{metric: accuracy, not_worse_than: champion, by: 0.01}", "--candidate", folders / "new")
    assert done.returncode == 1
    assert done.stderr == (
        "vthink: rule 'accuracy not worse than champion by 0.01' needs the results of champion: give --champion DIR\n"
    )
