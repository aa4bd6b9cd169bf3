"""What a run came to, on a terminal: the models' accuracies, the gate's verdict, and the question of the smoke test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import WORKSPACE

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ..run.summary import QuestionSummary, RunSummary


def accuracy_table(result: Mapping[str, Any]) -> RenderableType:
    """Models against accuracy with ordered, shuffled and other frames (with intervals) and format rate."""
    from rich.table import Table

    frames = {"ordered": "accuracy", "shuffled": "frames shuffled", "other_video": "another video"}
    models = {name: result["models"][name] for name in ("base", "sft", "grpo") if name in result["models"]}
    shown = [name for name in frames if any(name in about for about in models.values())]
    count = next(iter(models.values()))["ordered"]["accuracy"]["n"]
    table = Table(
        title=f"{count:g} held-out questions", title_justify="left", title_style="", box=None, header_style="bold"
    )
    table.add_column("")
    for heading in (*(frames[name] for name in shown), "format"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model, about in models.items():
        cells = [_interval(about.get(name, {}).get("accuracy")) for name in shown]
        rate = about["ordered"].get("format_rate")
        style = "bold" if model == result["candidate"] else ""
        table.add_row(model, *cells, f"{rate['value']:.3f}" if rate else "–", style=style)
    return table


def kinds_table(result: Mapping[str, Any]) -> RenderableType | None:
    """Accuracy with frames in order, by kind of question; None where there is only one kind."""
    from rich.table import Table

    models = {
        name: result["models"][name]["ordered"]["by_kind"]
        for name in ("base", "sft", "grpo")
        if name in result["models"]
    }
    kinds = models[result["candidate"]]
    if len(kinds) < 2:
        return None
    table = Table(title="by kind of question", title_justify="left", title_style="", box=None, header_style="bold")
    for heading in ("", *models):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for kind, about in sorted(kinds.items(), key=lambda pair: -pair[1]["accuracy"]["n"]):
        cells = (_interval(by_kind.get(kind, {}).get("accuracy"), 2) for by_kind in models.values())
        table.add_row(f"{kind} ({about['accuracy']['n']:g})", *cells)
    return table


def _interval(estimate: Mapping[str, float] | None, digits: int = 3) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def show_summary(console: Console, summary: RunSummary, workspace: Path) -> None:
    """Print what a run came to, and how to look at it again."""
    from rich.markup import escape

    result = {"models": summary.models, "candidate": summary.candidate}
    console.print()
    console.print(accuracy_table(result))
    console.print()
    if kinds := kinds_table(result):
        console.print(kinds)
        console.print()
    console.print(f"[bold]gate[/] {'[green]passed[/]' if summary.gate.passed else '[yellow]refused[/]'}")
    for line in summary.gate.lines:
        console.print(f"  {escape(line)}", style="dim")
    if model := summary.model:
        console.print(f"[bold]model[/] {model.name} version {model.version}, alias {model.alias}")
    if summary.question:
        _show_question(console, summary.question)
    elsewhere = "" if workspace == WORKSPACE else f" --workspace {workspace}"
    console.print()
    console.print("look again with")
    for command, what in (
        (f"vthink ui{elsewhere}", "runs, curves and rollout tables in MLflow"),
        (f"vthink report{elsewhere}", "the evaluation's HTML report"),
        (f"vthink serve{elsewhere}", "the model at http://127.0.0.1:8080, with a page to try it"),
    ):
        console.print(f"  [bold]{command}[/]  {what}")


def _show_question(console: Console, asked: QuestionSummary) -> None:
    from rich.markup import escape

    options = ", ".join(f"{chr(ord('A') + index)} {option}" for index, option in enumerate(asked.options))
    console.print(f"[bold]asked[/] {escape(asked.question)} ({options or 'free answer'})")
    console.print(f"  {asked.media_uri}", style="dim")
    for segment in asked.segments:
        console.print(f"  [cyan]{segment.start_s:.1f}–{segment.end_s:.1f} s[/] {escape(segment.caption or '')}")
    truth = f", truth {escape(asked.truth)}" if asked.truth else ""
    console.print(f"  answer [bold]{escape(asked.answer or 'none')}[/]{truth}")
