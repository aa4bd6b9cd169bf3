"""Bars and lines of a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .page import Tone, number, paragraph, template_block


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One horizontal bar."""

    label: str
    value: float
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    note: str = ""
    """Small text behind the value, such as the number of items."""
    tone: Tone = "accent"


def bars(rows: Iterable[Bar], maximum: float = 1.0, percent: bool = True) -> Markup:
    """Horizontal bars with intervals, all on the scale from 0 to ``maximum``."""

    def at(x: float | None) -> float:
        return 0.0 if x is None or not math.isfinite(x) else 100 * min(max(x / maximum, 0.0), 1.0)

    shown = [
        {
            "label": row.label,
            "tone": row.tone,
            "note": row.note,
            "width": at(row.value),
            "low": None if row.low is None else at(row.low),
            "spread": at(row.high) - at(row.low),
            "text": f"{100 * row.value:.0f} %" if percent else number(float(row.value)),
        }
        for row in rows
    ]
    return template_block("bars", rows=shown)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str = "",
    y_label: str = "",
    caption: str = "",
) -> Markup:
    """Lines over a common x axis, as inline SVG; points that are not finite are left out."""
    points = {
        name: [(float(x), float(y)) for x, y in values if math.isfinite(x) and math.isfinite(y)]
        for name, values in series.items()
    }
    everything = [point for values in points.values() for point in values]
    if not everything:
        return paragraph("nothing measured yet", "plain")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    x0, x1, y0, y1 = min(xs), max(xs), min(*ys, 0.0), max(ys)
    x_span, y_span = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    width, height = 600, 180
    lines = [
        (
            name,
            index % 4,
            " ".join(f"{(x - x0) / x_span * width:.1f},{height - (y - y0) / y_span * height:.1f}" for x, y in values),
        )
        for index, (name, values) in enumerate(points.items())
    ]
    ticks = [(height - i / 4 * height, number(y0 + i / 4 * y_span)) for i in range(5)]
    return template_block(
        "line_chart",
        lines=lines,
        ticks=ticks,
        width=width,
        height=height,
        x_ends=(number(x0), number(x1)),
        x_label=x_label,
        y_label=y_label,
        caption=caption,
    )
