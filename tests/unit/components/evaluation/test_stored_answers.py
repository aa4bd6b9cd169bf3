"""Stored answers are graded without a model and without the videos, in every shape in which they are stored."""

import csv
import json
import time
from pathlib import Path

import pytest
from vthink.components.common.answers.reading import GRADER_VERSION
from vthink.components.common.errors import UserError
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.results import read_benchmark
from vthink.components.evaluation.stored_answers import grade_stored

QUICK = EvaluationConfig(bootstrap_resamples=100)


def rows(count: int = 12) -> list[dict]:
    """VSI-Bench as published: by turns a count and a choice."""
    made = []
    for number in range(count):
        choice = number % 2 == 1
        made.append(
            {
                "id": number,
                "dataset": "scannet",
                "scene_name": f"scene{number // 4}",
                "question_type": "object_rel_distance" if choice else "object_counting",
                "question": f"What about number {number}?",
                "options": ["A. sofa", "B. chair", "C. table", "D. bed"] if choice else None,
                "ground_truth": "B" if choice else "4",
            }
        )
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The annotation file alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return folder


def texts() -> list[str]:
    counts = ["4", "<think>many</think>\n4", "four", "5", "The answer is 4.", "<answer>4</answer>"]
    choices = ["B", "<think>A or C</think>\nB", "chair", "D", "So the answer is B.", "<answer>B</answer>"]
    return [text for pair in zip(counts, choices, strict=True) for text in pair]


def write(path: Path, shape: str) -> Path:
    ids = [row["id"] for row in rows()]
    if shape == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "response"])
            writer.writeheader()
            writer.writerows({"id": i, "response": text} for i, text in zip(ids, texts(), strict=True))
        return path
    if shape == "video-r1":  # keys of eval_bench.py, ids of its own
        made = [
            {
                "problem_id": 900 + row["id"],
                "problem": row["question"],
                "path": f"./vsi/{row['scene_name']}.mp4",
                "output": t,
            }
            for row, t in zip(rows(), texts(), strict=True)
        ]
        path.write_text(json.dumps({"results": made, "final_acc": []}))
        return path
    if shape == "lmms-eval":  # samples_*.jsonl of 0.3 and later
        made = [{"doc_id": i, "target": "x", "filtered_resps": [t], "resps": [[t]]} for i, t in enumerate(texts())]
    else:
        made = [{"id": str(i), "response": t} for i, t in zip(ids, texts(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


SHAPES = {"plain": "a.jsonl", "csv": "a.csv", "video-r1": "eval.json", "lmms-eval": "vsibench_samples.jsonl"}


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_graded_in_every_shape_in_which_they_are_stored(shape, data, tmp_path):
    answers = write(tmp_path / SHAPES[shape], shape)
    result = grade_stored("vsi-bench", str(data), answers, tmp_path / "out", config=QUICK, work_dir=tmp_path)
    cell = result.conditions["ordered"]
    assert cell.scores["accuracy"].value == pytest.approx(5 / 6)
    assert cell.scores["mra_inclusive"].value == pytest.approx((5 + 0.6) / 6)  # 5 for 4: an error of a quarter
    assert (cell.metrics["answer_found"].value, cell.metrics["tagged"].value) == (1.0, pytest.approx(1 / 6))
    assert result.missing_videos == 0
    assert read_benchmark(tmp_path / "out").result.settings.grader == GRADER_VERSION


def test_old_results_are_graded_again_with_what_was_said_of_them(data, tmp_path):
    first = grade_stored(
        "vsi-bench", str(data), write(tmp_path / "a.jsonl", "plain"), tmp_path / "out", config=QUICK, work_dir=tmp_path
    )
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    (tmp_path / "out" / "settings.json").write_text(json.dumps(settings | {"max_new_tokens": 77, "grader": "1"}))
    again = grade_stored(
        "vsi-bench", str(data), tmp_path / "out" / "items.jsonl", tmp_path / "new", config=QUICK, work_dir=tmp_path
    )
    assert again.metrics == first.metrics
    assert (again.settings.max_new_tokens, again.settings.grader) == (77, GRADER_VERSION)


def test_each_grader_has_its_rules_and_its_name_and_they_are_not_compared(data, tmp_path):
    answers = write(tmp_path / "a.jsonl", "plain")
    kept = {}
    for grader in ("strict", "paper", "official"):
        grade_stored("vsi-bench", str(data), answers, tmp_path / grader, config=QUICK, work_dir=tmp_path, grader=grader)
        kept[grader] = read_benchmark(tmp_path / grader)
    right = {name: one.ordered.scores["accuracy"].value * 6 for name, one in kept.items()}
    # The published rules read the first word, or the first <answer> and else everything.
    assert right == pytest.approx({"strict": 5, "paper": 2, "official": 1}, abs=1e-4)
    why = kept["strict"].incomparable(kept["official"])
    assert why is not None
    assert f"graded by version {GRADER_VERSION}, a by version {GRADER_VERSION}-official" in why
    with pytest.raises(UserError, match="mmvu: its published rule is not here"):
        grade_stored("mmvu", str(data), answers, tmp_path / "x", config=QUICK, work_dir=tmp_path, grader="official")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "77", "response": "B"}, "row 13: '77' is no question of this benchmark"),
        ({"id": "3", "response": "B"}, "row 13: a second answer to '3'"),
        ({"id": "3"}, "row 13: no response"),
        ({"id": "3", "response": ["B"]}, "row 13: the response is no text"),
        ([1], "row 13: expected an object"),
    ],
)
def test_a_row_that_is_no_answer_is_named(line, message, data, tmp_path):
    answers = write(tmp_path / "a.jsonl", "plain")
    answers.write_text(answers.read_text() + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=message):
        grade_stored("vsi-bench", str(data), answers, tmp_path / "out", config=QUICK, work_dir=tmp_path)


def test_a_question_without_an_answer_is_wrong_and_listed(data, tmp_path):
    answers = write(tmp_path / "a.jsonl", "plain")
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:-1]))
    result = grade_stored("vsi-bench", str(data), answers, tmp_path / "out", config=QUICK, work_dir=tmp_path)
    assert [(failed.id, failed.error) for failed in result.failed] == [("11", "no answer in a.jsonl")]
    assert result.conditions["ordered"].scores["accuracy"].value == pytest.approx(4 / 6)


def test_five_thousand_answers_are_graded_in_half_a_minute(tmp_path):
    made = rows(5000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    words = "<think>" + "It is seen from the left and then from the right. " * 20 + "</think>\n"
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": row["id"], "response": words + row["ground_truth"]}) + "\n" for row in made)
    )
    started = time.process_time()
    result = grade_stored(
        "vsi-bench",
        str(tmp_path / "data"),
        tmp_path / "a.jsonl",
        tmp_path / "out",
        config=EvaluationConfig(),
        work_dir=tmp_path,
    )
    assert result.metrics["overall"].value == 1.0
    assert time.process_time() - started < 30
