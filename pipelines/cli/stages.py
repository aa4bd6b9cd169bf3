"""The stages of a run on a terminal: their names as arguments, and how far they are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ...components.common.config import Stage
    from ..run.progress import StageProgress

REFUSED = 3
"""Exit code of a run whose model did not pass the gate: all stages worked, what is in service stays."""
_SYMBOLS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "reused": ("✓", "green dim"),
    "skipped": ("–", "dim"),
    "refused": ("✗", "yellow"),
    "failed": ("✗", "red"),
}


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


class ProgressView:
    """The stages, live on a terminal; elsewhere a line when a stage begins or ends."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._printed: dict[str, str] = {}

    def __enter__(self) -> ProgressView:
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
            if progress.status != self._printed.get(stage, "waiting"):
                self._printed[stage] = progress.status
                symbol, _ = _SYMBOLS[progress.status]
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
        symbol, style = _SYMBOLS[progress.status]
        time = clock(progress.seconds) if progress.started is not None else ""
        lines = {"running": progress.line, "failed": progress.line, "reused": "reused", "skipped": "skipped"}
        table.add_row(Text(f"{symbol} {stage}", style), time, Text(lines.get(progress.status, ""), "dim"))
    return table


def clock(seconds: float) -> str:
    """``42 s``, ``3:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
