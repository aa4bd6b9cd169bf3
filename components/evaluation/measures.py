"""From answers to numbers: grades per item, estimates per model and frame condition, paired comparisons."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from ..common import answers as graders
from ..common.samples import Sample
from ..common.tracking import Trace
from .asking import Answer, seed_of, video_of
from .config import EvaluationConfig
from .expressions import FRAMES, UNBOUNDED
from .statistics import Estimate, cluster_mean, paired_difference, t_quantile

Row = Mapping[str, Any]
"""One graded item, a line of ``items.jsonl``."""
MAX_CLUES = 5
"""CG-Bench reads no more intervals of a response than these."""
_MAX_CAPTION_CHARS = 2000


# -- grading -------------------------------------------------------------------------------------------------


def kind_of(sample: Sample) -> str | None:
    """``metadata.kind`` as a name that a gate rule can hold."""
    kind = sample.metadata.get("kind")
    return re.sub(r"\W+", "_", str(kind)).strip("_") or None if kind is not None else None


def grade_answer(
    sample: Sample,
    answer: Answer,
    model: str,
    frames: str,
    answer_format: graders.AnswerFormat,
    rule: Callable[[Sample, str | None], float] | None = None,
) -> dict[str, Any]:
    """One row of ``items.jsonl``. An item that failed has every metric at its worst.

    Args:
        sample: the question.
        answer: what was said.
        model: name of the model.
        frames: one of `FRAMES`.
        answer_format: what the model was asked to write.
        rule: grades the questions that name a rule of their benchmark (``metadata.rule``).
    """
    parsed = graders.parse_response(answer.text)
    said, failed = parsed.answer, answer.error is not None
    as_published = graders.published_answer(answer.text)
    shape = graders.follows_format
    metrics = {
        "accuracy": float(not failed and graders.is_correct(sample, said)),
        "accuracy_paper": float(not failed and graders.is_correct(sample, as_published, "paper")),
        "score": 0.0 if failed else graders.grade(sample, said),
        "format_rate": float(not failed and shape(sample, answer.text, answer_format)),
        "format_video_r1": float(not failed and shape(sample, answer.text, "video_r1")),
        "format_video_thinker": float(not failed and shape(sample, answer.text, "video_thinker")),
    }
    if rule is not None and "rule" in sample.metadata:
        metrics["accuracy"] = metrics["score"] = 0.0 if failed else rule(sample, said)
    text = (said or "")[: graders.MAX_ANSWER_CHARS]
    if sample.problem_type in ("regression", "numerical"):
        metrics["mra"] = graders.mean_relative_accuracy(text, sample.answer)
        metrics["mra_inclusive"] = graders.mean_relative_accuracy(text, sample.answer, inclusive=True)
    elif sample.problem_type == "ocr":
        metrics["wer"] = graders.word_error_rate(text, sample.answer)
    elif sample.problem_type == "free_form":
        metrics["rouge"] = graders.rouge_f(text, sample.answer)
    if sample.evidence:
        metrics |= grounding([(segment.start_s, segment.end_s) for segment in parsed.segments], sample)
        if sample.metadata.get("captioned", True):
            metrics |= captioning(parsed.segments, sample)
    return {
        "id": sample.id,
        "video": video_of(sample),
        "model": model,
        "frames": frames,
        "problem_type": sample.problem_type,
        "kind": kind_of(sample),
        "groups": dict(sample.metadata.get("groups") or {}),
        "response": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "answer": said,
        "truth": sample.answer,
        "question": sample.question,
        "options": list(sample.options),
        "clip": [sample.media.start_s, sample.media.end_s],
        "evidence": [[span.start_s, span.end_s, span.caption] for span in sample.evidence],
        "score": metrics["score"],
        "correct": bool(metrics["accuracy"]),
        "format": bool(metrics["format_rate"]),
        "metrics": metrics,
        "duration_s": answer.duration_s,
        "error": answer.error,
    }


def grounding(predicted: Sequence[graders.Span], sample: Sample) -> dict[str, float]:
    """mIoU and recall of predicted time spans against the evidence of a sample (Video-Thinker's
    definition), and the IoU of their unions (``clue_iou``, CG-Bench's run/utils.py)."""
    truth = [(span.start_s, span.end_s) for span in sample.evidence]
    scores = graders.grounding_scores(predicted, truth)
    found = {"miou": scores["miou"]} | {f"recall_at_{k}": scores[f"r@0.{k // 10}"] for k in (30, 50, 70)}
    return found | {"clue_iou": union_iou(predicted[:MAX_CLUES], truth)}


def union_iou(first: Sequence[graders.Span], second: Sequence[graders.Span]) -> float:
    """IoU of the union of some spans with the union of others, in seconds; 0 where neither has a length."""
    ends = sorted({point for span in (*first, *second) for point in span if math.isfinite(point)})
    both = either = 0.0
    for start, end in pairwise(ends):
        inside = [any(span[0] <= start and end <= span[1] for span in spans) for spans in (first, second)]
        both += (end - start) * all(inside)
        either += (end - start) * any(inside)
    return both / either if either > 0 else 0.0


def captioning(segments: Sequence[graders.Segment], sample: Sample) -> dict[str, float]:
    """How well the captions of a response describe the evidence, averaged over its spans.

    Each true span is compared with the caption of the segment that overlaps it most (none: 0): ROUGE-L F,
    BLEU with unigrams (the paper's BLEU@1) and up to 4-grams (smoothed), and METEOR where its word lists are
    installed. How Video-Thinker paired captions is UNVERIFIED.
    """
    scores = []
    for truth in sample.evidence:
        span = (truth.start_s, truth.end_s)
        overlap, _, said = max(
            ((graders.span_iou((s.start_s, s.end_s), span), -i, s.caption) for i, s in enumerate(segments)),
            default=(0.0, 0, ""),
        )
        scores.append(_caption_scores(said if overlap > 0 else "", truth.caption))
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _caption_scores(said: str, truth: str) -> dict[str, float]:
    words, wanted = (_words(text[:_MAX_CAPTION_CHARS]) for text in (said, truth))
    names = ("caption_rouge_l", "caption_bleu_1", "caption_bleu_4", *(("caption_meteor",) if _meteor() else ()))
    if not words or not wanted:
        return dict.fromkeys(names, 0.0)
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    rouge = _rouge_l().score(" ".join(wanted), " ".join(words))["rougeL"].fmeasure
    smooth = SmoothingFunction().method1
    bleu = [
        float(sentence_bleu([wanted], words, weights, smoothing_function=smooth)) for weights in ((1,), (0.25,) * 4)
    ]
    found = [float(rouge), *bleu]
    if (meteor := _meteor()) is not None:
        found.append(float(meteor(wanted, words)))
    return dict(zip(names, found, strict=True))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class _Stems:
    """Words as rouge-score takes them (its own tokenizer knows a-z and 0-9 alone)."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 else word for word in _words(text)]


@lru_cache(maxsize=1)
def _rouge_l() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Stems())


@lru_cache(maxsize=1)
def _meteor() -> Callable[[list[str], list[str]], float] | None:
    """METEOR, or None where nltk's word lists are not installed."""
    import nltk
    from nltk.translate.meteor_score import single_meteor_score

    try:
        nltk.data.find("corpora/wordnet.zip")
        single_meteor_score(["a"], ["a"])
    except LookupError:
        return None
    return lambda truth, said: float(single_meteor_score(truth, said))


def left_out_metrics(samples: Iterable[Sample]) -> dict[str, str]:
    """Metrics that cannot be computed here, with what to do."""
    captions = any(sample.evidence and sample.metadata.get("captioned", True) for sample in samples)
    if captions and _meteor() is None:
        return {"caption_meteor": "nltk's word lists are not installed (python -m nltk.downloader wordnet)"}
    return {}


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


@dataclass(frozen=True, slots=True)
class Score:
    """A figure that a benchmark reports: a mean over items, or a mean of means."""

    definition: str
    """In words, with the source where there are several."""
    value: Callable[[Row], float | None]
    """The item's value in [0, 1]; None: it does not count here."""
    cell: Callable[[Row], tuple[str, str]] | None = None
    """(group, part): items are averaged per part, parts per group, then groups. None: all items alike."""

    def estimate(self, rows: Sequence[Row], config: EvaluationConfig) -> Estimate | None:
        """The score with its interval, by bootstrap over videos; None where no item counts."""
        counted = [(row, value) for row in rows if (value := self.value(row)) is not None]
        if not counted:
            return None
        values = np.array([value for _, value in counted], np.float64)
        videos = [row["video"] for row, _ in counted]
        cells = [self.cell(row) if self.cell else ("", "") for row, _ in counted]
        if len(set(cells)) == 1 or len(set(videos)) < 2 or np.ptp(values) == 0:
            return cluster_mean(
                values,
                videos,
                confidence=config.confidence,
                resamples=config.bootstrap_resamples,
                seed=config.seed,
            )
        return _mean_of_means(values, cells, videos, config)


def _mean_of_means(
    values: np.ndarray, cells: Sequence[tuple[str, str]], videos: Sequence[str], config: EvaluationConfig
) -> Estimate:
    """`cluster_mean` for a mean of group means: whole videos are drawn, and every mean is taken anew."""
    parts = list(dict.fromkeys(cells))
    groups = list(dict.fromkeys(group for group, _ in parts))
    weights = np.array([1 / len(groups) / sum(other == group for other, _ in parts) for group, _ in parts])
    names = list(dict.fromkeys(videos))
    where = {video: place for place, video in enumerate(names)}, {part: place for place, part in enumerate(parts)}
    index = ([where[0][video] for video in videos], [where[1][cell] for cell in cells])
    sums, counts = np.zeros((2, len(names), len(parts)))
    np.add.at(sums, index, values)
    np.add.at(counts, index, 1)
    rng = np.random.default_rng([config.seed, len(names)])
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), config.bootstrap_resamples)
    with np.errstate(invalid="ignore"):
        means = draws @ sums / (draws @ counts)  # (resamples, parts); nan where a draw has nothing of a part
    present = np.isfinite(means) * weights
    drawn = (np.nan_to_num(means) * present).sum(1) / present.sum(1)
    mean = float(sums.sum(0) / counts.sum(0) @ weights)
    # Widened as in `cluster_mean` (Hesterberg 2015, §5.3).
    wide = t_quantile((1 + config.confidence) / 2, len(names) - 1) * math.sqrt(len(names) / (len(names) - 1))
    tail = NormalDist().cdf(-wide)
    low, high = (float(q) for q in np.quantile(drawn, [tail, 1 - tail]))
    return Estimate(mean, min(low, mean), max(high, mean), len(values))


def score_all(
    scores: Mapping[str, Score], rows: Sequence[Row], config: EvaluationConfig
) -> dict[str, dict[str, float]]:
    """Every score of a benchmark that some item counts for, as ``result.json`` holds it."""
    estimates = {name: score.estimate(rows, config) for name, score in scores.items()}
    return {name: estimate.to_dict() for name, estimate in estimates.items() if estimate is not None}


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
