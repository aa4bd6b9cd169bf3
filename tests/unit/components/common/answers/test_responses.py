"""Responses are read, whatever they are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vthink.components.common.answers.formats import is_video_r1_format, is_video_thinker_format
from vthink.components.common.answers.grading import (
    extract_letter,
    extract_number,
    grade,
    mean_relative_accuracy,
    rouge_f,
)
from vthink.components.common.answers.responses import (
    MAX_SEGMENTS,
    Segment,
    format_span,
    grounding_scores,
    parse_response,
    parse_spans,
    published_answer,
    span_iou,
)

from .examples import R1, THINKER, TRUTHS, sample


def test_video_thinker_response_yields_segments_reasoning_and_answer() -> None:
    parsed = parse_response(THINKER)
    assert parsed.segments == (
        Segment(1.0, 3.0, "a red square appears", "It is first."),
        Segment(5.0, 3607.0, "a blue circle", "It is second."),
    )
    assert parsed.reasoning == "Then something else happens.\nSo red was first."
    assert (parsed.answer, parsed.tagged, parsed.text) == ("A", True, THINKER)


def test_video_r1_response_yields_reasoning_and_answer() -> None:
    parsed = parse_response(R1)
    assert parsed.segments == ()
    assert parsed.reasoning == "It moves left,\nthen up."
    assert parsed.answer == "left"


@pytest.mark.parametrize(
    ("text", "answer", "tagged"),
    [
        ("<answer>A</answer> no, <answer> B </answer>", "B", True),
        ("<ANSWER>B</ANSWER>", "B", True),
        ("Write <answer></answer>.\n<think>x</think><answer>C</answer>", "C", True),
        ("<think>perhaps <answer>A</answer></think><answer>B</answer>", "B", True),
        ("<answer>A<answer>B</answer>", "B", True),
        ("<answer></answer>", "", True),
        ("I think so. Final answer: B\nbecause", "B", False),
        ("**Final Answer**: (C)", "(C)", False),
        ("Final answer: A ... Final answer is: B", "B", False),
        ("Final answer:", None, False),
        ("B. right", "B", False),
        ("B\nThe square goes right.", "B", False),
        ("A red square moves left.", None, False),
        ("<answer>B", None, False),
        ("no idea", None, False),
        ("", None, False),
    ],
)
def test_answer_is_the_last_tag_else_a_final_answer_else_a_leading_letter(
    text: str, answer: str | None, tagged: bool
) -> None:
    parsed = parse_response(text)
    assert (parsed.answer, parsed.tagged) == (answer, tagged)


def test_damaged_responses_still_yield_what_is_readable() -> None:
    assert parse_response(None) == parse_response("")
    assert parse_response("<time>soon</time><caption>c</caption><think>t</think>").segments == ()
    no_caption = parse_response("<time>00:00-00:01</time><think>t</think><answer>A</answer>")
    assert no_caption.segments == (Segment(0, 1, "", "t"),)
    cut_off = parse_response("<time>00:00-00:01</time><caption>c</caption><think>it mo")
    assert cut_off.segments == (Segment(0, 1, "c", ""),)
    assert cut_off.answer is None
    two = parse_response("<time>00:00-00:01, 00:02-00:03</time><caption>c</caption><think>t</think>")
    assert [(s.start_s, s.caption) for s in two.segments] == [(0, "c"), (2, "c")]


def test_the_published_reader_takes_the_first_tag_else_everything() -> None:
    assert published_answer("<think>a</think><answer> B </answer><answer>C</answer>") == "B"
    assert published_answer("B") == "B"
    assert published_answer("<answer></answer>") == "<answer></answer>"
    assert published_answer("</answer><answer>B") == "</answer><answer>B"
    assert published_answer(None) is None


def test_a_repeated_prompt_brings_no_answer_of_its_own() -> None:
    hint = "Put only the number inside <answer></answer>, for example <answer>3</answer>."
    assert parse_response(hint).answer == ""  # of the empty tags
    assert grade(sample("numerical"), parse_response(hint).answer) == 0.0
    assert parse_response(hint + "<answer>4</answer>").answer == "4"


MEGABYTE = 10**6


HOSTILE = {
    "open tags": "<think>" * (MEGABYTE // 7),
    "angle brackets": "<" * MEGABYTE,
    "digits in time": "<time>" + "0" * MEGABYTE,
    "endless ranges": "00:01-" * (MEGABYTE // 6),
    "endless segments": "<time>00:01-00:02</time><caption>a</caption><think>b</think>" * (MEGABYTE // 58),
    "endless final answers": "final answer: " * (MEGABYTE // 14),
    "spaces": "A" + " " * MEGABYTE + "B",
    "stars": "*" * MEGABYTE,
    "commas": "1," * (MEGABYTE // 2),
    "one answer of a megabyte": "<answer>" + "a b " * (MEGABYTE // 4) + "</answer>",
    "one number of a megabyte": "<answer>" + "9" * MEGABYTE + "</answer>",
    "null bytes": "\0" * MEGABYTE,
    "answers": "<answer>A</answer>" * (MEGABYTE // 18),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_is_read_and_graded_in_linear_time(name: str) -> None:
    text = HOSTILE[name]
    rouge_f("a", "a")  # its import takes longer than a second and is not what is measured
    parsed = parse_response(text)
    readers: list[Callable[[str], object]] = [parse_response, is_video_r1_format, is_video_thinker_format]
    readers += [extract_letter, extract_number, parse_spans, lambda t: mean_relative_accuracy(t, "3")]
    for problem_type in TRUTHS:
        row = sample(problem_type)
        readers += [lambda t, row=row: grade(row, t)]
        assert grade(row, text) == grade(row, parsed.answer) == 0.0
    for read in readers:
        start = time.process_time()
        read(text)
        # Linear readers take a tenth of a second; a quadratic one would take hours.
        assert time.process_time() - start < 30.0
    assert len(parsed.segments) <= MAX_SEGMENTS


TAGS = [f"<{slash}{tag}>" for tag in ("time", "caption", "think", "answer") for slash in ("", "/")]


PIECES = ["00:01-00:03", "0.0-5.0 seconds", "A", "B.", "3", "1,000", "nan", "Final answer:", " ", "\n", "-"]


TAGGED_TEXT = st.lists(st.sampled_from(TAGS + PIECES) | st.text(max_size=8), max_size=24).map("".join)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(text=TAGGED_TEXT, problem_type=st.sampled_from(sorted(TRUTHS)))
def test_no_response_raises_and_every_grade_is_within_bounds(text: str, problem_type: str) -> None:
    parsed = parse_response(text)
    is_video_r1_format(text), is_video_thinker_format(text)
    for answer in (text, parsed.answer):
        assert 0.0 <= grade(sample(problem_type), answer) <= 1.0
    for segment in parsed.segments:
        assert 0 <= segment.start_s <= segment.end_s < math.inf
    assert 0.0 <= mean_relative_accuracy(text, "3") <= 1.0


# -- spans of time


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("00:01-00:03", [(1, 3)]),
        ("00:01 - 00:03", [(1, 3)]),
        ("75:30-76:00", [(4530, 4560)]),
        ("01:02:03-01:02:10", [(3723, 3730)]),
        ("0.0-5.0 seconds", [(0, 5)]),
        ("0.5s - 2.25s", [(0.5, 2.25)]),
        ("from 3 to 12.5 s", [(3, 12.5)]),
        ("00:01.5–00:03", [(1.5, 3)]),
        ("00:01-00:03, 00:07-00:09", [(1, 3), (7, 9)]),
        ("00:04-00:04", [(4, 4)]),
        ("00:03-00:01", []),
        ("00:75-00:80", []),
        ("nan-inf", []),
        ("-1-2", [(1, 2)]),
        ("at the start", []),
        ("", []),
    ],
)
def test_times_are_read_in_both_notations(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse_spans(text) == spans


@pytest.mark.parametrize(("start", "end"), [(0, 4), (59, 60), (3599, 3600), (3661, 7322), (0.5, 2.25), (0, 1.5)])
def test_written_times_are_read_back_exactly(start: float, end: float) -> None:
    assert parse_spans(format_span(start, end)) == [(start, end)]


def test_whole_seconds_are_written_as_a_clock() -> None:
    assert format_span(0, 4) == "00:00-00:04"
    assert format_span(3600, 3661) == "01:00:00-01:01:01"
    assert format_span(0.5, 12) == "0.5-12.0 seconds"


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0, 4), (0, 4), 1.0),
        ((0, 4), (2, 6), 1 / 3),
        ((0, 1), (2, 3), 0.0),
        ((0, 4), (1, 2), 0.25),
        ((1, 1), (1, 1), 0.0),
        ((4, 0), (0, 4), 0.0),
        ((0, math.nan), (0, 4), 0.0),
        ((0, math.inf), (0, 4), 0.0),
    ],
)
def test_span_iou(a: tuple[float, float], b: tuple[float, float], iou: float) -> None:
    assert span_iou(a, b) == pytest.approx(iou)


def test_grounding_takes_the_best_prediction_per_true_span() -> None:
    scores = grounding_scores([(0, 4), (9, 10)], [(0, 4), (2, 6), (20, 21)])
    assert scores == pytest.approx({"miou": (1 + 1 / 3) / 3, "r@0.3": 2 / 3, "r@0.5": 1 / 3, "r@0.7": 1 / 3})
    assert grounding_scores([], [(0, 1)]) == {"miou": 0.0, "r@0.3": 0.0, "r@0.5": 0.0, "r@0.7": 0.0}
    with pytest.raises(ValueError, match="true span"):
        grounding_scores([(0, 1)], [])
