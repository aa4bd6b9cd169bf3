"""A model measured on a benchmark: asked, graded, summarized. The held-out split is a benchmark like any other."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ... import __version__
from ..common.answers.reading import GRADER_VERSION
from ..common.provenance import git_commit
from ..common.rows.sample import Sample
from ..common.storage.names import fingerprint
from ..common.video.config import VideoConfig
from .ask import Answer, Media, ask, to_ask
from .benchmarks.benchmark import Benchmark, QuestionSet
from .conditions import ORDERED, kind_of, video_of
from .config import EvaluationConfig
from .item import Item, Journal
from .metrics import Response, measure_response
from .models import Model
from .results import BenchmarkResult, FailedItem, Result, Settings
from .summary import compare, summarize

GRADERS = ("strict", "paper", "official")
"""Whose rules grade: ours, Video-R1's code, or the benchmark's own program (`benchmarks.official`)."""


def grade_answer(
    sample: Sample,
    answer: Answer,
    model: str,
    condition: str,
    answer_format: str,
    benchmark: Benchmark,
    grader: str = "strict",
) -> Item:
    """The item of an answer, whose value is that in the headline. One that failed has every metric at its worst.
    ``condition`` is what the model was shown, ``answer_format`` what it was asked to write; the benchmark's own rules
    grade the questions that name one. ``grader``, of `GRADERS`, says by whose rules."""
    truncated = answer.finish_reason == "length"
    response = Response(sample, answer.text, answer_format, benchmark.grade, truncated)
    metrics = measure_response(response, failed=answer.error is not None)
    if answer.error is None and grader == "paper":
        same = {"accuracy": "accuracy_paper", "mra": "mra_paper", "mra_inclusive": "mra_paper"}
        metrics |= {name: metrics[published] for name, published in same.items() if published in metrics}
    if answer.error is None and grader == "official" and benchmark.official is not None:
        metrics |= benchmark.official(sample, answer.text)
    item = Item(
        id=sample.id,
        video=video_of(sample),
        name=sample.media.uri.rsplit("/", 1)[-1],
        model=model,
        condition=condition,
        problem_type=sample.problem_type,
        kind=kind_of(sample),
        groups=dict(sample.metadata.get("groups") or {}),
        response=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        answer=response.answer,
        truth=sample.answer,
        question=sample.question,
        options=tuple(sample.options),
        clip=(sample.media.start_s, sample.media.end_s),
        evidence=tuple((span.start_s, span.end_s, span.caption) for span in sample.evidence),
        metrics=metrics,
        duration_s=answer.duration_s,
        error=answer.error,
    )
    return item.model_copy(update={"value": benchmark.scores[benchmark.headline].value(item)})


def answer_of(item: Item) -> Answer:
    """What was answered, from the item that was kept."""
    return Answer(item.id, item.response or "", item.token_ids, item.finish_reason, item.duration_s, item.error)


def measure(
    questions: QuestionSet,
    media: Media,
    model: Model,
    journal: Journal,
    conditions: Sequence[str],
    config: EvaluationConfig,
    name: str = "model",
) -> dict[str, list[Item]]:
    """Ask a model (``name`` in items) what the journal does not hold, and grade everything.

    Returns the items of every condition, in the order of the questions. Raises `UserError`: a whole batch failed, which
    says nothing about the model."""
    answer_format = model.answer_format

    def graded(sample: Sample, answer: Answer, condition: str) -> Item:
        return grade_answer(sample, answer, name, condition, answer_format, questions.benchmark)

    def asked(condition: str, sample: Sample) -> bool:
        return (condition, sample.id) in journal

    wanted = [(condition, sample) for condition in conditions for sample in to_ask(questions.samples, condition)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(f"{name}, {questions.benchmark.title}", total=len(wanted))
        progress.advance(task, sum(asked(*question) for question in wanted))

        def keep(condition: str, samples: Sequence[Sample], answers: Sequence[Answer]) -> None:
            pairs = zip(samples, answers, strict=True)
            journal.append(graded(sample, answer, condition) for sample, answer in pairs)
            progress.advance(task, len(samples))

        batch_size, seed = config.batch_size, config.seed
        ask(questions, media, conditions, model.predict, keep, asked, batch_size=batch_size, seed=seed)
    return {
        condition: [
            graded(sample, answer_of(journal.items[condition, sample.id]), condition)
            for sample in questions.samples
            if asked(condition, sample)
        ]
        for condition in conditions
    }


def questions_fingerprint(questions: QuestionSet) -> str:
    """Of the questions and of the answers that are held true."""
    return fingerprint("questions", [[s.id, s.question, list(s.options), s.answer] for s in questions.samples])


def settings_of(
    questions: QuestionSet,
    model: Model,
    video: VideoConfig | None,
    config: EvaluationConfig,
    protocol: str | None = None,
) -> Settings:
    """Everything that the answers depend on; ``video`` is of the frames, None where the model is given the files."""
    return Settings(
        benchmark=questions.benchmark.name,
        model=model.about,
        protocol=protocol,
        video=video.model_dump(mode="json") if video else None,
        **{name: getattr(config, name) for name in ("temperature", "top_p", "max_new_tokens", "seed", "max_items")},
        questions=questions_fingerprint(questions),
        files=dict(questions.files),
        grader=GRADER_VERSION,
    )


_ABILITIES = ("answer_found", "tagged", "truncated", "follows", "format_", "miou", "recall_at_", "caption_")
"""Beginnings of the metrics that stand beside the scores of a benchmark."""


def conclude(
    questions: QuestionSet,
    items: Mapping[str, Sequence[Item]],
    settings: Settings,
    config: EvaluationConfig,
    **more: Any,
) -> Result:
    """The result of a model on a benchmark, from its items by condition; ``more``: further fields of `Result`."""
    benchmark, samples = questions.benchmark, questions.samples
    cells = {name: summarize(cell, benchmark.scores, config.resampling) for name, cell in items.items() if cell}
    abilities = {name: e for name, e in cells[ORDERED].metrics.items() if name.startswith(_ABILITIES)}
    result = Result(
        benchmark=benchmark.name,
        **{name: getattr(benchmark, name) for name in ("title", "asks", "source", "traps", "headline")},
        model=settings.model,
        metrics=cells[ORDERED].scores | abilities,
        definitions={name: score.definition for name, score in benchmark.scores.items()},
        conditions=cells,
        failed=failed_items(items),
        items=len(samples),
        videos=len({video_of(sample) for sample in samples}),
        missing_videos=len({sample.media.uri for sample in samples if sample.id in questions.missing}),
        settings=settings,
        confidence=config.confidence,
        version=__version__,
        git_commit=git_commit(),
        **more,
    )
    one = BenchmarkResult("model", "", result, items)
    others = [name for name in items if name != ORDERED]
    pairs = {name: compare(one, one, one.headline, config.resampling, (ORDERED, name)) for name in others}
    return result.model_copy(update={"reliance": pairs})


def failed_items(items: Mapping[str, Sequence[Item]]) -> tuple[FailedItem, ...]:
    """The questions that got no answer."""
    failed = (item for cell in items.values() for item in cell if item.error is not None)
    return tuple(FailedItem(id=i.id, model=i.model, condition=i.condition, error=str(i.error)) for i in failed)
