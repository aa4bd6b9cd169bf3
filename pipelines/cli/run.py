"""``vthink run``: the whole pipeline on this machine, with live progress and a table at the end."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ...components.common.config import Stage
    from ..run.state import PlannedStage
    from ..run.watch import StageProgress

REFUSED = 3
"""Exit code of a run whose model did not pass the gate: all stages worked, what is in service stays."""

SYMBOLS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "reused": ("✓", "green dim"),
    "skipped": ("–", "dim"),
    "refused": ("✗", "yellow"),
    "failed": ("✗", "red"),
}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: vthink run --preset laptop --set launch.processes=2")(run)


def run(
    preset: Preset = "laptop",
    overrides: Overrides = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Redo this stage and everything after it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run and what is reused.")] = False,
    workspace: Folder = WORKSPACE,
) -> None:
    """Run the whole pipeline on this machine: prepare, SFT, GRPO, evaluate, gate, register, deploy.

    Finished stages are reused, a killed run resumes. The exit code is 3 when the gate refuses the model.
    """
    from rich.console import Console

    from ..run import execute, session, state
    from ..run import summary as summary_module

    config = load(preset, overrides)
    restart = stage_named(from_stage)
    console = Console(highlight=False)
    with session.session(config, workspace) as opened:
        if dry_run:
            console.print(_plan_table(state.plan(opened, restart)))
            return
        with Progress(console) as progress:
            outcome = execute.execute(opened, restart, progress.update)
        summary = summary_module.write_summary(opened, outcome)
    show_summary(console, summary, workspace)
    if summary["gate"]["verdict"] != "pass":
        raise typer.Exit(REFUSED)


def stage_named(name: str | None) -> Stage | None:
    """The stage of that name; None for None."""
    from ...components.common.config import STAGES

    for stage in STAGES:
        if name == stage:
            return stage
    if name is None:
        return None
    near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise typer.BadParameter(f"no stage '{name}'; {hint}stages: {', '.join(STAGES)}", param_hint="--from")


def _plan_table(planned: list[PlannedStage]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stage", "plan", ""):
        table.add_column(heading, overflow="fold")
    styles = {"run": "cyan", "reuse": "green", "skip": "dim", "check": "yellow"}
    for entry in planned:
        table.add_row(entry.stage, f"[{styles[entry.action]}]{entry.action}[/]", entry.reason)
    return table


class Progress:
    """The stages, live on a terminal; elsewhere a line when a stage begins or ends."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, stages: Mapping[Stage, StageProgress]) -> None:
        """Show where the stages are now."""
        if self._live:
            self._live.update(stage_table(stages))
            return
        for stage, progress in stages.items():
            if progress.status != self._told.get(stage, "waiting"):
                self._told[stage] = progress.status
                symbol, _ = SYMBOLS[progress.status]
                ended = progress.status in ("done", "reused", "refused", "failed")
                time = f" {clock(progress.seconds)}" if ended else ""
                self._console.print(f"{symbol} {stage} {progress.status}{time}", markup=False)


def stage_table(stages: Mapping[Stage, StageProgress]) -> RenderableType:
    """The stages with their states, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis")
    for stage, progress in stages.items():
        symbol, style = SYMBOLS[progress.status]
        time = clock(progress.seconds) if progress.started is not None else ""
        line = {"running": progress.line, "reused": "reused", "skipped": "skipped", "failed": progress.line}.get(
            progress.status, ""
        )
        table.add_row(Text(f"{symbol} {stage}", style), time, Text(line, "dim"))
    return table


def clock(seconds: float) -> str:
    """``42 s``, ``3:05`` or ``1:02:03``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- what is shown at the end


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


def _listed(options: Sequence[str]) -> str:
    return ", ".join(f"{chr(ord('A') + index)} {option}" for index, option in enumerate(options)) or "free answer"


def show_summary(console: Console, summary: Mapping[str, Any], workspace: Path) -> None:
    """What a run came to, and how to look at it again."""
    from rich.markup import escape

    console.print()
    console.print(accuracy_table(summary))
    console.print()
    if kinds := kinds_table(summary):
        console.print(kinds)
        console.print()
    passed = summary["gate"]["verdict"] == "pass"
    console.print(f"[bold]gate[/] {'[green]passed[/]' if passed else '[yellow]refused[/]'}")
    for line in summary["gate"]["lines"]:
        console.print(f"  {escape(line)}", style="dim")
    if model := summary["model"]:
        console.print(f"[bold]model[/] {model['name']} version {model['version']}, alias {model['alias']}")
    if asked := summary["question"]:
        console.print(f"[bold]asked[/] {escape(asked['question'])} ({_listed(asked['options'])})")
        console.print(f"  {asked['media_uri']}", style="dim")
        for segment in asked["segments"]:
            span = f"{segment['start_s']:.1f}–{segment['end_s']:.1f} s"
            console.print(f"  [cyan]{span}[/] {escape(segment['caption'] or '')}")
        truth = f", truth {escape(asked['truth'])}" if asked["truth"] else ""
        console.print(f"  answer [bold]{escape(asked['answer'] or 'none')}[/]{truth}")
    elsewhere = "" if workspace == WORKSPACE else f" --workspace {workspace}"
    console.print()
    console.print("look again with")
    for command, what in (
        (f"vthink ui{elsewhere}", "runs, curves and rollout tables in MLflow"),
        (f"vthink report{elsewhere}", "the evaluation's HTML report"),
        (f"vthink serve{elsewhere}", "the model at http://127.0.0.1:8080, with a page to try it"),
    ):
        console.print(f"  [bold]{command}[/]  {what}")
