"""``vthink run``: the whole pipeline on this machine, with live progress and a table at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load
from .stages import REFUSED, ProgressView, stage_named

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..run.preview import StagePreview


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

    from ..run.execute import StageFailedError, run_pipeline
    from ..run.preview import preview_stages
    from ..run.session import session
    from ..run.summary import write_summary
    from .summary import show_summary

    config = load(preset, overrides)
    restart = stage_named(from_stage)
    console = Console(highlight=False)
    with session(config, workspace) as opened:
        if dry_run:
            console.print(_preview_table(preview_stages(opened, restart)))
            return
        try:
            with ProgressView(console) as view:
                outcome = run_pipeline(opened, restart, view.update)
        except StageFailedError as error:
            print(*(f"  {line}" for line in error.last_lines), sep="\n", file=sys.stderr)
            raise
        summary = write_summary(opened, outcome)
    show_summary(console, summary, workspace)
    if not summary.gate.passed:
        raise typer.Exit(REFUSED)


def _preview_table(stages: list[StagePreview]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("stage", "plan", ""):
        table.add_column(heading, overflow="fold")
    styles = {"run": "cyan", "reuse": "green", "skip": "dim", "check": "yellow"}
    for entry in stages:
        table.add_row(entry.stage, f"[{styles[entry.action]}]{entry.action}[/]", entry.reason)
    return table
