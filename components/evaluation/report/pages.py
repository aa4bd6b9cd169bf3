"""Evaluations as HTML pages: what was measured, how sure it is, and every item with what the models answered.

`evaluation_page` shows the pipeline's evaluation (models of one run on the held-out split); `benchmark_page` compares
finished benchmarks (folders of ``vthink evaluate --benchmark``), with the papers' published figures beside them. A page
holds everything it needs and asks for nothing; items travel as data that its script shows page by page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from ...common.html import page
from ..config import EvaluationConfig
from ..results import BenchmarkResult, Comparison, EvaluationResult
from ..summary import comparisons
from . import opening, tables
from .cells import Board, differences_table, how_sure
from .items import Clips, browser

if TYPE_CHECKING:
    from ...common.video.clip import Clip


def evaluation_page(
    result: EvaluationResult,
    results: Sequence[BenchmarkResult],
    benchmarks: Sequence[BenchmarkResult],
    clip: Callable[[str], Clip],
    config: EvaluationConfig,
) -> str:
    """The report of the pipeline's evaluation. ``results`` are of every model on the held-out split, ``benchmarks`` of
    the same models (their items have a page of their own, `benchmark_page`); ``clip`` gives the clip of an item by its
    id."""
    board = Board(results)
    sections: list[Section] = [
        *_opening(board, config),
        *_folded(
            ("Models", tables.conditions_table(board, result.left_out, config)),
            ("What makes a difference", differences_table(result.comparisons)),
            ("Does it need the video?", tables.reliance_chart(board)),
            ("Finding the evidence", tables.grounding_chart(result) if result.baselines else None),
        ),
    ]
    if benchmarks:
        public = Board(benchmarks)
        differences = _comparisons(public, config)
        table = tables.benchmarks_table(public, differences) + differences_table(differences, public.titles)
        sections += _folded(("Public benchmarks", table))
    sections += _items(board, lambda item: clip(item.id), config)
    subtitle = (
        f"{result.items:,} questions about {result.videos:,} videos and images, split “{result.split}”. "
        f"{how_sure(config)}"
    )
    return _page("Evaluation", sections, subtitle)


def benchmark_page(results: Sequence[BenchmarkResult], config: EvaluationConfig, clips: Clips | None = None) -> str:
    """Models × benchmarks, with the published figures beside them.

    ``results`` are in the order in which models shall stand: marks compare with the first one, regressions are the last
    one's. A model with several results of one benchmark has runs: their mean and spread are shown, and the first stands
    for them elsewhere. ``clips`` gives the clip of an item; None: no pictures."""
    board = Board(results)
    differences = _comparisons(board, config)
    sections: list[Section] = [
        *_opening(board, config),
        *_folded(
            ("Results", tables.benchmarks_table(board, differences)),
            ("What makes a difference", differences_table(differences, board.titles)),
            ("By kind of question", tables.kinds_table(board)),
            ("Does it need the video?", tables.reliance_chart(board)),
            ("Grading as published, format, grounding, captions", tables.abilities_table(board)),
            ("How it was measured", tables.settings_table(board)),
        ),
        *_items(board, clips, config),
    ]
    subtitle = (
        f"{len(board.models)} models, {len(board.titles)} benchmarks, {board.num_questions:,} questions. "
        f"{how_sure(config)}"
    )
    return _page("Benchmarks", sections, subtitle)


def _comparisons(board: Board, config: EvaluationConfig) -> list[Comparison]:
    return [c for results in board.by_benchmark.values() for c in comparisons(results, config.resampling)]


Section = tuple[str, Markup | None]  # a heading and its contents; None: it is left out


def _opening(board: Board, config: EvaluationConfig) -> list[Section]:
    """What a reader wants to know first."""
    return [
        ("In one sentence", opening.opening(board, config)),
        ("By kind of question", opening.chart(board)),
        ("What got worse", opening.losses(board, config)),
        ("Telling examples", opening.examples(board, config)),
    ]


def _folded(*sections: Section) -> list[Section]:
    """Sections that are opened by a click on their heading."""
    fold = Markup('<details class="fold"><summary><h2>{}</h2></summary>{}</details>')
    return [("", fold.format(heading, content)) for heading, content in sections if content is not None]


def _items(board: Board, clips: Clips | None, config: EvaluationConfig) -> list[Section]:
    """What went wrong, and everything to browse."""
    failed = sum(len(result.result.failed) for result in board.firsts)
    return [
        *_folded(
            ("Worst regressions", tables.regressions_table(board)),
            (f"Failed items ({failed}), counted as wrong", tables.failures_table(board)),
        ),
        (f"{board.num_questions:,} items", browser(board, clips, config)),
    ]


def _page(title: str, sections: Sequence[Section], subtitle: str) -> str:
    shown = [(heading, content) for heading, content in sections if content is not None]
    return page.page(title, shown, subtitle, "evaluation/report/items.js", "evaluation/report/items.css")
