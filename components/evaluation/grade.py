"""One answer, graded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.model.prompts import AnswerFormat
from ..common.rows.sample import Sample
from .answers import Answer
from .conditions import kind_of, video_of
from .metrics import Response, Rule, measure

Row = Mapping[str, Any]
"""One graded item, a line of ``items.jsonl``."""


def grade_answer(
    sample: Sample,
    answer: Answer,
    model: str,
    frames: str,
    answer_format: AnswerFormat,
    rule: Rule | None = None,
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
    response = Response(sample, answer.text, answer_format, rule)
    metrics = measure(response, failed=answer.error is not None)
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
        "answer": response.parsed.answer,
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
