"""Counts and histograms as columns of bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ...common.html import charts, page
from ...common.html.charts import Bar
from ..dataset.data_card import Histogram

_BARS = 12


def cut(text: str, length: int = 300) -> str:
    """The start of a text that is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def columns(titled: Sequence[tuple[str, Markup]]) -> Markup:
    """Blocks side by side, each below its title."""
    shown = [Markup("<div><h3>{}</h3>{}</div>").format(title, block) for title, block in titled]
    return Markup('<div class="columns">{}</div>').format(page.joined(shown))


def count_bars(counts: Mapping[str, int], of: int | None = None) -> Markup:
    """Bars of shares (of the sum, or of ``of``); the smallest together."""
    total = max(1, sum(counts.values()) if of is None else of)
    shown = list(counts.items())[:_BARS]
    bars = [Bar(label=cut(name, 60) or "(blank)", value=count / total, note=f"{count:,}") for name, count in shown]
    if rest := list(counts.values())[_BARS:]:
        bars.append(Bar(label=f"{len(rest)} more", value=sum(rest) / total, note=f"{sum(rest):,}", tone="plain"))
    return charts.bars(bars, maximum=max(bar.value for bar in bars) or 1.0)


def histogram_columns(histograms: Mapping[str, Histogram], unit: str = "") -> Markup:
    """Histograms by name, side by side."""
    return columns([(name, histogram_bars(histogram, unit)) for name, histogram in histograms.items()])


def histogram_bars(histogram: Histogram, unit: str = "") -> Markup:
    """Bars from the first to the last bin that is not empty."""
    filled = [place for place, count in enumerate(histogram.counts) if count]
    if not filled:
        return page.paragraph("none")
    total = sum(histogram.counts)
    bars = []
    for place in range(filled[0], filled[-1] + 1):
        count, ends = histogram.counts[place], [f"{edge:g}" for edge in histogram.edges[place : place + 2]]
        label = f"{ends[0]} – {ends[1]}{unit}" if len(ends) == 2 else f"{ends[0]}{unit} or more"
        bars.append(Bar(label=label, value=count / total, note=f"{count:,}"))
    return charts.bars(bars, maximum=max(bar.value for bar in bars))
