"""From an answer to a graded item."""

from __future__ import annotations

from ..common.model.prompts import AnswerFormat
from ..common.rows.sample import Sample
from .answers import Answer
from .benchmarks.benchmark import Benchmark
from .conditions import kind_of, video_of
from .item import Item
from .metrics import Response, measure


def grade_answer(
    sample: Sample, answer: Answer, model: str, condition: str, answer_format: AnswerFormat, benchmark: Benchmark
) -> Item:
    """The item of an answer. One that failed has every metric at its worst.

    Args:
        sample: the question.
        answer: the model's.
        model: its name.
        condition: what it was shown, of `CONDITIONS`.
        answer_format: what it was asked to write.
        benchmark: whose question it is: its own rules grade the questions that name one, its headline is the value.
    """
    response = Response(sample, answer.text, answer_format, benchmark.grade)
    item = Item(
        id=sample.id,
        video=video_of(sample),
        model=model,
        condition=condition,
        problem_type=sample.problem_type,
        kind=kind_of(sample),
        groups=dict(sample.metadata.get("groups") or {}),
        response=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        answer=response.parsed.answer,
        truth=sample.answer,
        question=sample.question,
        options=tuple(sample.options),
        clip=(sample.media.start_s, sample.media.end_s),
        evidence=tuple((span.start_s, span.end_s, span.caption) for span in sample.evidence),
        metrics=measure(response, failed=answer.error is not None),
        duration_s=answer.duration_s,
        error=answer.error,
    )
    return item.model_copy(update={"value": benchmark.scores[benchmark.headline].value(item)})


def answer_of(item: Item) -> Answer:
    """What was answered, from the item that was kept."""
    return Answer(item.id, item.response or "", item.token_ids, item.finish_reason, item.duration_s, item.error)
