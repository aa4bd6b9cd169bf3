"""What is read outside of tags, and in which words inside of them; what is left open is not."""

from __future__ import annotations

import time

import pytest
from vthink.components.common.answers.grading import grade
from vthink.components.common.answers.reading import read_answer
from vthink.components.common.answers.responses import parse_response
from vthink.components.common.rows.sample import Sample

ANSWERS = {"multiple_choice": "B", "numerical": "4", "regression": "4.0", "free_form": "yes", "ocr": "exit"}


OPTIONS = ("Cleaners", "right", "up", "down")


def sample(problem_type: str = "multiple_choice") -> Sample:
    return Sample.model_validate(
        {
            "id": "row",
            "media": {"kind": "video", "uri": "a.mp4"},
            "question": "What happens?",
            "options": OPTIONS if problem_type == "multiple_choice" else (),
            "problem_type": problem_type,
            "answer": ANSWERS[problem_type],
        }
    )


def graded(problem_type: str, text: str) -> tuple[bool, float]:
    """Whether there is an answer, and its grade."""
    answer = read_answer(sample(problem_type), parse_response(text))
    return answer is not None, grade(sample(problem_type), answer)


THINK = "<think>A is left, C is up, 7 of them.</think>\n"
READ = {
    "multiple_choice": [
        *("B", "(B)", "B. right", "right", "Right.", "**B**", "Ｂ", "选B。", "答案是B", "B\nIt goes right."),
        *(
            "Therefore, the answer is B.",
            "The correct option is (B) right.",
            "Final answer: B",
            "The final answer is\n\nB",
        ),
        "A seems wrong and C is too slow. So the answer is B because A comes first.",
        "First it goes up. Then, at the end, it goes right. So it is **B**",
        "It goes up and then right.\n\nB",
        "It goes up and then right.\n\n\\boxed{B}",
        "The answer is A. Wait, no.\nSo the answer is B.",
        "I choose B",
        "The answer is right.",
        "</think>B",
        "So B</think>\n\nThe answer is B",
        "<answer>B",
        "B</answer>",
        "<answer>B</answer><answer></answer>",
        "<answer>right</answer>",
    ],
    "numerical": [
        *("4", "4.0", "four", "Four.", "There are four chairs.", "约4米", "There are 4 chairs in the room.", "４"),
        *(
            "The answer is 4.",
            "Final answer: 4",
            "So the answer is **4**",
            "It shows chairs at 3 tables.\n4",
            "\\boxed{4}",
        ),
        *("<answer>four</answer>", "<answer>约4米</answer>", "<answer>4</answer>", "4 m", "4 chairs (3 red)"),
    ],
    "regression": ["4.0", "about 4 meters", "The answer is approximately 4 m.", "Four meters"],
    "free_form": ["yes", "<answer>yes</answer>", "So the answer is yes."],
    "ocr": ["exit", "EXIT"],
}


@pytest.mark.parametrize(("problem_type", "text"), [(kind, text) for kind, texts in READ.items() for text in texts])
def test_an_answer_outside_of_tags_is_read_behind_reasoning_and_without(problem_type: str, text: str) -> None:
    assert graded(problem_type, text) == (True, 1.0)
    if "think" not in text:
        assert graded(problem_type, THINK + text) == (True, 1.0)


OPEN = {
    "multiple_choice": [
        *(
            "A or B",
            "The answer is A or B.",
            "The answer is not A",
            "It is unclear whether the answer is B",
            "A man walks.",
        ),
        *("", "no idea", "<think>So the answer is B", "<think>the answer is B</think>", "It is not **B**", "E", "A, B"),
        "The answer is A.\nOr the answer is B,\nwho knows?",
        "Is it so that the answer is B?",
        "left and right",
    ],
    "numerical": [
        *(
            "3 or 4",
            "two or three",
            "less than 4",
            "the answer is 3 to 4",
            "no idea",
            "<think>4</think>",
            "the one on the left",
        ),
        *(
            "1. the chair\n2. the table",
            "3到4米",
            "超过4米",
            "four hundred",
            "the fourth",
            "not four",
            "At 3 s 4 of them appear",
        ),
    ],
}


@pytest.mark.parametrize(("problem_type", "text"), [(kind, text) for kind, texts in OPEN.items() for text in texts])
def test_what_is_left_open_is_no_answer(problem_type: str, text: str) -> None:
    assert read_answer(sample(problem_type), parse_response(text)) is None


def test_option_a_with_its_text_is_option_a_and_a_sentence_is_not() -> None:
    for text in ("<answer>A Cleaners</answer>", "A Cleaners", "A. Cleaners", "Cleaners"):
        answer = read_answer(sample(), parse_response(text))
        assert grade(sample().model_copy(update={"answer": "A"}), answer) == 1.0
    assert read_answer(sample(), parse_response("A cleaner walks by")) is None


def test_an_answer_that_was_cut_off_is_not_read() -> None:
    assert read_answer(sample("numerical"), parse_response("<answer>4"), cut_off=True) is None
    assert read_answer(sample("numerical"), parse_response("<answer>4"), cut_off=False) == "4"


@pytest.mark.parametrize(
    "piece", ["the answer is ", "**B** ", "A ", "not ", "four ", "\n", "<think>", "1. ", "答案是", "\\boxed{"]
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    text = piece * (10**6 // len(piece))
    start = time.process_time()
    for problem_type in ANSWERS:
        read_answer(sample(problem_type), parse_response(text))
    assert time.process_time() - start < 10
