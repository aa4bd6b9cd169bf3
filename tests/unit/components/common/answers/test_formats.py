"""The shapes of response: recognised, written."""

from __future__ import annotations

from pathlib import Path

import pytest
from vthink.components.common.answers.formats import (
    ResponseError,
    follows_format,
    is_video_r1_format,
    is_video_thinker_format,
    write_response,
)
from vthink.components.common.answers.grading import (
    grade,
    is_correct,
)
from vthink.components.common.answers.responses import parse_response
from vthink.components.common.errors import UserError
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.data_prep.config import QuestionKind, SynthesizeConfig
from vthink.components.data_prep.world.scenes import rows, scenes

from .examples import R1, THINKER, sample


def evidence(*spans: tuple[float, float, str]) -> list[Evidence]:
    return [Evidence(start_s=start, end_s=end, caption=caption) for start, end, caption in spans]


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


def test_a_format_may_come_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_format.py").write_text(
        "from vthink.components.common.answers.formats import AnswerFormat\n"
        "BARE = AnswerFormat(follows=lambda sample, text: text == sample.answer, write=lambda sample: sample.answer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = sample()
    assert write_response(row, "own_format:BARE") == row.answer
    assert follows_format(row, row.answer, "own_format:BARE")
    assert not follows_format(row, "<answer>B</answer>", "own_format:BARE")
    with pytest.raises(UserError, match="unknown answer format 'video_r2'; did you mean 'video_r1'"):
        follows_format(row, row.answer, "video_r2")
