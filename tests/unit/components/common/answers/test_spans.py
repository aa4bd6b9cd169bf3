"""Time spans in text."""

from __future__ import annotations

import math

import pytest
from vthink.components.common.answers.responses import format_span, grounding_scores, parse_spans, span_iou


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
