"""One answer, graded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..common.answers import grading, responses, values
from ..common.answers.formats import follows_format
from ..common.rows.sample import Sample
from .answers import Answer
from .captions import captioning
from .conditions import kind_of, video_of
from .grounding import grounding

Row = Mapping[str, Any]
"""One graded item, a line of ``items.jsonl``."""


def grade_answer(
    sample: Sample,
    answer: Answer,
    model: str,
    frames: str,
    answer_format: str,
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
    parsed = responses.parse_response(answer.text)
    said, failed = parsed.answer, answer.error is not None
    as_published = responses.published_answer(answer.text)
    metrics = {
        "accuracy": float(not failed and grading.is_correct(sample, said)),
        "accuracy_paper": float(not failed and grading.is_correct(sample, as_published, "paper")),
        "score": 0.0 if failed else grading.grade(sample, said),
        "format_rate": float(not failed and follows_format(sample, answer.text, answer_format)),
        "format_video_r1": float(not failed and follows_format(sample, answer.text, "video_r1")),
        "format_video_thinker": float(not failed and follows_format(sample, answer.text, "video_thinker")),
    }
    if rule is not None and "rule" in sample.metadata:
        metrics["accuracy"] = metrics["score"] = 0.0 if failed else rule(sample, said)
    text = (said or "")[: values.MAX_ANSWER_CHARS]
    if sample.problem_type in ("regression", "numerical"):
        metrics["mra"] = grading.mean_relative_accuracy(text, sample.answer)
        metrics["mra_inclusive"] = grading.mean_relative_accuracy(text, sample.answer, inclusive=True)
    elif sample.problem_type == "ocr":
        metrics["wer"] = grading.word_error_rate(text, sample.answer)
    elif sample.problem_type == "free_form":
        metrics["rouge"] = grading.rouge_f(text, sample.answer)
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
