"""Grades of answers, and the letters and numbers in them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vthink.components.common.answers.grading import (
    MAX_ANSWER_CHARS,
    extract_letter,
    extract_number,
    grade,
    is_correct,
    mean_relative_accuracy,
    rouge_f,
    word_error_rate,
)

from .examples import TRUTHS, sample


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


@pytest.mark.parametrize("problem_type", TRUTHS)
@pytest.mark.parametrize("answer", [None, "", " ", "nan", "inf", "-inf", "<answer>", "\ud800", "A" * 10**5, 3, b"B"])
def test_answers_that_are_none_are_worth_nothing(problem_type: str, answer: object) -> None:
    assert grade(sample(problem_type), answer) == 0.0  # type: ignore[arg-type]
    assert not is_correct(sample(problem_type), answer)  # type: ignore[arg-type]


def test_a_right_answer_behind_too_much_text_is_worth_nothing() -> None:
    assert grade(sample(), "B" + "." * MAX_ANSWER_CHARS) == 0.0
    assert grade(sample(), "B" + "." * 10) == 1.0


def test_importing_needs_neither_torch_nor_the_slow_rouge() -> None:
    code = (
        "import sys, vthink.components.common.answers.grading, vthink.components.common.answers.formats;"
        "assert not {'torch', 'transformers', 'rouge_score'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- option letters and numbers


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
        ("4米", 4),
        ("3到4米", None),
        ("3米到4米", None),
        ("3或4", None),
        ("3個から4個", None),
        ("3个以上", None),
        ("超过3米", None),
        ("3万", None),
        ("", None),
    ],
)
def test_numbers_are_read_tolerantly(answer: str, number: float | None) -> None:
    assert extract_number(answer) == number


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
