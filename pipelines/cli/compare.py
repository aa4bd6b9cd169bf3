"""``vthink compare``: finished benchmarks side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .settings import Overrides, Preset, load

if TYPE_CHECKING:
    from rich.table import Table

    from ...components.evaluation.config import EvaluationConfig
    from ...components.evaluation.results import BenchmarkResult

_RESULTS = "NAME=DIR, or DIR: what `vthink evaluate --benchmark … --output DIR` left"


def compare(
    results: Annotated[list[str], typer.Argument(metavar="[NAME=]DIR...", help=_RESULTS, show_default=False)],
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the HTML report to this file.")] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
) -> None:
    """Compare models on benchmarks: intervals, paired tests, published figures; the first named is compared with.

    The same NAME twice on one benchmark means two runs: mean and spread are shown. Pictures of evaluation.report_items
    items are taken from the benchmark's folder where it is still there.
    """
    from rich.console import Console

    config = load(preset, overrides).evaluation
    measured = [_read(argument) for argument in results]
    Console(highlight=False).print(_table(measured, config))
    if report is not None:
        from ...components.evaluation.report.items import folder_clips
        from ...components.evaluation.report.pages import benchmark_page

        with folder_clips(measured) as clips:
            page = benchmark_page(measured, config, clips)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, "utf-8")
        print(report)


def _read(argument: str) -> BenchmarkResult:
    from ...components.evaluation.results import read_benchmark

    name, equals, folder = argument.partition("=")
    if equals and not Path(argument).exists():
        return read_benchmark(folder, name.strip()[:60] or None)
    return read_benchmark(argument)


def _table(results: list[BenchmarkResult], config: EvaluationConfig) -> Table:
    """Models and their differences to the first, for a terminal."""
    from rich.table import Table

    from ...components.evaluation.summary import compare as compare_results

    table = Table(box=None)
    for name in ("benchmark", "model", "score", "95 %" if config.confidence == 0.95 else "interval", "n"):
        table.add_column(name, justify="right" if name in ("score", "n") else "left")
    table.add_column("against the first")
    firsts: dict[str, BenchmarkResult] = {}
    for one in results:
        score = one.ordered.scores[one.headline]
        against = ""
        first = firsts.setdefault(one.key, one)
        if first is not one:
            difference = compare_results(one, first, one.headline, config.resampling)
            if difference is None:
                against = "not the same questions"
            else:
                against = f"{100 * difference.value:+.1f} points, p = {difference.p_value:.2g}: {difference.verdict}"
                if difference.verdict.startswith("no ") and difference.detectable:
                    against += f" (detectable: {100 * difference.detectable:.1f})"
        interval = f"{100 * score.low:.1f} – {100 * score.high:.1f}"
        table.add_row(one.result.title, one.model, f"{100 * score.value:.1f} %", interval, f"{score.n:,}", against)
    return table
