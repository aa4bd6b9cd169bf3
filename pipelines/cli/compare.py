"""``vthink compare`` and ``vthink gate``: finished benchmarks side by side, and whether rules about them hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .settings import Overrides, Preset, load

if TYPE_CHECKING:
    from ...components.evaluation.results import BenchmarkResult

REFUSED = 3
"""Exit code when a rule does not hold, as of ``vthink run``."""

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
    found = [_read(given) for given in results]
    Console(highlight=False).print(_table(found, config))
    if report is not None:
        from ...components.evaluation.report.benchmarks import benchmark_page
        from ...components.evaluation.report.frames import BenchmarkFrames

        with BenchmarkFrames(found) as frames:
            page = benchmark_page(found, config, frames)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, "utf-8")
        print(report)


def gate(
    rules: Annotated[list[str], typer.Argument(metavar="RULE...", help="Rules that must all hold.")],
    candidate: Annotated[list[Path], typer.Option(metavar="DIR", help="Results of the candidate. Repeatable.")],
    champion: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Results of the model in service. Repeatable.")
    ] = None,
    base: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Results of the base model. Repeatable.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
) -> None:
    """Judge rules about finished benchmarks, line by line; exit code 3 where one does not hold."""
    from ...components.evaluation.gate import judge_benchmarks
    from ...components.evaluation.results import read_benchmark

    config = load(preset, overrides).evaluation
    given = {"candidate": candidate, "champion": champion, "base": base}
    models = {name: [read_benchmark(path, name) for path in paths] for name, paths in given.items() if paths}
    verdict = judge_benchmarks(rules, models, config)
    for line in verdict.lines:
        print(line)
    if not verdict.passed:
        raise typer.Exit(REFUSED)


def _read(given: str) -> BenchmarkResult:
    from ...components.evaluation.results import read_benchmark

    name, equals, folder = given.partition("=")
    if equals and not Path(given).exists():
        return read_benchmark(folder, name.strip()[:60] or None)
    return read_benchmark(given)


def _table(results: list[BenchmarkResult], config: Any) -> Any:
    """Models and their differences to the first, for a terminal."""
    from rich.table import Table

    from ...components.evaluation.results import compare as compare_results

    table = Table(box=None)
    for name in ("benchmark", "model", "score", "95 %" if config.confidence == 0.95 else "interval", "n"):
        table.add_column(name, justify="right" if name in ("score", "n") else "left")
    table.add_column("against the first")
    firsts: dict[str, Any] = {}
    for one in results:
        found = one.cells["ordered"][one.headline]
        against = ""
        first = firsts.setdefault(one.key, one)
        if first is not one:
            difference = compare_results(one, first, one.headline, config)
            if difference is None:
                against = "not the same questions"
            else:
                against = f"{100 * difference.value:+.1f} points, p = {difference.p_value:.2g}: {difference.verdict}"
                if difference.verdict.startswith("no ") and difference.detectable:
                    against += f" (detectable: {100 * difference.detectable:.1f})"
        ends = [f"{100 * found[part]:.1f}" for part in ("low", "high")]
        score = f"{100 * found['value']:.1f} %"
        table.add_row(one.result["title"], one.model, score, " – ".join(ends), f"{found['n']:,}", against)
    return table
