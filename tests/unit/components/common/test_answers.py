from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vthink.components.common.answers.formats import ResponseError, follows_format, write_response
from vthink.components.common.answers.grading import (
    grade,
    is_correct,
    mean_relative_accuracy,
    rouge_f,
    word_error_rate,
)
from vthink.components.common.answers.responses import MAX_SEGMENTS, Segment, parse_response, published_answer
from vthink.components.common.answers.spans import format_span, grounding_scores, parse_spans, span_iou
from vthink.components.common.answers.values import MAX_ANSWER_CHARS, extract_letter, extract_number
from vthink.components.common.answers.video_r1 import is_video_r1_format
from vthink.components.common.answers.video_thinker import is_video_thinker_format
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.data_prep.config import QuestionKind, SynthesizeConfig
from vthink.components.data_prep.world.questions import rows
from vthink.components.data_prep.world.scenes import scenes

TRUTHS = {
    "multiple_choice": "B",
    "numerical": "3",
    "ocr": "exit to the left",
    "free_form": "The red square moves left.",
    "regression": "4.0",
}


def sample(problem_type: str = "multiple_choice", **changes: object) -> Sample:
    row: dict[str, object] = {
        "id": "row-1",
        "media": {"kind": "video", "uri": "a.mp4"},
        "question": "What happens?",
        "options": ["left", "right", "up", "down"] if problem_type == "multiple_choice" else [],
        "problem_type": problem_type,
        "answer": TRUTHS[problem_type],
    }
    return Sample.model_validate(row | changes)


def evidence(*spans: tuple[float, float, str]) -> list[Evidence]:
    return [Evidence(start_s=start, end_s=end, caption=caption) for start, end, caption in spans]


THINKER = (
    "<time>00:01-00:03</time><caption>a red square appears</caption><think>It is first.</think>\n"
    "Then something else happens.\n"
    "<time>00:05 - 01:00:07</time>\n<caption>a blue circle</caption>\n<think>It is second.</think>"
    "<think>So red was first.</think>\n<answer>A</answer>"
)
R1 = "<think>It moves left,\nthen up.</think>\n<answer>left</answer>"


# --------------------------------------------------------------------------------------------------- reading


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


@pytest.mark.parametrize(("start", "end"), [(0, 4), (59, 60), (3599, 3600), (3661, 7322), (0.5, 2.25), (0, 1.5)])
def test_written_times_are_read_back_exactly(start: float, end: float) -> None:
    assert parse_spans(format_span(start, end)) == [(start, end)]


def test_whole_seconds_are_written_as_a_clock() -> None:
    assert format_span(0, 4) == "00:00-00:04"
    assert format_span(3600, 3661) == "01:00:00-01:01:01"
    assert format_span(0.5, 12) == "0.5-12.0 seconds"


# --------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("text", "video_r1", "video_thinker"),
    [
        (R1, True, False),
        (THINKER, False, True),
        ("  " + R1 + "\n", True, False),
        ("<time>00:00-00:01</time><caption>c</caption><think>t</think><answer>A</answer>", False, True),
        ("<time>00:00-00:01</time><caption>c</caption><answer>A</answer>", False, False),
        ("<time>00:00-00:01</time><think>t</think><answer>A</answer>", False, False),
        ("<caption>c</caption><think>t</think><answer>A</answer>", False, False),
        ("<time>early</time><caption>c</caption><think>t</think><answer>A</answer>", False, False),
        ("<time>00:00-00:01</time><caption>c</caption><think>t</think>", False, False),
        ("<time>00:00-00:01</time><caption>c</caption><think>t</think><answer>A</answer> B", False, False),
        ("<time>00:00-00:01</time><caption>c</caption><think>t<answer>A</answer></think>", False, False),
        ("<think>a</think><think>b</think><answer>A</answer>", False, False),
        ("<think>a</think><answer>A</answer><answer>B</answer>", False, False),
        ("<think>a<think>b</think></think><answer>A</answer>", False, False),
        ("<think>a</think>so <answer>A</answer>", False, False),
        ("<think></think><answer>A</answer>", False, False),
        ("<think>a</think><answer> </answer>", False, False),
        ("<think>a</think><answer>A", False, False),
        ("A", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
def test_formats_are_recognised(text: str | None, video_r1: bool, video_thinker: bool) -> None:
    assert is_video_r1_format(text) is video_r1
    assert is_video_thinker_format(text) is video_thinker


def test_a_picture_needs_no_segments() -> None:
    text = "<think>The square is blue.</think><answer>C</answer>"
    picture = sample(media={"kind": "image", "uri": "a.png"})
    assert follows_format(picture, text, "video_thinker")
    assert not follows_format(sample(), text, "video_thinker")
    assert follows_format(sample(), text, "video_r1")


# --------------------------------------------------------------------------------------------------- grading


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B. ", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("B) right", "B"),
        ("B. A man walks", "B"),
        ("B. 3", "B"),
        ("B: right", "B"),
        ("Answer: B", "B"),
        ("The correct answer is (B)", "B"),
        ("E", None),
        ("BC", None),
        ("A, B", None),
        ("A or B", None),
        ("A/B/C/D", None),
        ("a man walks", None),
        ("A man walks", None),
        ("I'm unsure", None),
        ("right", None),
        ("", None),
    ],
)
def test_option_letters_are_read_tolerantly_but_only_one_counts(answer: str, letter: str | None) -> None:
    assert extract_letter(answer, 4) == letter
    assert grade(sample(), answer) == float(letter == "B")


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", 3),
        ("3.", 3),
        ("3.0 shapes", 3),
        ("1,000", 1000),
        ("1,234,567.5", 1234567.5),
        ("-2", -2),
        ("−2", -2),
        (".5", 0.5),
        ("1e3", 1000),
        ("about 2.5 s", 2.5),
        ("$5", 5),
        ("3 shapes: 2 red and 1 blue", 3),
        ("either 2 or 3", None),
        ("1,2,3", None),
        ("00:03", None),
        ("3/4", 0.75),
        ("1e999", None),
        ("nan", None),
        ("inf", None),
        ("three", None),
        ("", None),
    ],
)
def test_numbers_are_read_tolerantly(answer: str, number: float | None) -> None:
    assert extract_number(answer) == number


@pytest.mark.parametrize(
    ("problem_type", "truth", "answer", "expected"),
    [
        ("numerical", "3", "3.001", 1.0),
        ("numerical", "3", "3.02", 0.0),
        ("numerical", "1000", "1,000", 1.0),
        ("numerical", "1,000", "1000", 1.0),
        ("numerical", ".5", "0.5", 1.0),
        ("numerical", "0", "0", 1.0),
        ("ocr", "exit to the left", "exit to the left", 1.0),
        ("ocr", "exit to the left", "  exit  to the\nleft", 1.0),
        ("ocr", "exit to the left", "exit to the right", 0.75),
        ("ocr", "exit to the left", "exit", 0.25),
        ("ocr", "exit", "it says exit exit exit", 0.0),
        ("regression", "4", "4", 1.0),
        ("regression", "4", "5", 0.75),
        ("regression", "4", "3 seconds", 0.75),
        ("regression", "4", "9", 0.0),
        ("regression", "-4", "-3", 0.75),
        ("regression", "0", "0", 1.0),
        ("regression", "0", "0.1", 0.0),
        ("free_form", "The red square moves left.", "the red square moves left", 1.0),
        ("free_form", "left", "Left.", 1.0),
        ("free_form", "左", "左", 1.0),
        ("free_form", "左", "右", 0.0),
        ("free_form", "The red square moves left.", "nothing", 0.0),
    ],
)
def test_answers_are_graded_by_problem_type(problem_type: str, truth: str, answer: str, expected: float) -> None:
    assert grade(sample(problem_type, answer=truth), answer) == pytest.approx(expected)


TABLE = [json.loads(line) for line in (Path(__file__).parent / "answers_table.jsonl").read_text().splitlines()]
"""Answers with the grades that a person gave them: rule, mode, problem type, truth, answer, grade."""
QUESTION = "What happens to the square in the end?"


def test_the_table_covers_every_rule_in_both_modes_with_right_and_wrong_answers() -> None:
    assert len(TABLE) >= 300
    assert len({(row["mode"], row["type"], row["truth"], row["answer"]) for row in TABLE}) == len(TABLE)
    for problem_type in TRUTHS:
        for mode in ("strict", "paper"):
            grades = [row["grade"] for row in TABLE if (row["type"], row["mode"]) == (problem_type, mode)]
            assert max(grades) > 0.99
            assert min(grades) == 0


@pytest.mark.parametrize("rule", sorted({row["rule"] for row in TABLE}))
def test_answers_get_the_grades_that_were_worked_out_by_hand(rule: str) -> None:
    wrong = []
    for row in TABLE:
        if row["rule"] == rule:
            item = sample(row["type"], answer=row["truth"], question=QUESTION)
            found = grade(item, row["answer"], row["mode"])
            if found != pytest.approx(row["grade"], abs=1e-9):
                wrong.append(f"{row['answer']!r} for {row['truth']!r}: {found}, expected {row['grade']}")
    assert not wrong, "\n".join(wrong)


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


WRAPPINGS = [
    ("", ""), ("**", "**"), ("`", "`"), ('"', '"'), ("(", ")"), ("[", "]"), ("$", "$"), ("\\boxed{", "}"),
    ("\\text{", "}"), ("<answer>", "</answer>"), ("“", "”"), ("\\(", "\\)"), (" ", "\n"), ("\t\n", "  "),
]  # fmt: skip
ANSWERS = {
    "multiple_choice": ["B", "A", "B. right", "A or B", "right", "C) up", "the answer is B", "A man walks"],
    "numerical": ["3", "4", "3 shapes", "2 or 3", "3/1", "1,000", "about 3", "x"],
    "regression": ["4", "5", "3 m", "4 to 5", "9/2", "-4", "4e0", "none"],
    "ocr": ["exit to the left", "exit", "to left", "x", "Exit To"],
    "free_form": ["The red square moves left.", "red square", "a blue circle"],
}
WRONG = {
    "multiple_choice": ["A", "C.", "(D)", "a", "left"],
    "numerical": ["4", "-3", "2.5 m", "30"],
    "regression": ["5", "3 m", "2", "100"],
    "ocr": ["exit", "left", "no way out", "exit to the"],
}
PADDING = st.text(st.sampled_from("ABCDabcd0123456789.,;:/()-+*=$\\{}^ \n<>orandtheisnx"), max_size=24)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(data=st.data(), problem_type=st.sampled_from(sorted(ANSWERS)))
def test_whitespace_case_and_wrapping_never_change_a_grade(data: st.DataObject, problem_type: str) -> None:
    answer = data.draw(st.sampled_from(ANSWERS[problem_type]))
    expected = grade(sample(problem_type), answer)
    changed = data.draw(st.sampled_from([str, str.upper, str.lower, str.title]))(answer)
    changed = data.draw(st.sampled_from([" ", "  ", "\n", "\t "])).join(changed.split(" "))
    for left, right in data.draw(st.lists(st.sampled_from(WRAPPINGS), max_size=3)):
        changed = f"{left}{changed}{right}"
    assert grade(sample(problem_type), changed) == pytest.approx(expected), changed


@settings(deadline=None, max_examples=600, derandomize=True)
@given(data=st.data(), problem_type=st.sampled_from(sorted(WRONG)), padding=PADDING)
def test_a_longer_wrong_answer_never_gains(data: st.DataObject, problem_type: str, padding: str) -> None:
    """Free-form answers are left out: words that are right are worth something there, and in OCR too."""
    answer = data.draw(st.sampled_from(WRONG[problem_type]))
    if problem_type == "ocr":
        padding = " ".join(word for word in padding.split() if word.lower() not in TRUTHS["ocr"].split())
    assert grade(sample(problem_type), f"{answer} {padding}") <= grade(sample(problem_type), answer) + 1e-9


def test_rouge_f_is_the_mean_of_three_hand_computed_scores() -> None:
    # "red square" against "red square left": unigrams 2/2 and 2/3, bigrams 1/1 and 1/2, LCS as unigrams.
    expected = (0.8 + 2 / 3 + 0.8) / 3
    assert rouge_f("red square", "red square left") == pytest.approx(expected)


def test_word_error_rate_counts_word_edits() -> None:
    assert word_error_rate("a x c d", "a b c") == pytest.approx(2 / 3)
    assert word_error_rate("", "a b") == 1.0
    assert word_error_rate("", " ") == 0.0
    assert word_error_rate("a", " ") == math.inf


@pytest.mark.parametrize(
    ("problem_type", "right", "wrong"),
    [
        ("multiple_choice", "B", "A"),
        ("numerical", "3", "4"),
        ("ocr", "exit to the left", "exit to the right"),
        ("free_form", "a red square moves left", "a blue circle goes up"),
        ("regression", "4.2", "4.21"),
    ],
)
def test_an_answer_is_correct_from_a_threshold_of_its_type(problem_type: str, right: str, wrong: str) -> None:
    assert is_correct(sample(problem_type), right)
    assert not is_correct(sample(problem_type), wrong)


@pytest.mark.parametrize(
    ("predicted", "truth", "exclusive", "inclusive"),
    [
        (10, 10, 1.0, 1.0),
        (9.5, 10, 0.9, 1.0),
        (8, 10, 0.6, 0.7),
        (7.9, 10, 0.6, 0.6),
        (5, 10, 0.0, 0.1),
        (15, 10, 0.0, 0.1),
        (4, 10, 0.0, 0.0),
        ("about 9.5 m", "10", 0.9, 1.0),
        (0, 0, 1.0, 1.0),
        (1, 0, 0.0, 0.0),
        (math.nan, 10, 0.0, 0.0),
        (math.inf, 10, 0.0, 0.0),
        (None, 10, 0.0, 0.0),
        ("no idea", 10, 0.0, 0.0),
    ],
)
def test_mean_relative_accuracy_in_both_definitions(
    predicted: float | str | None, truth: float | str, exclusive: float, inclusive: float
) -> None:
    assert mean_relative_accuracy(predicted, truth) == pytest.approx(exclusive)
    assert mean_relative_accuracy(predicted, truth, inclusive=True) == pytest.approx(inclusive)


# ------------------------------------------------------------------------------------------------- grounding


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


# --------------------------------------------------------------------------------------------- hostile input

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


@pytest.mark.parametrize("problem_type", TRUTHS)
@pytest.mark.parametrize("answer", [None, "", " ", "nan", "inf", "-inf", "<answer>", "\ud800", "A" * 10**5, 3, b"B"])
def test_answers_that_are_none_are_worth_nothing(problem_type: str, answer: object) -> None:
    assert grade(sample(problem_type), answer) == 0.0  # type: ignore[arg-type]
    assert not is_correct(sample(problem_type), answer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "\\pi" + "9" * 70 + "!",
        "\\sqrt{" * 12,
        "\\frac{1}{" * 8 + "2" + "}" * 8 + "!",
        "9" * 12 + "^{99}" + "^{99}" * 10 + "\\pi",
        "\\pi " * 15 + "!",
        "(" * 40 + "\\pi" + ")" * 36,
    ],
)
def test_latex_that_was_made_to_take_long_does_not(text: str) -> None:
    extract_number("\\frac{1}{2}")  # sympy takes half a second to import
    started = time.process_time()
    value = extract_number(text)
    assert value is None or math.isfinite(value)
    assert time.process_time() - started < 5.0


def test_a_right_answer_behind_too_much_text_is_worth_nothing() -> None:
    assert grade(sample(), "B" + "." * MAX_ANSWER_CHARS) == 0.0
    assert grade(sample(), "B" + "." * 10) == 1.0


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


# --------------------------------------------------------------------------------------------------- writing

ALL_KINDS: dict[QuestionKind, float] = dict.fromkeys(
    ("direction", "order", "count", "ocr", "speed", "duration", "describe"), 1.0
)
WORLD = [
    row
    for scene in scenes(SynthesizeConfig(num_train=160, num_validation=0, num_test=0, mix=ALL_KINDS, images=0.2))
    for row in rows(scene)
]


@pytest.mark.parametrize("style", ["video_thinker", "video_r1"])
def test_every_written_response_of_the_world_parses_back_has_its_format_and_is_graded_1(style: str) -> None:
    kinds = set()
    for row in WORLD:
        text = write_response(row, style)  # type: ignore[arg-type]
        parsed = parse_response(text)
        assert follows_format(row, text, style), text  # type: ignore[arg-type]
        assert grade(row, parsed.answer) == pytest.approx(1.0), text
        assert is_correct(row, parsed.answer)
        if style == "video_thinker":
            spans = [(e.start_s, e.end_s, e.caption) for e in row.evidence]
            assert [(s.start_s, s.end_s, s.caption) for s in parsed.segments] == spans
            assert all(s.thought for s in parsed.segments)
            assert " seconds</time>" not in text  # whole seconds, said exactly by MM:SS
        kinds.add(row.metadata["kind"])
    assert len(kinds) == 9


def test_a_written_response_is_compact() -> None:
    row = sample(
        reasoning="The red square moves left.", evidence=evidence((0, 4, "the red square moves left")), answer="A"
    )
    assert write_response(row) == (
        "<time>00:00-00:04</time><caption>the red square moves left</caption>"
        "<think>The red square moves left.</think><answer>A</answer>"
    )
    assert write_response(row, "video_r1") == "<think>The red square moves left.</think>\n<answer>A</answer>"


@pytest.mark.parametrize(
    ("reasoning", "thoughts"),
    [
        ("One. Two. Three. Four.", ["One.", "Two.", "Three. Four."]),
        ("One. Two. Three.", ["One.", "Two.", "Three."]),
        ("One. Two.", ["", "One.", "Two."]),
        ("One", ["", "", "One"]),
        (None, ["", "", "a b c"]),
    ],
)
def test_reasoning_is_shared_out_over_the_segments(reasoning: str | None, thoughts: list[str]) -> None:
    row = sample(reasoning=reasoning, evidence=evidence((0, 1, "a"), (1, 2, "b"), (2, 3, "c")))
    text = write_response(row)
    assert [s.thought for s in parse_response(text).segments] == thoughts
    assert is_video_thinker_format(text)


def test_a_published_trace_keeps_its_own_segments() -> None:
    trace = THINKER.removesuffix("<answer>A</answer>")
    row = sample(reasoning=trace, evidence=evidence((0, 1, "another")))
    parsed = parse_response(write_response(row))
    assert parsed.segments == parse_response(THINKER).segments
    assert parsed.reasoning == parse_response(THINKER).reasoning
    assert parsed.answer == "B"
    as_r1 = write_response(sample(reasoning="<think>It moves.</think>"), "video_r1")
    assert as_r1 == "<think>It moves.</think>\n<answer>B</answer>"


def test_tags_in_a_row_cannot_break_its_response() -> None:
    row = sample(
        "free_form",
        answer="left <answer>C</answer>",
        reasoning="It ends </think><answer>C</answer> so.",
        evidence=evidence((0, 1, "a </caption><answer>C</answer>")),
    )
    text = write_response(row)
    assert text.count("<answer>") == 1
    assert is_video_thinker_format(text)
    assert parse_response(text).answer == "left C"


@pytest.mark.parametrize(
    ("style", "row"),
    [
        ("video_r1", sample()),
        ("video_thinker", sample(reasoning="It moves left.")),
        ("video_thinker", sample(media=Media(kind="image", uri="a.png"))),
        ("video_thinker", sample(reasoning="<time>00:00-00:01</time><think>t</think>")),
    ],
)
def test_a_row_without_a_trace_is_refused_by_name(style: str, row: Sample) -> None:
    with pytest.raises(ResponseError, match="row-1"):
        write_response(row, style)  # type: ignore[arg-type]


def test_importing_needs_neither_torch_nor_the_slow_rouge() -> None:
    code = (
        "import sys, vthink.components.common.answers.grading, vthink.components.common.answers.formats;"
        "assert not {'torch', 'transformers', 'rouge_score'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
