"""``vthink gate``: whether rules about finished benchmarks hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .settings import Overrides, Preset, load
from .stages import REFUSED

if TYPE_CHECKING:
    from ...components.evaluation.results import BenchmarkResult
    from ...components.evaluation.rules import GateRule


def gate(
    candidate: Annotated[list[Path], typer.Option(metavar="DIR", help="Results of the candidate. Repeatable.")],
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="RULE...", help="Rules that must all hold, as YAML.")
    ] = None,
    rules_file: Annotated[
        Path | None, typer.Option("--rules", metavar="FILE", help="A YAML file with a list of rules.")
    ] = None,
    champion: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Results of the model in service. Repeatable.")
    ] = None,
    base: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Results of the base model. Repeatable.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
) -> None:
    """Judge rules about finished benchmarks, line by line; exit code 3 where one does not hold.

    DIR is what `vthink evaluate --benchmark … --output DIR` left. A rule that names no benchmark is about the one that
    was measured.
    """
    from ...components.common.errors import UserError
    from ...components.evaluation.gate import judge
    from ...components.evaluation.results import read_benchmark

    config = load(preset, overrides).evaluation
    parsed = [rule for text in rules or () for rule in _parse(text, f"rule '{text}'")]
    if rules_file is not None:
        parsed += _parse(rules_file.read_text("utf-8"), str(rules_file))
    if not parsed:
        raise UserError("there are no rules: give one, such as '{metric: accuracy, at_least: 0.4}', or --rules FILE")
    folders = {"candidate": candidate, "champion": champion, "base": base}
    models = {
        name: _by_benchmark([read_benchmark(path, name) for path in paths]) for name, paths in folders.items() if paths
    }
    for rule in parsed:
        if rule.other_model in folders and rule.other_model not in models:
            raise UserError(f"rule '{rule}' needs the results of {rule.other_model}: give --{rule.other_model} DIR")
    verdict = judge(parsed, models, config.resampling)
    print(*verdict.lines, sep="\n")
    if not verdict.passed:
        raise typer.Exit(REFUSED)


def _by_benchmark(results: list[BenchmarkResult]) -> dict[str, BenchmarkResult]:
    """Results of one model by benchmark; where there is one alone, rules that name no benchmark are about it."""
    from ...components.common.errors import UserError
    from ...components.evaluation.results import HELD_OUT

    by_name = {result.benchmark: result for result in results}
    if len(by_name) < len(results):
        raise UserError(f"'{results[0].model}' has two results of one benchmark; give one")
    return by_name | ({HELD_OUT: results[0]} if len(results) == 1 else {})


def _parse(text: str, source: str) -> list[GateRule]:
    """The rules of a YAML text: one, or a list."""
    import yaml

    from ...components.common.errors import UserError
    from ...components.evaluation.rules import read_rule

    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML ({str(error).splitlines()[0]})") from None
    return [read_rule(rule, source) for rule in (data if isinstance(data, list) else [data])]
