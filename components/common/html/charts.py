"""Bars of a page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from .page import Tone, number, template_block


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One horizontal bar."""

    label: str
    value: float
    low: float | None = None  # the ends of its interval
    high: float | None = None
    note: str = ""  # small text behind the value, such as the number of items
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
