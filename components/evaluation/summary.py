"""From answers to numbers: grades per item, estimates per model and frame condition, paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.tracking.traces import Trace
from .conditions import seed_of
from .config import EvaluationConfig
from .expressions import FRAMES, UNBOUNDED
from .statistics import Estimate, cluster_mean, paired_difference


def summarize(rows: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, Any]:
    """Every metric of one model under one frame condition: over all items, by problem type and by kind."""
    summary: dict[str, Any] = _metrics(rows, config)
    for group, key in (("by_type", "problem_type"), ("by_kind", "kind")):
        names = dict.fromkeys(row[key] for row in rows if row[key] is not None)
        summary[group] = {name: _metrics([row for row in rows if row[key] == name], config) for name in names}
    dimensions = dict.fromkeys(name for row in rows for name in row.get("groups", {}))
    summary["by"] = {
        dimension: {
            name: _metrics([row for row in rows if row["groups"].get(dimension) == name], config)
            for name in dict.fromkeys(row["groups"][dimension] for row in rows if dimension in row["groups"])
        }
        for dimension in dimensions
    }
    summary["failed"] = sum(row["error"] is not None for row in rows)
    return summary


def _metrics(rows: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found = {}
    for name in names:
        having = [row for row in rows if name in row["metrics"]]
        found[name] = cluster_mean(
            [row["metrics"][name] for row in having],
            [row["video"] for row in having],
            confidence=config.confidence,
            resamples=config.bootstrap_resamples,
            seed=config.seed,
            bounds=None if name in UNBOUNDED else (0.0, 1.0),
        ).to_dict()
    return found


def compare(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    metric: str,
    config: EvaluationConfig,
) -> Estimate | None:
    """The mean of first − second over the items that both have, paired, clustered by video.

    None when they share fewer than two videos.
    """
    other = {row["id"]: row["metrics"][metric] for row in second if metric in row["metrics"]}
    shared = [row for row in first if metric in row["metrics"] and row["id"] in other]
    if len({row["video"] for row in shared}) < 2:
        return None
    return paired_difference(
        [row["metrics"][metric] for row in shared],
        [other[row["id"]] for row in shared],
        [row["video"] for row in shared],
        confidence=config.confidence,
        resamples=config.bootstrap_resamples,
        seed=config.seed,
    )


Rows = dict[tuple[str, str], list[dict[str, Any]]]
"""Graded items by (model, frames)."""


def comparisons(rows: Rows, config: EvaluationConfig) -> list[dict[str, Any]]:
    """Paired differences in accuracy: each model over those before it, and ordered over other frames."""
    models = list(dict.fromkeys(model for model, _ in rows))
    pairs = [
        ((later, "ordered"), (earlier, "ordered"))
        for place, later in enumerate(models)
        for earlier in reversed(models[:place])
    ]
    pairs += [
        ((model, "ordered"), (model, frames)) for model in models for frames in FRAMES[1:] if (model, frames) in rows
    ]
    found = []
    kinds = list(dict.fromkeys(row["kind"] for cell in rows.values() for row in cell if row["kind"] is not None))
    for first, second in pairs:
        for kind in [None, *kinds] if len(kinds) > 1 else [None]:
            chosen = [[row for row in rows[cell] if kind in (None, row["kind"])] for cell in (first, second)]
            estimate = compare(chosen[0], chosen[1], "accuracy", config)
            if estimate is not None:
                names = {
                    "first": ".".join(first),
                    "second": ".".join(second),
                    "metric": "accuracy",
                    "kind": kind,
                }
                found.append(names | estimate.to_dict())
    return found


def conclude(
    rows: Rows,
    models: Mapping[str, Mapping[str, str]],
    baselines: Mapping[str, Sequence[Mapping[str, Any]]],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The contents of ``result.json``, but for where things are.

    Args:
        rows: graded items of every model and condition.
        models: ``uri`` and ``fingerprint`` of every model, in the order of the chain; the last is the
        candidate. baselines: from `baseline_items`. config: of the evaluation.
    """
    result: dict[str, Any] = {"models": {name: dict(about) for name, about in models.items()}}
    for (model, frames), cell in rows.items():
        result["models"][model][frames] = summarize(cell, config)
    result["baselines"] = {name: {"ordered": summarize(cell, config)} for name, cell in baselines.items()}
    result["comparisons"] = comparisons(rows, config)
    result["candidate"] = list(models)[-1]
    result["failed"] = [
        {key: row[key] for key in ("id", "model", "frames", "error")}
        for cell in rows.values()
        for row in cell
        if row["error"] is not None
    ]
    return result


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """``evaluation/model/frames/metric[/group]`` → value, for MLflow, the manifest and KFP."""
    found: dict[str, float] = {}
    for model, about in result["models"].items():
        for frames in FRAMES:
            cell = about.get(frames, {})
            groups = [("", cell)]
            groups += [(f"/{name}", group) for name, group in cell.get("by_type", {}).items()]
            groups += [(f"/kind_{name}", group) for name, group in cell.get("by_kind", {}).items()]
            for suffix, group in groups:
                for metric, estimate in group.items():
                    if isinstance(estimate, Mapping) and "value" in estimate:
                        found[f"evaluation/{model}/{frames}/{metric}{suffix}"] = estimate["value"]
    return found


def result_table(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """``result.json`` as columns: one row per model, frames, metric and group."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("model", "frames", "group", "metric", "value", "low", "high", "n")
    }
    for model, about in result["models"].items():
        for frames in FRAMES:
            cell = about.get(frames, {})
            groups = [("all", cell)]
            groups += [(f"{by}.{name}", g) for by in ("by_type", "by_kind") for name, g in cell.get(by, {}).items()]
            for group, metrics in groups:
                for metric, estimate in metrics.items():
                    if isinstance(estimate, Mapping) and "value" in estimate:
                        row = {"model": model, "frames": frames, "group": group, "metric": metric, **estimate}
                        for name, values in columns.items():
                            values.append(row[name])
    return columns


def items_table(rows: Rows) -> dict[str, list[Any]]:
    """The evaluation table of MLflow: every item of the candidate-independent record, without token ids."""
    names = (
        "id",
        "model",
        "frames",
        "problem_type",
        "kind",
        "response",
        "answer",
        "truth",
        "score",
        "correct",
        "error",
    )
    return {name: [row[name] for cell in rows.values() for row in cell] for name in names}


def item_traces(rows: Rows, candidate: str, config: EvaluationConfig) -> list[Trace]:
    """What the candidate was asked with frames in order and what it said, for `config.report_items` items."""
    shown = sorted(rows[candidate, "ordered"], key=lambda row: seed_of(config.seed, "shown", row["id"]))
    return [
        Trace(
            name=row["id"],
            inputs={name: row[name] for name in ("question", "options", "video", "clip")},
            outputs={name: row[name] for name in ("response", "answer", "truth", "score", "correct", "error")},
            tags={
                "vthink.model": candidate,
                "vthink.kind": row["kind"] or row["problem_type"],
                "vthink.outcome": "failed" if row["error"] is not None else "right" if row["correct"] else "wrong",
            },
        )
        for row in shown[: config.report_items]
    ]
