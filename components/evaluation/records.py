"""What MLflow, the manifest and KFP get of an evaluation: metrics, tables and traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..common.tracking.run import Trace
from .conditions import CONDITIONS, seed_of
from .item import Item
from .results import EvaluationResult
from .statistics import Estimate


def _estimates(result: EvaluationResult) -> Iterator[tuple[str, str, tuple[str, str] | None, str, Estimate]]:
    """(model, condition, group, metric, estimate) of everything that was measured on the held-out split."""
    for model, about in result.models.items():
        for condition in CONDITIONS:
            if (cell := about.conditions.get(condition)) is not None:
                for group, estimates in [(None, cell.metrics), *cell.groups.items()]:
                    for metric, estimate in estimates.items():
                        yield model, condition, group, metric, estimate


def flat_metrics(result: EvaluationResult) -> dict[str, float]:
    """``evaluation/model/condition/metric[/group]`` → value."""
    suffix = {"by_type": "/", "by_kind": "/kind_"}
    return {
        f"evaluation/{model}/{condition}/{metric}{suffix[group[0]] + group[1] if group else ''}": estimate.value
        for model, condition, group, metric, estimate in _estimates(result)
    }


def result_table(result: EvaluationResult) -> dict[str, list[Any]]:
    """``result.json`` as columns: one row per model, condition, metric and group."""
    names = ("model", "frames", "group", "metric", "value", "low", "high", "n")
    rows = [
        (model, condition, ".".join(group or ("all",)), metric, e.value, e.low, e.high, e.n)
        for model, condition, group, metric, e in _estimates(result)
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def items_table(items: Iterable[Item]) -> dict[str, list[Any]]:
    """Every item, without its token ids."""
    names = ("id", "model", "problem_type", "kind", "response", "answer", "truth", "score", "correct", "error")
    items = list(items)
    table: dict[str, list[Any]] = {name: [getattr(item, name) for item in items] for name in names}
    return {"id": table["id"], "model": table["model"], "frames": [item.condition for item in items]} | table


def item_traces(items: Sequence[Item], count: int, seed: int) -> list[Trace]:
    """Question and answer of some of the candidate's items, drawn by the seed."""
    shown = sorted(items, key=lambda item: seed_of(seed, "shown", item.id))
    return [
        Trace(
            name=item.id,
            inputs={name: getattr(item, name) for name in ("question", "options", "video", "clip")},
            outputs={
                name: getattr(item, name) for name in ("response", "answer", "truth", "score", "correct", "error")
            },
            tags={
                "vthink.model": item.model,
                "vthink.kind": item.kind or item.problem_type,
                "vthink.outcome": item.outcome,
            },
        )
        for item in shown[:count]
    ]
