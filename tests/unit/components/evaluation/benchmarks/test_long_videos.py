"""LVBench, LongVideoBench and MLVU in their published fields."""

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.scores import estimates

from ..published import Published
from .reading import RESAMPLING, graded, read

LVBENCH = {
    "key": "abc",
    "type": "sport",
    "video_info": {"duration_minutes": 61},
    "qa": [
        {
            "uid": "12",
            "question": "Who wins (in the end)?\n(A) red\n(B) blue\n(C) green\n(D) nobody",
            "answer": "C",
            "question_type": ["reasoning", "entity recognition"],
            "time_reference": "00:15-01:19",
        },
        {
            "uid": "13",
            "question": "When?\n(A) early\n(B) late",
            "answer": "A",
            "question_type": ["key information retrieval"],
            "time_reference": "",
        },
    ],
}
LONGVIDEOBENCH = {
    "id": "v_0",
    "video_id": "v",
    "video_path": "v.mp4",
    "question": "Who appears?",
    "candidates": ["a man", "a dog", "a tree", "a car", "a cat"],
    "correct_choice": 4,
    "question_category": "S2E",
    "duration_group": 600,
    "topic_category": "KG",
}


def videos(*names: str) -> dict[str, str]:
    """These, and the last, which stays missing."""
    return {name: name for name in (*names, "missing.mp4")}


def test_a_row_of_lvbench_is_a_video_with_its_questions(tmp_path):
    published = Published({"video_info.meta.jsonl": [LVBENCH]}, videos=videos("all_videos/abc.mp4"))
    first, second = read("lvbench", published, tmp_path).samples
    assert (first.id, first.question, first.options) == (
        "12",
        "Who wins (in the end)?",
        ("red", "blue", "green", "nobody"),
    )
    assert (first.answer, first.metadata["kind"]) == ("C", "entity recognition + reasoning")
    assert [(span.start_s, span.end_s) for span in first.evidence] == [(15, 79)]
    assert (second.answer, second.options, second.evidence) == ("A", ("early", "late"), ())


def test_the_right_candidate_of_longvideobench_is_named_by_its_place(tmp_path):
    published = Published({"lvb_val.json": [LONGVIDEOBENCH]}, videos=videos("videos/v.mp4"))
    (sample,) = read("longvideobench", published, tmp_path).samples
    assert (sample.answer, sample.options[4], sample.metadata["groups"]["duration"]) == ("E", "a cat", "600")
    for place in (5, -1, None, "4"):
        wrong = Published({"lvb_val.json": [LONGVIDEOBENCH | {"correct_choice": place}]}, videos=videos("videos/v.mp4"))
        with pytest.raises(
            UserError, match=r"lvb_val\.json, row 1, field 'correct_choice': expected the place of one of 5"
        ):
            read("longvideobench", wrong, tmp_path)


def test_tasks_of_mlvu_count_alike_however_many_questions_they_have(tmp_path):
    row = {"video": "a.mp4", "question": "What?", "candidates": ["up", "down"], "duration": 9.0}
    plot = [row | {"answer": "up", "question_type": "plotQA"}] * 3
    count = [row | {"answer": "down", "question_type": "count"}]
    files = {"json/1_plotQA.json": plot, "json/4_count.json": count}
    found = read("mlvu", Published(files, videos=videos("video/1_plotQA/a.mp4", "video/4_count/a.mp4")), tmp_path)
    assert [(s.metadata["kind"], s.answer, s.media.uri) for s in found.samples] == [
        *[("plotQA", "A", "video/1_plotQA/a.mp4")] * 3,
        ("count", "B", "video/4_count/a.mp4"),
    ]
    items = graded(found.benchmark, found.samples, ["<answer>A</answer>"] * 4)
    scores = estimates(found.benchmark.scores, items, RESAMPLING)
    assert (scores["m_avg"].value, scores["accuracy"].value) == (0.5, 0.75)
