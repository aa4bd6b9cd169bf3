"""What a teacher writes is checked word by word; tests/integration/test_curate.py asks one over HTTP."""

from __future__ import annotations

import json

import pytest
from vthink.components.common.answers.formats import write_response
from vthink.components.common.answers.responses import parse_response
from vthink.components.data_prep.config import CurationConfig
from vthink.components.data_prep.curation import replies
from vthink.components.data_prep.curation.replies import UnusableError

from .conftest import CHOICE, MEDIA, SEGMENTS

QUESTION = {"question": "What then?", "options": ["p", "q", "r", "s"], "answer": "C", "segments": [1, 2]}
TRACE = {
    "steps": [
        {"segment": 1, "caption": "a ball", "thought": "now"},
        {"segment": 2, "caption": "flies", "thought": "so"},
    ],
    "reasoning": "He throws it.",
}


def question(**changes):
    config = CurationConfig()
    return replies.checked_question(json.dumps(QUESTION | changes), "a", MEDIA, SEGMENTS, config)


def trace(**changes):
    return replies.checked_trace(json.dumps(TRACE | changes), CHOICE, SEGMENTS)


def steps(*changes):
    return {"steps": [step | change for step, change in zip(TRACE["steps"], changes, strict=False)]}


@pytest.mark.parametrize("wrapped", ["{}", "```json\n{}\n```", " ```\n{}\n``` \n", "<think>First {{…}}</think>\n{}"])
def test_json_is_read_with_fences_or_thoughts_around_it(wrapped):
    text = wrapped.replace("{}", json.dumps(QUESTION)) if wrapped != "{}" else json.dumps(QUESTION)
    assert replies.checked_question(text, "a", MEDIA, SEGMENTS, CurationConfig()).question == "What then?"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! " + json.dumps(QUESTION),
        json.dumps([QUESTION]),
        json.dumps(QUESTION | {"why": "so"}),
        json.dumps({key: value for key, value in QUESTION.items() if key != "answer"}),
        json.dumps(QUESTION | {"segments": ["1", "2"]}),
        json.dumps(QUESTION | {"segments": [1.5, 2]}),
        json.dumps(QUESTION)[:-1],
        json.dumps(QUESTION) * 2,
        "[" * 100_000,
        '{"question": "\\ud800"}',
        '{"question": "\ud800"}',
    ],
)
def test_anything_but_one_object_of_the_asked_shape_is_refused(text):
    with pytest.raises(UnusableError) as caught:
        replies.checked_question(text, "a", MEDIA, SEGMENTS, CurationConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": "E"}, "not the letter of an option"),
        ({"answer": "c"}, "not the letter of an option"),
        ({"answer": "C."}, "not the letter of an option"),
        ({"answer": ""}, "not the letter of an option"),
        ({"options": ["p", "q", "r"]}, "3 options; 4 to 6"),
        ({"options": list("pqrstuv")}, "7 options; 4 to 6"),
        ({"options": ["p", "q", "r", "P"]}, "the same"),
        ({"options": ["p", "q", "r", " "]}, "empty"),
        ({"options": ["p", "q", "r", "None of the above"]}, "refers to others"),
        ({"options": ["p", "q", "r", "as in option A"]}, "refers to others"),
        ({"segments": [1, 3]}, "there are 1 to 2"),
        ({"segments": [0, 1]}, "there are 1 to 2"),
        ({"segments": [2, 2]}, "needs 1 segments"),
        ({"question": "What <answer>C</answer>"}, "a tag"),
        ({"question": "x" * 1001}, "at most 1000"),
    ],
)
def test_a_question_that_breaks_a_rule_is_refused(changes, problem):
    assert question().answer in "ABCD"
    with pytest.raises(UnusableError, match=problem):
        question(**changes)


def test_options_are_put_in_an_order_of_the_row_s_own_and_the_answer_follows():
    letters = set()
    for number in range(40):
        row = replies.checked_question(json.dumps(QUESTION), f"row {number}", MEDIA, SEGMENTS, CurationConfig())
        assert row.options["ABCD".index(row.answer)] == "r"
        again = replies.checked_question(json.dumps(QUESTION), f"row {number}", MEDIA, SEGMENTS, CurationConfig())
        assert again == row
        letters.add(row.answer)
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    "bad",
    [
        "a <caption>b</caption>",
        "a</think>",
        "<|im_end|>",
        "<|video_pad|>",
        "<!-- a -->",
        "\x00",
        "\x1b[31m",
        "\x85",
        "\u202e",
        "\ue000",
        " \n ",
    ],
)
def test_tags_and_control_characters_are_refused_in_every_text(bad):
    for what, changes in (
        ("caption", steps({"caption": f"a {bad}" if bad.strip() else bad})),
        ("thought", steps({"thought": f"a {bad}" if bad.strip() else bad})),
        ("reasoning", {"reasoning": f"a {bad}" if bad.strip() else bad}),
    ):
        with pytest.raises(UnusableError, match=f"a {what} "):
            trace(**changes)


def test_ordinary_text_of_any_language_passes():
    for text in (
        "3 < 5 and 7 > 6",
        "naïve café — “so”",
        "ボールを投げる",
        "پرتاب می‌کند",
        "a 👨‍👩‍👧 family",
        "two\nlines",
    ):
        assert trace(**steps({"caption": text}, {}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": []}, "there are 1 to 2"),
        (steps({"segment": 3}, {}), "there are 1 to 2"),
        (steps({"segment": 2}, {"segment": 1}), "not in the order"),
        (steps({"segment": 2}, {"segment": 2}), "not in the order"),
        (steps({"caption": "the answer is B"}), "names the answer"),
        (steps({"caption": "so option (B) is right"}), "names the answer"),
        (steps({"caption": "Answer: B"}), "names the answer"),
    ],
)
def test_a_trace_that_breaks_a_rule_is_refused(changes, problem):
    with pytest.raises(UnusableError, match=problem):
        trace(**changes)


def test_a_caption_may_speak_of_answers_without_naming_one():
    assert trace(**steps({"caption": "He gives an answer. A woman has no other choice."}))


def test_a_trace_becomes_a_target_that_reads_back_the_same():
    row = trace()
    target = write_response(row, "video_thinker")
    parsed = parse_response(target)
    assert [(s.start_s, s.end_s, s.caption, s.thought) for s in parsed.segments] == [
        (0.0, 4.0, "a ball", "now"),
        (3.5, 9.25, "flies", "so"),
    ]
    assert parsed.answer == "B"
    assert target.startswith(
        "<time>00:00-00:04</time><caption>a ball</caption><think>now</think><time>3.5-9.25 seconds"
    )
    assert [e.caption for e in row.evidence] == ["a ball", "flies"]


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ([], "no segments"),
        ([(2, 2)], "does not end after it starts"),
        ([(3, 2)], "does not end after it starts"),
        ([(0, 10.02)], "behind the video's end"),
        ([(5, 6), (4, 7)], "starts before segment 1"),
        ([(-1, 2)], "greater than or equal to 0"),
        ([(0, 1e999)], "segments"),
        ([("0", 1)], "segments"),
        ([(True, 2)], "segments"),
    ],
)
def test_found_segments_must_lie_in_the_video_and_in_order(segments, problem):
    def reply(spans):
        return json.dumps({"segments": [{"start_s": a, "end_s": b, "caption": "x"} for a, b in spans]})

    assert len(replies.checked_captions(reply([(0, 4.5), (4, 10)]), 10.0)) == 2
    with pytest.raises(UnusableError, match=problem):
        replies.checked_captions(reply(segments), 10.0)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>so</think><answer>B</answer>", 1.0),
        ("<think>so</think>\n<answer>(B) throws it</answer>", 1.0),
        ("<think>so</think><answer>A</answer>", 0.0),
        ("<answer>B</answer>", 0.0),
        ("<think>so</think><answer>B</answer> or so", 0.0),
        ("<think>so <|im_end|></think><answer>B</answer>", 0.0),
        ("<think></think><answer>B</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_a_sampled_trace_earns_its_answer_s_grade_when_its_format_is_right(text, reward):
    assert replies.checked_cot(text, CHOICE)[0] == reward
