"""Benchmarks as data: the published files are read, odd rows and all, and the scores are the published ones."""

from __future__ import annotations

import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import write_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.evaluation.answers import Answer
from vthink.components.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSet
from vthink.components.evaluation.benchmarks.entries import Entry
from vthink.components.evaluation.benchmarks.folder import DataFolder, load
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.grade import grade_answer
from vthink.components.evaluation.grounding import union_iou
from vthink.components.evaluation.scores import Score, score_all
from vthink.components.evaluation.summary import summarize

from .published import FORMATS, Published, expected_scores

CONFIG = EvaluationConfig(bootstrap_resamples=200)
QUESTIONS = 240


def read(name: str, published: Published, folder: Path) -> BenchmarkSet:
    """Read a benchmark whose videos are only names."""
    published.write(folder)
    names = [*published.files, *list(published.videos.values())[:-1]]
    return load(BENCHMARKS[name], DataFolder("data", names), lambda file: folder / file)


def rows_of(benchmark: Benchmark, samples: list[Sample], responses: list[str]) -> list[dict[str, Any]]:
    return [
        grade_answer(sample, Answer(sample.id, text), "model", "ordered", "video_thinker", benchmark.grade)
        for sample, text in zip(samples, responses, strict=True)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_scores_equal_an_independent_computation_over_more_than_200_answers(name: str, tmp_path: Path):
    rng = random.Random(name)
    published = FORMATS[name](rng, 2 * QUESTIONS if name in ("cg-bench-reasoning", "tempcompass") else QUESTIONS, 12)
    found = read(name, published, tmp_path)
    assert len(found.samples) == len(published.truths) >= 200
    said = [rng.choice([truth["answer"], *truth["says"]]) for truth in published.truths]
    rows = rows_of(found.benchmark, found.samples, [f"<think>hm</think><answer>{text}</answer>" for text in said])
    scores = score_all(found.benchmark.scores, rows, CONFIG)

    expected, by_kind, by_dim = expected_scores(name, published.truths, said)
    for score, value in expected.items():
        assert scores[score]["value"] == pytest.approx(value, abs=1e-6), score
        assert scores[score]["low"] <= value + 1e-6
        assert scores[score]["high"] >= value - 1e-6
        assert 0 < value < 1
    summary = summarize(rows, CONFIG)
    assert {dim: cell["accuracy"]["value"] for dim, cell in summary["by"].get("dim", {}).items()} == pytest.approx(
        by_dim, abs=1e-6
    )
    if name != "vsi-bench":  # its numbers have a grade of their own
        for kind, cell in summary["by_kind"].items():
            label = next(k for k in by_kind if k.replace(" ", "_").replace("-", "_") == kind)
            assert cell["accuracy"]["value"] == pytest.approx(by_kind[label], abs=1e-6)


# -- VSI-Bench: both definitions ------------------------------------------------------------------------------


def test_the_two_overall_scores_of_vsi_bench_differ_on_the_same_answers(tmp_path: Path):
    published = FORMATS["vsi-bench"](random.Random(0), QUESTIONS, 12)
    found = read("vsi-bench", published, tmp_path)
    said = [random.Random(i).choice(truth["says"]) for i, truth in enumerate(published.truths)]
    rows = rows_of(found.benchmark, found.samples, [f"<answer>{text}</answer>" for text in said])
    scores = score_all(found.benchmark.scores, rows, CONFIG)
    assert abs(scores["overall"]["value"] - scores["overall_video_r1"]["value"]) > 0.01
    assert scores["mra_inclusive"]["value"] > scores["mra"]["value"] + 0.02


def test_mra_equals_the_published_formulas_off_the_thresholds(tmp_path: Path):
    published = FORMATS["vsi-bench"](random.Random(1), 500, 12)
    found = read("vsi-bench", published, tmp_path)
    rng = np.random.default_rng(0)
    numbers = [i for i, sample in enumerate(found.samples) if sample.problem_type == "regression"]
    assert len(numbers) == 200
    truths = np.array([float(found.samples[i].answer) for i in numbers])
    guesses = truths * rng.uniform(0.2, 1.8, len(numbers))
    rows = rows_of(found.benchmark, [found.samples[i] for i in numbers], [f"<answer>{g}</answer>" for g in guesses])
    # lmms-eval: float64, <=; Video-R1: float32, <, an epsilon under the fraction
    limits = 1 - np.linspace(0.5, 0.95, 10)
    lmms = (np.abs(guesses - truths)[:, None] / truths[:, None] <= limits).mean()
    single = np.float32
    errors = np.abs(single(guesses) - single(truths)) / (np.abs(single(truths)) + single(1e-8))
    video_r1 = (errors[:, None] < 1 - np.arange(0.5, 0.975, 0.05, dtype=single)).mean()
    scores = score_all(found.benchmark.scores, rows, CONFIG)
    assert scores["mra_inclusive"]["value"] == pytest.approx(lmms, abs=1e-6)
    assert scores["mra"]["value"] == pytest.approx(video_r1, abs=1e-6)


def test_an_interval_of_a_mean_of_means_is_that_of_the_mean_where_the_parts_are_alike():
    rng = np.random.default_rng(0)
    rows = [
        {
            "video": f"v{i // 10}",
            "kind": f"k{i % 2}",
            "metrics": {"accuracy": float(rng.random() < 0.4 + 0.02 * (i // 100))},
        }
        for i in range(500)
    ]
    config = EvaluationConfig(bootstrap_resamples=4000)
    flat = Score("", lambda row: row["metrics"]["accuracy"]).estimate(rows, config)
    nested = Score("", lambda row: row["metrics"]["accuracy"], lambda row: (row["kind"], "")).estimate(rows, config)
    assert flat is not None
    assert nested is not None
    assert nested.value == pytest.approx(flat.value)
    assert (nested.low, nested.high) == pytest.approx((flat.low, flat.high), abs=0.01)
    assert flat.high - flat.low > 0.05


def test_a_score_that_no_item_counts_for_is_left_out(tmp_path: Path):
    published = FORMATS["mmvu"](random.Random(0), 12, 4)
    found = read("mmvu", published, tmp_path)
    choices = [sample for sample in found.samples if sample.options]
    rows = rows_of(found.benchmark, choices, ["<answer>A</answer>"] * len(choices))
    assert set(score_all(found.benchmark.scores, rows, CONFIG)) == {"accuracy_choice"}


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
    rows = rows_of(found.benchmark, found.samples, responses)
    assert [row["metrics"]["clue_iou"] for row in rows] == pytest.approx(expected)
    scores = score_all(found.benchmark.scores, rows, CONFIG)
    assert scores["clue_iou"]["value"] == pytest.approx(statistics.mean(expected), abs=1e-6)
    assert scores["accuracy"]["value"] == 1
    assert 0.02 < scores["clue_iou"]["value"] < 0.5


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], 0),
        ([(0, 4)], [], 0),
        ([(0, 4)], [(0, 4)], 1),
        ([(0, 4), (2, 6)], [(3, 9)], 3 / 9),
        ([(1, 1)], [(1, 1)], 0),
        ([(5, 3)], [(3, 5)], 0),
        ([(0, float("nan"))], [(0, 1)], 0),
        ([(0, float("inf"))], [(0, 1)], 1),  # what has no end is cut at the last one known
    ],
)
def test_iou_of_unions(first, second, expected):
    assert union_iou(first, second) == pytest.approx(expected)


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
    found = load(BENCHMARKS["vrbench"], folder, lambda name: path)
    assert len(found.samples) == sum(len(row["mcq"]) for row in rows)
    assert not found.missing
    asked = [question for row in rows for question in row["mcq"].values()]
    for sample, question in zip(found.samples, asked, strict=True):
        assert sample.answer == question["answer"][0]
        assert list(sample.options) == list(question["options"].values())
    summary = load(BENCHMARKS["vrbench-summary"], folder, lambda name: path)
    assert summary.samples[0].question == f"Summary of the video: {rows[0]['video_summary']}\n{asked[0]['question']}"


# -- odd rows, and wrong ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"A": "one", "B": "two"}, {"A": "one", "B": "two"}),
        ({"a": "one", "B.": "two"}, {"A": "one", "B": "two"}),
        ({"A": "one", "B": None, "C": "three", "D": ""}, {"A": "one", "C": "three"}),
        (["A. one", "B. two", "three"], {"A": "one", "B": "two", "C": "three"}),
        (["(A) one", "(B) two"], {"A": "one", "B": "two"}),
        (["A. Smith", "Jones"], {"A": "A. Smith", "B": "Jones"}),
        (["one", None, "three"], {"A": "one", "C": "three"}),
        (["White", "White"], {"A": "White", "B": "White "}),
        ([1, 2.5], {"A": "1", "B": "2.5"}),
        ("['one', 'two']", {"A": "one", "B": "two"}),
        ('["one", "two"]', {"A": "one", "B": "two"}),
        ("A. one\nB. two\n", {"A": "one", "B": "two"}),
        (None, {}),
        ("", {}),
    ],
)
def test_options_are_read_as_published(options, expected):
    assert Entry("file.json", 1, {"options": options}).options("options") == expected


@pytest.mark.parametrize("options", [{"AB": "one"}, {"A": "x", "a": "y"}, 5, ["x"] * 27])
def test_what_is_no_set_of_options_is_refused_with_its_place(options):
    with pytest.raises(UserError, match=r"^file.json, row 7, field 'options': "):
        Entry("file.json", 7, {"options": options}).options("options")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. a dog", "B"),
        ("B: as seen", "B"),
        ("B - a dog", "B"),
        ("B because of it", "B"),
        ("A dog", "B"),
        ("a  dog.", "B"),
    ],
)
def test_true_letters_are_read_with_text_behind_them(answer, expected):
    options = {"A": "a cat", "B": "a dog"}
    assert Entry("f", 1, {"answer": answer}).letter("answer", options) == expected


@pytest.mark.parametrize("answer", ["C", "a bird", "", None, 3, ["A"], "AB"])
def test_an_answer_that_is_no_option_is_refused(answer):
    with pytest.raises(UserError, match="f, row 1, field 'answer'"):
        Entry("f", 1, {"answer": answer}).letter("answer", {"A": "a cat", "B": "a dog"})


def test_the_text_of_an_option_wins_over_a_letter_where_answers_are_texts():
    options = {"A": "B", "B": "A"}
    entry = Entry("f", 1, {"answer": "A"})
    assert entry.letter("answer", options) == "A"
    assert entry.letter("answer", options, by_text=True) == "B"


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


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"[{]", "test_Video-Holmes.json: not readable as json"),
        (b"\xff\xfe\x00", "not readable as json"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "row 1: expected an object, got int"),
        (b"[]", "no question in test_Video-Holmes.json"),
        (b'{"video ID": "v"}', "row 1, field 'Options'|row 1, field 'Question ID'|row 1, field"),
    ],
)
def test_a_damaged_annotation_file_is_named(contents, said, tmp_path: Path):
    (tmp_path / "test_Video-Holmes.json").write_bytes(contents)
    folder = DataFolder("data", ["test_Video-Holmes.json"])
    with pytest.raises(UserError, match=said):
        load(BENCHMARKS["video-holmes"], folder, lambda name: tmp_path / name)


def test_a_folder_without_the_annotations_or_without_any_video_says_what_is_expected(tmp_path: Path):
    with pytest.raises(UserError, match=r"data: no annotation file; expected cgbench.json or cgbench_mini.json"):
        load(BENCHMARKS["cg-bench"], DataFolder("data", ["a.mp4"]), lambda name: tmp_path)
    published = FORMATS["cg-bench"](random.Random(0), 8, 2)
    published.write(tmp_path)
    with pytest.raises(UserError, match=r"none of the videos of CG-Bench is there \(no video: none of BV0.mp4"):
        load(BENCHMARKS["cg-bench"], DataFolder("data", list(published.files)), lambda name: tmp_path / name)


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


def test_questions_without_a_video_stay_in_the_set(tmp_path: Path):
    published = FORMATS["videomme"](random.Random(0), 12, 4)
    found = read("videomme", published, tmp_path)
    lost = [sample.id for sample in found.samples if "mme3" in sample.media.uri]
    assert len(found.samples) == 12
    assert len(lost) == 3
    assert list(found.missing) == lost
    assert "none of data/mme3.mp4, mme3.mp4 in data" in found.missing[lost[0]]


def test_ids_that_repeat_are_told_apart(tmp_path: Path):
    published = FORMATS["videomme"](random.Random(0), 3, 2)
    for row in published.files["videomme/test-00000-of-00001.parquet"]:
        row["question_id"] = "001-1"
    assert [sample.id for sample in read("videomme", published, tmp_path).samples] == ["001-1", "001-1#2", "001-1#3"]


@pytest.mark.parametrize(
    ("names", "candidates", "expected"),
    [
        (["videos/Art/0.mp4"], ["videos/Art/0.mp4"], "videos/Art/0.mp4"),
        (["MMVU/videos/Art/0.mp4", "MMVU/videos/Law/0.mp4"], ["videos/Art/0.mp4"], "MMVU/videos/Art/0.mp4"),
        (["videos/Art/0.webm"], ["videos/Art/0.mp4"], "videos/Art/0.webm"),
        (["a/abc.mkv"], ["videos/abc.mp4", "abc.mp4"], "a/abc.mkv"),
        (["a/v1.2.mp4"], ["v1.2"], "a/v1.2.mp4"),
        (["a/abc.jpg", "a/abc.webm"], ["abc.mp4"], "a/abc.webm"),
        (["images/abc.png"], ["images/abc.png"], "images/abc.png"),
        # another video under the same last name must never stand in
        (["videos/Law/0.mp4"], ["videos/Art/0.mp4"], None),
        (["x/0.mp4", "y/0.mp4"], ["0.mp4"], None),
        (["xabc.mp4"], ["abc.mp4"], None),
        (["abc.json"], ["abc.mp4"], None),
        (["etc/passwd"], ["../../etc/passwd"], None),
    ],
)
def test_a_video_is_found_where_people_put_it_and_never_mistaken(names, candidates, expected):
    assert DataFolder("data", names).video(candidates) == expected


def test_parts_of_videos_that_were_cut_already_are_not_cut_again(tmp_path: Path):
    published = FORMATS["mvbench"](random.Random(0), 12, 4)
    found = read("mvbench", published, tmp_path / "whole")
    assert {(s.media.start_s, s.media.end_s) for s in found.samples if "Charades" in s.media.uri} == {(0.5, 2.5)}
    assert {s.media.start_s for s in found.samples if "Charades" not in s.media.uri} == {None}
    published.videos = {k: v.replace("Charades_v1_480", "Charades_segment") for k, v in published.videos.items()}
    found = read("mvbench", published, tmp_path / "cut")
    assert {s.media.start_s for s in found.samples if s.id not in found.missing} == {None}


# -- names, and sets of one's own ---------------------------------------------------------------------------


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UserError, match="unknown benchmark 'video_holms'; did you mean 'video-holmes'"):
        find_benchmark("video_holms")


def test_every_benchmark_says_what_it_asks_and_where_it_is_from():
    assert set(BENCHMARKS) == set(FORMATS)
    for benchmark in BENCHMARKS.values():
        assert benchmark.asks
        assert "arXiv" in benchmark.source
        assert all(score.definition for score in benchmark.scores.values())


OWN = """
name: mine
annotations: qa.jsonl
videos: clips/{video}.mp4
fields: {id: key, options: choices, answer: truth, kind: category, start_s: from}
"""


def test_a_set_of_ones_own_is_described_by_a_short_yaml_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(OWN)
    rows = [
        {
            "key": "k1",
            "video": "a",
            "question": "Who?",
            "choices": ["x", "y"],
            "truth": "y",
            "category": "p",
            "from": 1,
        },
        {"key": "k2", "video": "b", "question": "How many?", "truth": 3, "category": "q"},
        {"key": "k3", "video": "b", "question": "Tell.", "truth": "a story", "category": "q"},
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = find_benchmark(str(tmp_path / "mine.yaml"))
    found = load(benchmark, DataFolder("data", ["qa.jsonl", "clips/a.mp4", "clips/b.mp4"]), lambda n: tmp_path / n)
    assert [(s.id, s.problem_type, s.answer) for s in found.samples] == [
        ("k1", "multiple_choice", "B"),
        ("k2", "numerical", "3"),
        ("k3", "free_form", "a story"),
    ]
    assert found.samples[0].media.start_s == 1
    rows_ = rows_of(benchmark, found.samples, ["<answer>B</answer>", "<answer>4</answer>", "<answer>a story</answer>"])
    assert score_all(benchmark.scores, rows_, CONFIG)["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_a_set_of_ones_own_may_hold_rows_of_ours_with_evidence(tmp_path: Path):
    evidence = [{"start_s": 1, "end_s": 3, "caption": "a dog runs"}]
    sample = Sample.model_validate(
        {
            "id": "s",
            "media": {"kind": "video", "uri": "a.mp4"},
            "question": "What?",
            "problem_type": "free_form",
            "answer": "a dog runs",
            "evidence": evidence,
        }
    )
    write_samples(tmp_path / "rows.parquet", [sample])
    (tmp_path / "mine.yaml").write_text("name: mine\nannotations: rows.parquet\n")
    benchmark = find_benchmark(str(tmp_path / "mine.yaml"))
    found = load(benchmark, DataFolder("data", ["rows.parquet", "a.mp4"]), lambda name: tmp_path / name)
    assert found.samples == [sample]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: mine\n", "'annotations': Field required"),
        ("name: mine\nannotation: x\nannotations: x", "unknown key 'annotation'; did you mean 'annotations'"),
        ("name: Mine!\nannotations: x", "'name'"),
        ("name: mine\nannotations: x\nvideos: clips\nfields: {}", "'videos' must hold {video}"),
        ("a: [", "not YAML"),
        ("- a", "should be a valid dictionary"),
    ],
)
def test_a_mistake_in_the_description_is_one_line(text, said, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        find_benchmark(str(path))
    assert "\n" not in str(raised.value)
