"""What evaluation pages are made of: the board of results, published figures, and how numbers look."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ...common.config import Section
from ...common.html import blocks, page
from ...common.html.blocks import Cell, Filter
from ...common.html.charts import Bar
from ..conditions import ORDERED, condition_title
from ..config import EvaluationConfig
from ..metrics import metric_named
from ..results import BenchmarkResult, Comparison
from ..statistics import NO_DIFFERENCE, Difference, Estimate


class Board:
    """A table of results: models × benchmarks. Several results of one model on one benchmark are its runs."""

    def __init__(self, results: Sequence[BenchmarkResult]) -> None:
        self.results = results
        self.models = list(dict.fromkeys(result.model for result in results))
        self.titles: dict[str, str] = {}
        """Of the benchmarks by key, in the order of the columns."""
        self.runs: dict[tuple[str, str], list[BenchmarkResult]] = {}
        """By model and benchmark."""
        for result in results:
            self.titles.setdefault(result.key, result.result.title)
            self.runs.setdefault((result.model, result.key), []).append(result)
        self.by_benchmark = {
            key: [self.runs[model, key][0] for model in self.models if (model, key) in self.runs] for key in self.titles
        }
        """The first run of every model that was measured on a benchmark, which stands for it, by benchmark."""
        self.firsts = [result for measured in self.by_benchmark.values() for result in measured]
        """The first run of every model on every benchmark."""
        self.num_questions = len({(r.key, i.id) for r in self.firsts for cell in r.items.values() for i in cell})
        """Different questions of all benchmarks."""

    def get(self, model: str, key: str) -> BenchmarkResult | None:
        """The first run of a model on a benchmark."""
        return self.runs.get((model, key), [None])[0]

    def label(self, result: BenchmarkResult) -> str:
        """A model, with its benchmark where there are several."""
        return f"{result.model}, {result.result.title}" if len(self.titles) > 1 else result.model


class PublishedModel(Section):
    """Figures of one model, in per cent."""

    model: str
    frames: int | None = None
    """Frames per video."""
    source: str
    values: dict[str, float]
    """``benchmark.score`` → figure; of abilities: metric → figure."""


class Published(Section):
    """Figures that papers publish, beside ours and never in place of ours (``published.yaml``)."""

    unverified: dict[str, str]
    """``benchmark.score`` → what could not be checked against the paper's own files."""
    models: tuple[PublishedModel, ...]
    abilities: tuple[PublishedModel, ...]
    """Grounding and captions, of Video-Thinker's own samples."""

    def scores_of(self, key: str) -> set[str]:
        """The scores of a benchmark that a figure is published for."""
        names = (name.split(".") for one in self.models for name in one.values)
        return {score for benchmark, score in names if benchmark == key}


@cache
def published() -> Published:
    """The figures."""
    text = (Path(__file__).parent / "published.yaml").read_text("utf-8")
    return Published.load(yaml.safe_load(text), "published.yaml")


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
    if difference is not None and difference.verdict != NO_DIFFERENCE:
        up = difference.verdict == "higher"
        tone, title = "good" if up == about.higher_is_better else "bad", f"{points(difference)} points"
        mark = Markup(' <span class="mark {}" title="{}, p = {:.2g}">{}</span>')
        content += mark.format(tone, title, difference.p_value, "▲" if up else "▼")
    return Cell(content=content, sort=estimate.value)


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


def benchmark_filter(titles: Mapping[str, str]) -> list[Filter]:
    """Buttons to choose a benchmark, where there are several."""
    return [Filter(key="benchmark", label="benchmark", choices=list(titles.items()))] if len(titles) > 1 else []


def differences_table(comparisons: Sequence[Comparison], titles: Mapping[str, str] | None = None) -> Markup:
    """Paired differences; ``titles``: of benchmarks by key, where there are any."""
    if not comparisons:
        return page.paragraph("Nothing to compare: there is one model, or there are fewer than two videos.")
    table, values = [], []
    kinds = any(one.kind is not None for one in comparisons)
    interval = Markup('<span class="interval"><b>{}</b><small>{}</small></span>')
    for one in comparisons:
        table.append(
            [
                f"{_side(one.first)} − {_side(one.second)}" + (", mIoU" if one.metric == "miou" else ""),
                *([titles[str(one.benchmark)]] if titles else []),
                Cell(content=interval.format(*points(one).split(" ", 1)), sort=one.value),
                Cell(content=page.chip(one.verdict, _TONES.get(one.verdict, "plain")), sort=one.verdict),
                _number(one.p_value, "{:.2g}"),
                _number(one.mcnemar_p, "{:.2g}"),
                _number(one.detectable, "{:.1f}", 100),
                *([one.kind or "all"] if kinds else []),
                one.n,
                one.clusters,
            ]
        )
        shown_under = {"verdict": [one.verdict.split()[0]], "questions": ["kind" if one.kind else "all"]}
        values.append(shown_under | ({"benchmark": [str(one.benchmark)]} if titles else {}))
    verdicts = [("higher", "higher"), ("lower", "lower"), ("no", NO_DIFFERENCE)]
    filters = [Filter(key="verdict", label="difference", choices=verdicts), *benchmark_filter(titles or {})]
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


def _number(value: float | None, form: str, scale: float = 1.0) -> Cell:
    return Cell(content="" if value is None else form.format(scale * value), sort=value)


def _side(name: str) -> str:
    model, _, condition = name.rpartition(".")
    return model if condition == ORDERED else f"{model} ({condition_title(condition)})"
