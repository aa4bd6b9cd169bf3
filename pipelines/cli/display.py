"""What commands show on a terminal: tables, the progress of a run's stages, and what a run came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...components.common.config import Stage
from ..preflight.finding import Finding
from ..run.progress import StageProgress
from .options import WORKSPACE

if TYPE_CHECKING:
    from ..run.summary import QuestionSummary, RunSummary

_SYMBOLS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "reused": ("✓", "green dim"),
    "skipped": ("–", "dim"),
    "refused": ("✗", "yellow"),
    "failed": ("✗", "red"),
}
_BAR, _BLOCKS = 10, "▁▂▃▄▅▆▇█"
_BESIDE = 24  # columns of the stages' names and times
_TELL_EVERY_S = 60.0  # without a terminal a running stage is told of this often


def table(*headings: str, title: str = "", left: Sequence[int] = (0,), wrap: bool = False) -> Table:
    """A table without lines, whose columns are flush right but for those ``left``; ``wrap``: in narrow columns too."""
    made = Table(title=title or None, title_justify="left", title_style="", box=None, pad_edge=not wrap)
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="left" if place in left else "right", no_wrap=not wrap and place not in left)
    return made


def print_findings(console: Console, findings: Iterable[Finding]) -> bool:
    """Print an examination, a line each as it comes; whether nothing is bad."""
    sound = True
    for finding in findings:
        symbol, style = {"ok": ("✓", "green"), "unknown": ("–", "dim")}.get(finding.verdict, ("✗", "red"))
        console.print(Text(f"{symbol} {finding.subject}: ", style) + Text(finding.detail), soft_wrap=True)
        sound = sound and finding.verdict != "bad"
    return sound


# --- the stages of a run


class ProgressView:
    """The stages, live on a terminal; elsewhere a line when a stage begins or ends, and each minute between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
        self._printed: dict[str, tuple[str, float]] = {}  # status and seconds when a stage was last told of

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, stages: Mapping[Stage, StageProgress]) -> None:
        """Show where the stages are now."""
        if self._live:
            self._live.update(stage_table(stages, self._console.width))
            return
        for stage, progress in stages.items():
            status, seconds = self._printed.get(stage, ("waiting", 0.0))
            if progress.status != status:
                ended = progress.status in ("done", "reused", "refused", "failed")
                time = f" {clock(progress.seconds)}" if ended else ""
                self._tell(f"{_SYMBOLS[progress.status][0]} {stage} {progress.status}{time}", progress)
            elif status == "running" and progress.seconds - seconds >= _TELL_EVERY_S and progress.line:
                self._tell(f"  {stage} {clock(progress.seconds)} {step_text(progress, 200)}", progress)

    def _tell(self, line: str, progress: StageProgress) -> None:
        self._printed[progress.stage] = (progress.status, progress.seconds)
        self._console.print(line, markup=False, soft_wrap=True)


def stage_table(stages: Mapping[Stage, StageProgress], width: int = 80) -> Table:
    """The stages with their states, one a line, in a terminal of so many columns."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True, justify="right")
    made.add_column(no_wrap=True, overflow="ellipsis")
    for stage, progress in stages.items():
        symbol, style = _SYMBOLS[progress.status]
        time = clock(progress.seconds) if progress.started is not None else ""
        lines = {"running": step_text(progress, width - _BESIDE), "failed": progress.line}
        lines |= {"reused": "reused", "skipped": "skipped"}
        text = Text(lines.get(progress.status, ""), "dim")
        text.truncate(max(1, width - _BESIDE), overflow="ellipsis")  # else a long line would take the names' columns
        made.add_row(Text(f"{symbol} {stage}", style), time, text)
    return made


def step_text(progress: StageProgress, width: int) -> str:
    """How far a running stage is, in so many columns: bar, steps, minutes left, a metric with its course."""
    if not progress.total:
        return progress.line
    filled = round(_BAR * min(1.0, progress.done / progress.total))
    parts = [f"{'━' * filled}{'─' * (_BAR - filled)} {progress.done}/{progress.total}"]
    if progress.left_s is not None:
        parts.append(f"{minutes(progress.left_s)} left")
    if progress.history:
        name = progress.metric.rpartition("/")[2]
        parts.append(f"{name} {progress.history[-1]:.3g} {sparkline(progress.history)}")
    while len(text := " · ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return text if len(text) <= width else f"{progress.done}/{progress.total}"


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The course of a metric, a block for each of its last values."""
    last = list(values)[-width:]
    low, span = min(last), (max(last) - min(last)) or 1.0
    return "".join(_BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1))] for value in last)


def minutes(seconds: float) -> str:
    """``40 s``, ``37 min`` or ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def clock(seconds: float) -> str:
    """``42 s``, ``3:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


# --- what a run came to


def accuracy_table(result: Mapping[str, Any]) -> Table:
    """Models against accuracy with ordered, shuffled and other frames (with intervals) and format rate."""
    frames = {"ordered": "accuracy", "shuffled": "frames shuffled", "other_video": "another video"}
    models = _in_order(result["models"])
    shown = [name for name in frames if any(name in about for about in models.values())]
    count = next(iter(models.values()))["ordered"]["accuracy"]["n"]
    made = table("", *(frames[name] for name in shown), "format", title=f"{count:g} held-out questions")
    for model, about in models.items():
        cells = [_interval(about.get(name, {}).get("accuracy")) for name in shown]
        rate = about["ordered"].get("format_rate")
        style = "bold" if model == result["candidate"] else ""
        made.add_row(model, *cells, f"{rate['value']:.3f}" if rate else "–", style=style)
    return made


def kinds_table(result: Mapping[str, Any]) -> Table | None:
    """Accuracy with frames in order, by kind of question; None where there is only one kind."""
    models = {name: about["ordered"]["by_kind"] for name, about in _in_order(result["models"]).items()}
    kinds = models[result["candidate"]]
    if len(kinds) < 2:
        return None
    made = table("", *models, title="by kind of question")
    for kind, about in sorted(kinds.items(), key=lambda pair: -pair[1]["accuracy"]["n"]):
        cells = (_interval(by_kind.get(kind, {}).get("accuracy"), 2) for by_kind in models.values())
        made.add_row(f"{kind} ({about['accuracy']['n']:g})", *cells)
    return made


def _in_order(models: Mapping[str, Any]) -> dict[str, Any]:
    return {name: models[name] for name in ("base", "sft", "grpo") if name in models}


def _interval(estimate: Mapping[str, float] | None, digits: int = 3) -> str:
    if estimate is None:
        return "–"
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def show_summary(console: Console, summary: RunSummary, workspace: Path) -> None:
    """Print what a run came to, and how to look at it again."""
    result = {"models": summary.models, "candidate": summary.candidate}
    console.print("", accuracy_table(result), "", sep="\n")
    if kinds := kinds_table(result):
        console.print(kinds, "", sep="\n")
    console.print(f"[bold]gate[/] {'[green]passed[/]' if summary.gate.passed else '[yellow]refused[/]'}")
    for line in summary.gate.lines:
        console.print(f"  {escape(line)}", style="dim")
    if model := summary.model:
        console.print(f"[bold]model[/] {model.name} version {model.version}, alias {model.alias}")
    if summary.question:
        _show_question(console, summary.question)
    elsewhere = "" if workspace == WORKSPACE else f" --workspace {workspace}"
    console.print("\nnext")
    for command, what in (
        (f"vthink ui{elsewhere}", "runs, curves and rollout tables in MLflow"),
        (f"vthink report{elsewhere}", "the evaluation's HTML report"),
        (f"vthink serve{elsewhere}", "the model at http://127.0.0.1:8080, with a page to try it"),
    ):
        console.print(f"  [bold]{command}[/]  {what}")


def _show_question(console: Console, asked: QuestionSummary) -> None:
    options = ", ".join(f"{chr(ord('A') + index)} {option}" for index, option in enumerate(asked.options))
    console.print(f"[bold]asked[/] {escape(asked.question)} ({options or 'free answer'})")
    console.print(f"  {asked.media_uri}", style="dim")
    for segment in asked.segments:
        console.print(f"  [cyan]{segment.start_s:.1f}–{segment.end_s:.1f} s[/] {escape(segment.caption or '')}")
    truth = f", truth {escape(asked.truth)}" if asked.truth else ""
    console.print(f"  answer [bold]{escape(asked.answer or 'none')}[/]{truth}")
