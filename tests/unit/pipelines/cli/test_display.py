from __future__ import annotations

import io

import pytest
from rich.console import Console
from vthink.pipelines.cli.display import ProgressView, kinds_table, stage_table, step_text
from vthink.pipelines.run.progress import StageProgress, read_step


def test_the_table_by_kind_lists_the_most_asked_first_and_fits_a_terminal():

    def about(value: float, n: int) -> dict:
        return {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}}

    models = {
        name: {"ordered": {"by_kind": {"ocr": about(0.25, 9), "direction": about(0.5, 600)}}}
        for name in ("sft", "grpo")
    }
    table = kinds_table({"models": models, "candidate": "grpo"})
    assert table is not None
    console = Console(width=80, no_color=True)
    with console.capture() as shown:
        console.print(table)
    lines = shown.get().splitlines()
    assert lines[1].split() == ["sft", "grpo"]
    assert lines[2].split()[:3] == ["direction", "(600)", "0.50"]
    assert "…" not in shown.get()
    one = {"models": {"sft": {"ordered": {"by_kind": {"ocr": about(0.25, 9)}}}}, "candidate": "sft"}
    assert kinds_table(one) is None


@pytest.mark.parametrize("width", [60, 80, 150])
def test_progress_fits_the_terminal_with_the_minutes_left(width):
    progress = StageProgress("sft", status="running", started=0.0, seconds=200.0)
    for step, value in enumerate((0.1, 0.2, 0.44), 1):
        line = f"sft {10 * step}/400 · loss 1.2 · validation/accuracy {value} · 6.10 s/step · 2195 s left"
        read_step(line, progress)
    console = Console(width=width, no_color=True)
    with console.capture() as shown:
        console.print(stage_table({"prepare": StageProgress("prepare", status="reused"), "sft": progress}, width))
    lines = shown.get().splitlines()
    assert len(lines) == 2
    assert "30/400 · 37 min left" in lines[1]
    assert "…" not in shown.get()
    if width >= 80:
        assert lines[1].rstrip().endswith("accuracy 0.44 ▁▃█")


def test_items_that_are_counted_are_shown_as_a_bar_too():
    progress = StageProgress("evaluate", status="running")
    read_step("evaluate grpo: 128 of 793, 3 failed", progress)
    assert step_text(progress, 60) == "━━──────── 128/793"
    progress = StageProgress("evaluate", status="running", line="loading")
    read_step("loading", progress)
    assert step_text(progress, 60) == "loading"


def test_without_a_terminal_a_running_stage_is_told_of_each_minute():
    console = Console(file=io.StringIO(), width=80)
    view, progress = ProgressView(console), StageProgress("sft", status="running", line="x", done=1, total=9)
    for seconds in (0.0, 30.0, 61.0, 90.0, 122.0):
        progress.seconds = seconds
        view.update({"sft": progress})
    assert console.file.getvalue().splitlines() == [
        "▸ sft running",
        "  sft 1:01 ━───────── 1/9",
        "  sft 2:02 ━───────── 1/9",
    ]
