"""Figures that several benchmarks report."""

from __future__ import annotations

from collections.abc import Callable

from ..grade import Row
from ..scores import Score


def _accuracy(row: Row) -> float:
    return float(row["metrics"]["accuracy"])


def _metric(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["metrics"].get(name)


def _if_choice(row: Row) -> float | None:
    return _accuracy(row) if row["problem_type"] == "multiple_choice" else None


def _if_open(row: Row) -> float | None:
    return None if row["problem_type"] == "multiple_choice" else _accuracy(row)


def _kind(row: Row) -> tuple[str, str]:
    return str(row["kind"]), ""


ACCURACY = Score("share of questions whose option letter is right; a failed one is wrong", _accuracy)
