"""Time spans in text, and how well spans agree."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

Span = tuple[float, float]
_POINT = r"(?:(?:[0-9]{1,4}:)?[0-9]{1,4}:[0-9]{1,2}(?:\.[0-9]{1,6})?|[0-9]{1,6}(?:\.[0-9]{1,6})?)"

_RANGE = re.compile(
    rf"(?<![0-9.:])({_POINT})\s{{0,4}}(?:s|sec|seconds)?\s{{0,4}}(?:-|–|—|~|to)\s{{0,4}}({_POINT})(?![0-9:])",
    re.IGNORECASE,
)


def parse_spans(text: str) -> list[Span]:
    """The time ranges in ``text``, in seconds: ``00:01-00:03``, ``1:02:03 - 1:02:10``, ``0.0-5.0 seconds``.

    Ranges that end before they start, and impossible times such as ``00:75``, are left out.
    """
    spans = []
    for match in _RANGE.finditer(text[:1000]):
        start, end = _seconds(match[1]), _seconds(match[2])
        if start is not None and end is not None and start <= end:
            spans.append((start, end))
    return spans


def _seconds(point: str) -> float | None:
    parts = [float(part) for part in point.split(":")]
    if any(part >= 60 for part in parts[1:]):
        return None
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def format_span(start_s: float, end_s: float) -> str:
    """``00:01-00:03`` (from an hour on ``01:00:01-01:00:03``) for whole seconds, else ``0.5-2.25 seconds``.

    Fractions are rounded to hundredths.
    """
    if start_s == int(start_s) and end_s == int(end_s):
        return f"{_clock(int(start_s))}-{_clock(int(end_s))}"
    return f"{_decimal(start_s)}-{_decimal(end_s)} seconds"


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def _decimal(seconds: float) -> str:
    text = f"{seconds:.2f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def span_iou(a: Span, b: Span) -> float:
    """Intersection over union of two time spans (seconds)."""
    if not all(map(math.isfinite, (*a, *b))) or a[0] > a[1] or b[0] > b[1]:
        return 0.0
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def grounding_scores(predicted: Sequence[Span], truth: Sequence[Span]) -> dict[str, float]:
    """How well predicted spans cover the true ones: per true span the best IoU over the predictions, then
    averaged.

    Returns:
        ``miou`` and ``r@0.3``, ``r@0.5``, ``r@0.7``: the share of true spans whose best IoU reaches that.

    Raises:
        ValueError: there is no true span.
    """
    if not truth:
        raise ValueError("grounding needs at least one true span")
    best = [max((span_iou(span, guess) for guess in predicted), default=0.0) for span in truth]
    recall = {f"r@{k}": sum(iou >= k for iou in best) / len(best) for k in (0.3, 0.5, 0.7)}
    return {"miou": sum(best) / len(best)} | recall
