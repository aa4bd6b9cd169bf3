"""Temporal grounding: when does it happen? Charades-STA, ActivityNet Captions and TimeLens-Bench.

A question is a sentence, its answer one span. Graded by the IoU of the first span that the answer names: ``answer_iou``
is its mean (mIoU), ``answer_recall_at_50`` the share with IoU 0.5 or more (R@1, IoU = 0.5)."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ...common.answers.responses import format_span, parse_spans, span_iou
from ...common.rows.sample import Sample
from ..item import Item
from ..scores import Score, metric_value
from .benchmark import Entry, Question
from .public_sets import public_set

_ASKED = "When does this happen in the video: “{}”? Answer with its start and end in seconds, such as 3.5 - 12.0."
_LINE = re.compile(r"(?P<video>\S+) (?P<start>[0-9.]+) (?P<end>[0-9.]+)##(?P<query>.+)")


def first_span_iou(sample: Sample, answer: str | None) -> float:
    """IoU of the first span of an answer with the true one; 0 where it names none."""
    truth = sample.evidence[0]
    spans = parse_spans(answer or "")
    return span_iou(spans[0], (truth.start_s, truth.end_s)) if spans else 0.0


def _question(entry: Entry, video: str, number: int, query: str, span: Any) -> Question:
    if not isinstance(span, list | tuple) or len(span) != 2 or not all(isinstance(end, int | float) for end in span):
        raise entry.error("span", f"expected [start, end] of '{query[:40]}'")
    start, end = sorted(map(float, span))  # ActivityNet has some turned round
    name = video.removesuffix(".mp4")
    return entry.question(
        [f"videos/{name}.mp4", f"Charades_v1/{name}.mp4", f"{name}.mp4", f"{name}.mkv", f"{name}.webm"],
        identity=f"{name}-{number}",
        text=_ASKED.format(query.strip()),
        answer=format_span(start, end),
        problem_type="free_form",
        evidence=[{"start_s": start, "end_s": end, "caption": query.strip()}],
        rule="first_span",
    )


def _charades(entry: Entry) -> Iterator[Question]:
    match = _LINE.fullmatch(entry.text("line"))
    if match is None:
        raise entry.error("line", "expected VIDEO START END##SENTENCE")
    span = [float(match["start"]), float(match["end"])]
    yield _question(entry, match["video"], entry.number, match["query"], span)


def _by_video(entry: Entry, spans: str, queries: str) -> Iterator[Question]:
    """Of a file that is one object, video → spans and sentences, as many of both."""
    for video, data in entry.data.items():
        about = entry.inner(video, data)
        lists = [about.data.get(name) for name in (spans, queries)]
        if not all(isinstance(part, list) for part in lists) or len(lists[0] or ()) != len(lists[1] or ()):
            raise about.error(spans, f"expected lists '{spans}' and '{queries}' of one length")
        for number, (span, query) in enumerate(zip(lists[0] or (), lists[1] or (), strict=True)):
            yield _question(about, video, number, str(query), span)


def _recalled(least: float) -> Callable[[Item], float | None]:
    return lambda item: float(item.score >= least)


_SCORES = {
    "answer_iou": Score("mean IoU of the answer's first span with the true one (mIoU)", metric_value("score"))
} | {
    f"answer_recall_at_{round(100 * least)}": Score(
        f"share of answers with IoU {least} or more (R@1)", _recalled(least)
    )
    for least in (0.3, 0.5, 0.7)
}

CHARADES_STA = public_set("charades-sta", _charades, _SCORES, first_span_iou)
ACTIVITYNET = public_set(
    "activitynet-captions", partial(_by_video, spans="timestamps", queries="sentences"), _SCORES, first_span_iou
)
TIMELENS = public_set("timelens-bench", partial(_by_video, spans="spans", queries="queries"), _SCORES, first_span_iou)
