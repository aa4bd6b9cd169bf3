"""From answers to numbers: grades per item, estimates per model and frame condition, paired comparisons."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..common import answers as graders
from ..common.samples import Sample
from .asking import Answer, video_of
from .config import EvaluationConfig
from .expressions import FRAMES
from .statistics import Estimate, cluster_mean, paired_difference

UNBOUNDED = ("wer",)
"""Metrics that can exceed 1."""


# -- grading -------------------------------------------------------------------------------------------------


def kind_of(sample: Sample) -> str | None:
    """``metadata.kind`` as a name that a gate rule can hold."""
    kind = sample.metadata.get("kind")
    return re.sub(r"\W+", "_", str(kind)).strip("_") or None if kind is not None else None


def grade_answer(
    sample: Sample, answer: Answer, model: str, frames: str, answer_format: graders.AnswerFormat
) -> dict[str, Any]:
    """One row of ``items.jsonl``. An item that failed has every metric at its worst."""
    parsed = graders.parse_response(answer.text)
    said, failed = parsed.answer, answer.error is not None
    shape = graders.follows_format
    metrics = {
        "accuracy": float(not failed and graders.is_correct(sample, said)),
        "score": 0.0 if failed else graders.grade(sample, said),
        "format_rate": float(not failed and shape(sample, answer.text, answer_format)),
        "format_video_r1": float(not failed and shape(sample, answer.text, "video_r1")),
        "format_video_thinker": float(not failed and shape(sample, answer.text, "video_thinker")),
    }
    text = (said or "")[: graders.MAX_ANSWER_CHARS]
    if sample.problem_type in ("regression", "numerical"):
        metrics["mra"] = graders.mean_relative_accuracy(text, sample.answer)
    elif sample.problem_type == "ocr":
        metrics["wer"] = graders.word_error_rate(text, sample.answer)
    elif sample.problem_type == "free_form":
        metrics["rouge"] = graders.rouge_f(text, sample.answer)
    if sample.evidence:
        metrics |= grounding([(segment.start_s, segment.end_s) for segment in parsed.segments], sample)
    return {
        "id": sample.id,
        "video": video_of(sample),
        "model": model,
        "frames": frames,
        "problem_type": sample.problem_type,
        "kind": kind_of(sample),
        "response": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "answer": said,
        "truth": sample.answer,
        "score": metrics["score"],
        "correct": bool(metrics["accuracy"]),
        "format": bool(metrics["format_rate"]),
        "metrics": metrics,
        "error": answer.error,
    }


def grounding(predicted: Sequence[graders.Span], sample: Sample) -> dict[str, float]:
    """mIoU and recall of predicted time spans against the evidence of a sample (Video-Thinker's
    definition)."""
    scores = graders.grounding_scores(predicted, [(span.start_s, span.end_s) for span in sample.evidence])
    return {"miou": scores["miou"]} | {f"recall_at_{k}": scores[f"r@0.{k // 10}"] for k in (30, 50, 70)}


def mean_span(samples: Iterable[Sample]) -> graders.Span | None:
    """The mean start and end, in seconds, of all evidence: what one can know about a span without looking."""
    spans = [(span.start_s, span.end_s) for sample in samples for span in sample.evidence]
    if not spans:
        return None
    start, end = np.mean(spans, axis=0)
    return float(start), float(end)


def baseline_items(
    samples: Sequence[Sample], durations_s: Sequence[float], typical: graders.Span | None
) -> dict[str, list[dict[str, Any]]]:
    """Grounding that needs no model: always the whole clip, and always the mean span of the training data."""
    rows: dict[str, list[dict[str, Any]]] = {"whole_clip": [], "mean_training_span": []}
    for sample, duration_s in zip(samples, durations_s, strict=True):
        if not sample.evidence:
            continue
        row: dict[str, Any] = {"id": sample.id, "video": video_of(sample), "error": None}
        row |= {"problem_type": sample.problem_type, "kind": kind_of(sample)}
        rows["whole_clip"].append(row | {"metrics": grounding([(0.0, duration_s)], sample)})
        if typical is not None:
            span = (min(typical[0], duration_s), min(typical[1], duration_s))
            rows["mean_training_span"].append(row | {"metrics": grounding([span], sample)})
    return {name: found for name, found in rows.items() if found}


# -- estimating ----------------------------------------------------------------------------------------------


def summarize(rows: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, Any]:
    """Every metric of one model under one frame condition: over all items, by problem type and by kind."""
    summary: dict[str, Any] = _metrics(rows, config)
    for group, key in (("by_type", "problem_type"), ("by_kind", "kind")):
        names = dict.fromkeys(row[key] for row in rows if row[key] is not None)
        summary[group] = {name: _metrics([row for row in rows if row[key] == name], config) for name in names}
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
