"""Predicted time spans against evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..common.answers import responses as spans_module
from ..common.rows.sample import Sample
from .conditions import ORDERED, kind_of, video_of
from .item import Item

MAX_CLUES = 5
"""CG-Bench reads no more intervals of a response than these."""


def grounding(predicted: Sequence[spans_module.Span], sample: Sample) -> dict[str, float]:
    """mIoU and recall of predicted time spans against the evidence of a sample (Video-Thinker's
    definition), and the IoU of their unions (``clue_iou``, CG-Bench's run/utils.py)."""
    truth = [(span.start_s, span.end_s) for span in sample.evidence]
    scores = spans_module.grounding_scores(predicted, truth)
    measured = {"miou": scores["miou"]} | {f"recall_at_{k}": scores[f"r@0.{k // 10}"] for k in (30, 50, 70)}
    return measured | {"clue_iou": union_iou(predicted[:MAX_CLUES], truth)}


def union_iou(first: Sequence[spans_module.Span], second: Sequence[spans_module.Span]) -> float:
    """IoU of the union of some spans with the union of others, in seconds; 0 where neither has a length."""
    ends = sorted({point for span in (*first, *second) for point in span if math.isfinite(point)})
    both = either = 0.0
    for start, end in pairwise(ends):
        inside = [any(span[0] <= start and end <= span[1] for span in spans) for spans in (first, second)]
        both += (end - start) * all(inside)
        either += (end - start) * any(inside)
    return both / either if either > 0 else 0.0


def mean_span(samples: Iterable[Sample]) -> spans_module.Span | None:
    """The mean start and end, in seconds, of all evidence: what one can know about a span without looking."""
    spans = [(span.start_s, span.end_s) for sample in samples for span in sample.evidence]
    if not spans:
        return None
    start, end = np.mean(spans, axis=0)
    return float(start), float(end)


def baseline_items(
    samples: Iterable[Sample], durations_s: Mapping[str, float], typical: spans_module.Span | None
) -> dict[str, list[Item]]:
    """Grounding that needs no model: always the whole clip, and always the mean span of the training data.

    Args:
        samples: the questions.
        durations_s: length of each one's clip, by id.
        typical: the mean span, from `mean_span`.
    """
    baselines: dict[str, list[Item]] = {"whole_clip": [], "mean_training_span": []}
    for sample in samples:
        if sample.evidence:
            duration_s = durations_s[sample.id]
            baselines["whole_clip"].append(_baseline_item(sample, (0.0, duration_s)))
            if typical is not None:
                span = (min(typical[0], duration_s), min(typical[1], duration_s))
                baselines["mean_training_span"].append(_baseline_item(sample, span))
    return {name: items for name, items in baselines.items() if items}


def _baseline_item(sample: Sample, span: spans_module.Span) -> Item:
    return Item(
        id=sample.id,
        video=video_of(sample),
        condition=ORDERED,
        problem_type=sample.problem_type,
        kind=kind_of(sample),
        metrics=dict(grounding([span], sample)),
    )
