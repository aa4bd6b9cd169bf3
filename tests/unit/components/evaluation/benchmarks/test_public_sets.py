"""The published files are read, odd rows and all, and the scores are the published ones."""

import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.scores import estimates
from vthink.components.evaluation.summary import summarize

from ..published import FORMATS, Published, expected_scores
from .reading import RESAMPLING, graded, read

QUESTIONS = 240


@pytest.mark.parametrize("name", FORMATS)
def test_scores_equal_an_independent_computation_over_more_than_200_answers(name: str, tmp_path: Path):
    rng = random.Random(name)
    published = FORMATS[name](rng, 2 * QUESTIONS if name in ("cg-bench-reasoning", "tempcompass") else QUESTIONS, 12)
    found = read(name, published, tmp_path)
    assert len(found.samples) == len(published.truths) >= 200
    said = [rng.choice([truth["answer"], *truth["says"]]) for truth in published.truths]
    rows = graded(found.benchmark, found.samples, [f"<think>hm</think><answer>{text}</answer>" for text in said])
    scores = estimates(found.benchmark.scores, rows, RESAMPLING)

    expected, by_kind, by_dim = expected_scores(name, published.truths, said)
    for score, value in expected.items():
        assert scores[score].value == pytest.approx(value, abs=1e-6), score
        assert scores[score].low <= value + 1e-6
        assert scores[score].high >= value - 1e-6
        assert 0 < value < 1
    summary = summarize(rows, found.benchmark.scores, RESAMPLING)
    assert {dim: cell["accuracy"].value for dim, cell in summary.by.get("dim", {}).items()} == pytest.approx(
        by_dim, abs=1e-6
    )
    if name != "vsi-bench":  # its numbers have a grade of their own
        for kind, cell in summary.by_kind.items():
            label = next(k for k in by_kind if k.replace(" ", "_").replace("-", "_") == kind)
            assert cell["accuracy"].value == pytest.approx(by_kind[label], abs=1e-6)


# -- VSI-Bench: both definitions ------------------------------------------------------------------------------


def test_the_two_overall_scores_of_vsi_bench_differ_on_the_same_answers(tmp_path: Path):
    published = FORMATS["vsi-bench"](random.Random(0), QUESTIONS, 12)
    found = read("vsi-bench", published, tmp_path)
    said = [random.Random(i).choice(truth["says"]) for i, truth in enumerate(published.truths)]
    rows = graded(found.benchmark, found.samples, [f"<answer>{text}</answer>" for text in said])
    scores = estimates(found.benchmark.scores, rows, RESAMPLING)
    assert abs(scores["overall"].value - scores["overall_video_r1"].value) > 0.01
    assert scores["mra_inclusive"].value > scores["mra"].value + 0.02


def test_mra_equals_the_published_formulas_off_the_thresholds(tmp_path: Path):
    published = FORMATS["vsi-bench"](random.Random(1), 500, 12)
    found = read("vsi-bench", published, tmp_path)
    rng = np.random.default_rng(0)
    numbers = [i for i, sample in enumerate(found.samples) if sample.problem_type == "regression"]
    assert len(numbers) == 200
    truths = np.array([float(found.samples[i].answer) for i in numbers])
    guesses = truths * rng.uniform(0.2, 1.8, len(numbers))
    rows = graded(found.benchmark, [found.samples[i] for i in numbers], [f"<answer>{g}</answer>" for g in guesses])
    # lmms-eval: float64, <=; Video-R1: float32, <, an epsilon under the fraction
    limits = 1 - np.linspace(0.5, 0.95, 10)
    lmms = (np.abs(guesses - truths)[:, None] / truths[:, None] <= limits).mean()
    single = np.float32
    errors = np.abs(single(guesses) - single(truths)) / (np.abs(single(truths)) + single(1e-8))
    video_r1 = (errors[:, None] < 1 - np.arange(0.5, 0.975, 0.05, dtype=single)).mean()
    scores = estimates(found.benchmark.scores, rows, RESAMPLING)
    assert scores["mra_inclusive"].value == pytest.approx(lmms, abs=1e-6)
    assert scores["mra"].value == pytest.approx(video_r1, abs=1e-6)


def test_a_score_that_no_item_counts_for_is_left_out(tmp_path: Path):
    published = FORMATS["mmvu"](random.Random(0), 12, 4)
    found = read("mmvu", published, tmp_path)
    choices = [sample for sample in found.samples if sample.options]
    rows = graded(found.benchmark, choices, ["<answer>A</answer>"] * len(choices))
    assert set(estimates(found.benchmark.scores, rows, RESAMPLING)) == {"accuracy_choice"}


# -- grounding -----------------------------------------------------------------------------------------------


def test_clue_iou_equals_a_count_of_seconds_over_more_than_200_answers(tmp_path: Path):
    rng = random.Random(5)
    published = FORMATS["cg-bench"](rng, QUESTIONS, 12)
    found = read("cg-bench", published, tmp_path)
    responses, expected = [], []
    for truth in published.truths:
        spans = [(start, start + rng.randint(0, 6)) for start in (rng.randint(0, 45) for _ in range(rng.randint(0, 7)))]
        tags = "".join(
            f"<time>00:{start:02d}-00:{end:02d}</time><caption>c</caption><think>t</think>" for start, end in spans
        )
        responses.append(f"{tags}<answer>{truth['answer']}</answer>")
        said = {second for start, end in spans[:5] for second in range(start, end)}
        clues = {second for start, end in truth["clues"] for second in range(start, end)}
        expected.append(len(said & clues) / len(said | clues))
    rows = graded(found.benchmark, found.samples, responses)
    assert [item.metrics["clue_iou"] for item in rows] == pytest.approx(expected)
    scores = estimates(found.benchmark.scores, rows, RESAMPLING)
    assert scores["clue_iou"].value == pytest.approx(statistics.mean(expected), abs=1e-6)
    assert scores["accuracy"].value == 1
    assert 0.02 < scores["clue_iou"].value < 0.5


def test_the_steps_of_vrbench_become_evidence(tmp_path: Path):
    published = FORMATS["vrbench"](random.Random(0), 12, 4)
    found = read("vrbench", published, tmp_path)
    timed = [sample for sample in found.samples if sample.evidence]
    assert 0 < len(timed) < len(found.samples)
    assert timed[0].evidence[0].caption == "She enters the room"
    assert timed[0].evidence[0].end_s - timed[0].evidence[0].start_s == 2


def test_the_published_sample_of_vrbench_is_read(tmp_path: Path):
    """The real file where its path is given, else one of the same format."""
    path = Path(os.environ.get("VTHINK_VRBENCH_SAMPLE") or tmp_path / "VRBench_eval.jsonl")
    if not path.exists():
        FORMATS["vrbench"](random.Random(0), 20, 2).write(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    folder = DataFolder("data", ["VRBench_eval.jsonl", *(row["video_path"] for row in rows)])
    found = load_questions(BENCHMARKS.get("vrbench"), folder, lambda name: path)
    assert len(found.samples) == sum(len(row["mcq"]) for row in rows)
    assert not found.missing
    asked = [question for row in rows for question in row["mcq"].values()]
    for sample, question in zip(found.samples, asked, strict=True):
        assert sample.answer == question["answer"][0]
        assert list(sample.options) == list(question["options"].values())
    summary = load_questions(BENCHMARKS.get("vrbench-summary"), folder, lambda name: path)
    assert summary.samples[0].question == f"Summary of the video: {rows[0]['video_summary']}\n{asked[0]['question']}"


def test_options_that_are_left_out_move_the_letters_of_the_rest(tmp_path: Path):
    row = {
        "video ID": "v",
        "Question ID": 1,
        "Question Type": "SR",
        "Question": "Who?",
        "Options": {"A": "x", "B": None, "C": "y", "E": "z"},
        "Answer": "E. z",
    }
    published = Published({"test_Video-Holmes.json": [row]}, videos={"v": "videos/v.mp4", "w": "videos/w.mp4"})
    sample = read("video-holmes", published, tmp_path).samples[0]
    assert (sample.options, sample.answer) == (("x", "y", "z"), "C")


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("video-holmes", {"Answer": "G"}, "row 3, field 'Answer': is none of the options A, C, D, E, F"),
    ("video-holmes", {"Options": {"A": "x"}, "Answer": "A"}, "row 3: a choice between 1 options"),
    ("video-holmes", {"Question": None}, "row 3, field 'Question': missing or empty"),
    ("video-holmes", {"Question": {"a": 1}}, "row 3, field 'Question': expected text"),
    ("cg-bench", {"clue_intervals": [[3]]}, r"row 3, field 'clue_intervals': expected a list of \[start, end\]"),
    ("cg-bench", {"clue_intervals": [[9, 3]]}, "row 3: 'evidence.0': start_s 9 is after end_s 3"),
    ("vsi-bench", {"question_type": "object_smell"}, "row 3, field 'question_type': expected one of object_rel"),
    ("vsi-bench", {"question_type": "object_counting", "ground_truth": "many"}, "row 3: the answer of a regression"),
    ("videomme", {"answer": "Z"}, "row 3, field 'answer': is none of the options A, B, C, D, found 'Z'"),
]


@pytest.mark.parametrize(("name", "change", "said"), BROKEN)
def test_a_row_that_is_not_as_published_is_refused_with_file_and_row(name, change, said, tmp_path: Path):
    published = FORMATS[name](random.Random(0), 12, 4)
    file = next(iter(published.files))
    published.files[file][2] |= change
    with pytest.raises(UserError, match=f"{file}, {said}") as raised:
        read(name, published, tmp_path)
    assert "\n" not in str(raised.value)


def test_tempcompass_and_mvbench_are_read_as_the_hub_has_them_too(tmp_path: Path):
    row = {"video_id": "1", "dim": "speed", "question": "Is it fast?", "answer": "no"}
    choice = {"video_id": "2", "dim": "order", "question": "What?\nA. first\nB. last", "answer": "B. last"}
    files = {"yes_no/test-00000-of-00001.parquet": [row], "multi-choice/test-00000-of-00001.parquet": [choice]}
    found = read("tempcompass", Published(files, videos={"1": "videos/1.mp4", "2": "videos/2.mp4"}), tmp_path / "a")
    kinds = [(s.metadata["kind"], s.answer, s.metadata["groups"]["dim"]) for s in found.samples]
    assert kinds == [("multi-choice", "B", "order"), ("yes_no", "no", "speed")]
    row = {"video": "9.webm", "question": "What?", "candidates": ["up", "down"], "answer": "down"}
    files = {"action_antonym/train-00000-of-00001.parquet": [row]}
    found = read("mvbench", Published(files, videos={"9": "ssv2_video_mp4/9.mp4", "x": "x.mp4"}), tmp_path / "b")
    assert [(s.metadata["kind"], s.answer, s.media.uri) for s in found.samples] == [
        ("action_antonym", "B", "ssv2_video_mp4/9.mp4")
    ]


# -- VideoMMMU -------------------------------------------------------------------------------------------------


def test_an_open_answer_of_videommmu_may_be_spelled_in_several_ways(tmp_path: Path):
    """As MMMU spells them: a list, in Parquet exports as text; and the image of an adaptation question is announced."""
    row = {"id": "validation_Math_15", "question": "How much?", "options": [], "question_type": "open"}
    rows = [
        row | {"answer": "['24/7', '3.429']"},
        row | {"id": "validation_Math_16", "answer": ["left", "to the left"]},
    ]
    (tmp_path / "Adaptation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = BENCHMARKS.get("videommmu")
    folder = DataFolder("x", ["Adaptation.jsonl"])
    samples = load_questions(benchmark, folder, lambda name: tmp_path / name, videos=False).samples
    for text, right in (("3.43", 1.0), ("24/7", 1.0), ("3.42857 m", 1.0), ("24", 0.0), ("", 0.0)):
        assert graded(benchmark, samples[:1], [f"<answer>{text}</answer>"])[0].metrics["accuracy"] == right
    assert graded(benchmark, samples[1:], ["<answer>to the left</answer>"])[0].metrics["accuracy"] == 1.0
    assert samples[0].question.startswith("Learn from the video")
    assert "is the end of the video.\nHow much?" in samples[0].question
