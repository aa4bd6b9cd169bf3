"""``vthink compare`` on folders as ``vthink evaluate --benchmark`` leaves them."""

import json
import os
import subprocess
import sys
from pathlib import Path


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
