"""Predicted time spans against evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..common.answers import spans as spans_module
from ..common.rows.sample import Sample
from .conditions import kind_of, video_of

MAX_CLUES = 5
"""CG-Bench reads no more intervals of a response than these."""


def grounding(predicted: Sequence[spans_module.Span], sample: Sample) -> dict[str, float]:
    """mIoU and recall of predicted time spans against the evidence of a sample (Video-Thinker's
    definition), and the IoU of their unions (``clue_iou``, CG-Bench's run/utils.py)."""
    truth = [(span.start_s, span.end_s) for span in sample.evidence]
    scores = spans_module.grounding_scores(predicted, truth)
    found = {"miou": scores["miou"]} | {f"recall_at_{k}": scores[f"r@0.{k // 10}"] for k in (30, 50, 70)}
    return found | {"clue_iou": union_iou(predicted[:MAX_CLUES], truth)}


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
    samples: Sequence[Sample], durations_s: Sequence[float], typical: spans_module.Span | None
) -> dict[str, list[dict[str, Any]]]:
    """Grounding that needs no model: always the whole clip, and always the mean span of the training data."""
    rows: dict[str, list[dict[str, Any]]] = {"whole_clip": [], "mean_training_span": []}
    for sample, duration_s in zip(samples, durations_s, strict=True):
        if not sample.evidence:
            continue
        row: dict[str, Any] = {"id": sample.id, "video": video_of(sample), "error": None}
        row |= {"problem_type": sample.problem_type, "kind": kind_of(sample)}
        rows["whole_clip"].append(row | {"metrics": grounding([(0.0, duration_s)], sample)})
        if typical is not None:
            span = (min(typical[0], duration_s), min(typical[1], duration_s))
            rows["mean_training_span"].append(row | {"metrics": grounding([span], sample)})
    return {name: found for name, found in rows.items() if found}
