"""How numbers look on evaluation pages: estimates, differences and the marks beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...common.html import blocks, page
from ...common.html.blocks import Cell, Filter
from ...common.html.charts import Bar
from ..conditions import ORDERED, condition_title
from ..config import EvaluationConfig
from ..metrics import metric_named
from ..results import Comparison
from ..statistics import NO_DIFFERENCE, Difference, Estimate


def how_sure(config: EvaluationConfig) -> str:
    """What intervals and tests are."""
    return (
        f"Intervals: {100 * config.confidence:g} %, by bootstrap over videos; differences: sign-flip test over videos. "
        "Not corrected for the number of comparisons."
    )


def estimate_cell(estimate: Estimate | None, metric: str = "", difference: Difference | None = None) -> Any:
    """An estimate with its interval, and ▲ or ▼ where a paired test shows a difference; empty where there is none."""
    if estimate is None:
        return ""
    about = metric_named(metric)
    low, high = (end if math.isfinite(end) else math.nan for end in (estimate.low, estimate.high))
    content = blocks.interval(estimate.value, low, high, about.bounded)
    return Cell(content=content + _mark(difference, about.higher_is_better), sort=estimate.value)


def _mark(difference: Difference | None, higher_is_better: bool) -> Markup:
    if difference is None or difference.verdict == NO_DIFFERENCE:
        return Markup("")
    up = difference.verdict == "higher"
    title = f"{points(difference)} points, p = {difference.p_value:.2g}"
    return Markup(' <span class="mark {}" title="{}">{}</span>').format(
        "good" if up == higher_is_better else "bad", title, "▲" if up else "▼"
    )


def points(estimate: Estimate) -> str:
    """``+1.2 [-0.3, +2.7]``, in points."""
    value, low, high = (
        f"{round(100 * end, 1) + 0.0:+.1f}" if math.isfinite(end) else "∞"
        for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def legend(reference: str, several: bool) -> Markup:
    """What the marks mean; nothing where there is one model."""
    if not several:
        return Markup("")
    return page.paragraph(
        Markup(
            '<small><span class="mark good">▲</span> <span class="mark bad">▼</span> differs from {} on the same '
            "questions (paired); no mark: no significant difference, or nothing to compare with.</small>"
        ).format(reference)
    )


def small(text: str) -> Markup:
    """A paragraph of small print."""
    return page.paragraph(Markup("<small>{}</small>").format(text))


def bar(label: str, estimate: Estimate, tone: page.Tone = "accent") -> Bar:
    """A bar with its interval, where that has ends."""
    low, high = (end if math.isfinite(end) else None for end in (estimate.low, estimate.high))
    return Bar(label=label, value=estimate.value, low=low, high=high, tone=tone)


_TONES: Mapping[str, page.Tone] = {"higher": "good", "lower": "bad"}


def differences_table(comparisons: Sequence[Comparison], titles: Mapping[str, str] | None = None) -> Markup:
    """Paired differences; ``titles``: of benchmarks by key, where there are any."""
    if not comparisons:
        return page.paragraph("Nothing to compare: there is one model, or there are fewer than two videos.")
    table, values = [], []
    kinds = any(comparison.kind is not None for comparison in comparisons)
    for comparison in comparisons:
        shown = Markup('<span class="interval"><b>{}</b><small>{}</small></span>').format(
            *points(comparison).split(" ", 1)
        )
        table.append(
            [
                f"{_side(comparison.first)} − {_side(comparison.second)}",
                *([titles[str(comparison.benchmark)]] if titles else []),
                Cell(content=shown, sort=comparison.value),
                Cell(
                    content=page.chip(comparison.verdict, _TONES.get(comparison.verdict, "plain")),
                    sort=comparison.verdict,
                ),
                Cell(content=f"{comparison.p_value:.2g}", sort=comparison.p_value),
                _or_blank(comparison.mcnemar_p, "{:.2g}"),
                _or_blank(comparison.detectable, "{:.1f}", 100),
                *([comparison.kind or "all"] if kinds else []),
                comparison.n,
                comparison.clusters,
            ]
        )
        shown_under = {"verdict": [comparison.verdict.split()[0]], "questions": ["kind" if comparison.kind else "all"]}
        values.append(shown_under | ({"benchmark": [str(comparison.benchmark)]} if titles else {}))
    verdicts = [("higher", "higher"), ("lower", "lower"), ("no", NO_DIFFERENCE)]
    filters = [Filter(key="verdict", label="difference", choices=verdicts)]
    if titles and len(titles) > 1:
        filters.append(Filter(key="benchmark", label="benchmark", choices=list(titles.items())))
    if kinds:
        choices = [("all", "all questions"), ("kind", "one kind")]
        filters.append(Filter(key="questions", label="questions", choices=choices))
    columns = ["first − second", *(["benchmark"] if titles else []), "difference in points", "", "p", "McNemar p"]
    columns += ["detectable", *(["questions"] if kinds else []), "n", "videos"]
    note = small(
        "p: sign-flip test over videos. McNemar's mid-p takes questions as independent and is for information only. "
        "Detectable: the smallest true difference, in points, that this comparison shows in four of five cases."
    )
    return blocks.table(columns, table, sortable=True, filters=filters, values=values) + note


def _or_blank(value: float | None, form: str, scale: float = 1.0) -> Cell:
    return Cell(content="" if value is None else form.format(scale * value), sort=value)


def _side(name: str) -> str:
    model, _, condition = name.rpartition(".")
    return model if condition == ORDERED else f"{model} ({condition_title(condition)})"
