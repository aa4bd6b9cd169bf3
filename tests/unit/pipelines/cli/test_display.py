from __future__ import annotations

from rich.console import Console
from vthink.pipelines.cli.display import kinds_table


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
