"""The published rules, on completions whose grades were worked out by hand from the programs it names."""

from __future__ import annotations

import pytest
from vthink.components.common.rows.sample import Sample
from vthink.components.evaluation.benchmarks import official


def choice(answer: str = "B") -> Sample:
    media = {"kind": "video", "uri": "a.mp4"}
    options = ("sofa", "chair", "table", "bed")
    return Sample(
        id="q", media=media, question="Which?", options=options, problem_type="multiple_choice", answer=answer
    )


def number(answer: str = "4") -> Sample:
    return Sample(
        id="q", media={"kind": "video", "uri": "a.mp4"}, question="How many?", problem_type="regression", answer=answer
    )


def yes_no(answer: str) -> Sample:
    about = {"problem_type": "free_form", "metadata": {"rule": "yes_no"}}
    return Sample(id="q", media={"kind": "video", "uri": "a.mp4"}, question="Is it?", answer=answer, **about)


RIGHT = {  # of the true answer B
    "vsi_bench": {
        True: ["B", "b", "B.", "B...", "B chair", "B. chair", "b or c"],
        False: [
            "(B)",
            "B) chair",
            "B\nchair",
            "The answer is B",
            "<answer>B</answer>",
            "",
            " B",
            "A",
            "chair",
            "**B**",
        ],
    },
    "videomme": {
        True: [
            "B",
            "(B)",
            "B) chair",
            "The answer is B",
            "The best answer is B.",
            "<answer>B</answer>",
            "Both look alike",
            " B",
        ],
        False: ["b", "", "A", "chair", "A or B", "Clearly B", "Definitely B", "<think>A bed</think>B", "An answer: B"],
    },
    "mvbench": {
        True: [
            "B",
            "b",
            "B. chair",
            "(B) chair",
            "b)",
            "The answer is B",
            "<answer>B</answer>",
            "B\nchair",
            "it is b",
            "**B**"[2:3],
        ],
        False: ["A", "", "chair", "a man walks to B", "A. B", "A or B", "BC", "e or b"],
    },
}


@pytest.mark.parametrize(
    ("rule", "text", "right"),
    [(rule, text, right) for rule, cases in RIGHT.items() for right, texts in cases.items() for text in texts],
)
def test_a_choice_is_graded_as_published(rule: str, text: str, right: bool) -> None:
    assert getattr(official, rule)(choice(), text) == {"accuracy": float(right)}


FORMS = {  # in which every letter is read as itself
    "vsi_bench": ["{L}", "{l}", "{L}.", "{L} x", "{l}. x", "{L}...", "{l} or so"],
    "videomme": ["{L}", "({L})", "{L}. x", "The answer is {L}", "<answer>{L}</answer>", " {L}", "so {L} or D"],
    "mvbench": ["{L}", "({L})", "{l})", "The answer is {L}", "<answer>{L}</answer>", "{L}. x", "it is **{l}**"],
}


@pytest.mark.parametrize("rule", FORMS)
def test_every_letter_is_read_as_itself(rule: str) -> None:
    """7 forms × 4 letters × 4 true answers."""
    for form in FORMS[rule]:
        for letter in "ABCD":
            text = form.format(L=letter, l=letter.lower())
            grades = {truth: getattr(official, rule)(choice(truth), text)["accuracy"] for truth in "ABCD"}
            assert grades == {truth: float(truth == letter) for truth in "ABCD"}, text


MRA = {  # of a true 4; shares of errors of at most 0.5, 0.45 … 0.05
    "4": 1.0,
    "4.": 1.0,
    "4.0": 1.0,
    "4 chairs": 1.0,
    "4 or 5": 1.0,
    "+4": 1.0,
    "4e0": 1.0,
    "4.1": 1.0,
    "3.9": 1.0,
    "3": 0.6,
    "5": 0.6,
    "2": 0.1,
    "6": 0.1,
    "1": 0.0,
    "8": 0.0,
    "-4": 0.0,
    "3.5": 0.8,
    "4.5": 0.8,
    "4.6": 0.8,
    "4m": 0.0,
    "four": 0.0,
    "": 0.0,
    "about 4": 0.0,
    "The answer is 4": 0.0,
    "<answer>4</answer>": 0.0,
    "nan": 0.0,
    "inf": 0.0,
    "4,0": 0.0,
    "\n4": 1.0,
    "1,000": 0.0,
    "4\n5": 0.0,
    "~4": 0.0,
    "3-4": 0.0,
    "4/1": 0.0,
}


@pytest.mark.parametrize(("text", "share"), MRA.items())
def test_a_number_is_graded_as_published(text: str, share: float) -> None:
    assert official.vsi_bench(number(), text)["mra_inclusive"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        *(("yes", text, True) for text in ("yes", "Yes", "YES.", "Yes, it is", "yesterday", "</s>yes")),
        *(("no", text, True) for text in ("no", "No.", "nothing", "Not at all", "no</s>")),
        *(("yes", text, False) for text in ("no", " yes", "It is so, yes", "", "<answer>yes</answer>", "nothing")),
        *(("no", text, False) for text in ("yes", "It does not", "\nno", "")),
    ],
)
def test_yes_and_no_are_graded_as_published(answer: str, text: str, right: bool) -> None:
    assert official.tempcompass(yes_no(answer), text) == {"accuracy": float(right)}


def test_the_tasks_of_tempcompass_with_options_stay_strict() -> None:
    assert official.tempcompass(choice(), "B") == {}
