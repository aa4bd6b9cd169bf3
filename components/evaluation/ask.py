"""Asking a model every item under a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..common.rows.sample import Sample
from .answers import Answer, EvaluationError, Predict, _failed, answer_all, check_systemic
from .conditions import Items, clip_for, other_videos, under
from .config import EvaluationConfig
from .journal import Journal


def ask(
    split: Items,
    indices: Sequence[int],
    frames: str,
    predict: Callable[[], Predict],
    journal: Journal,
    config: EvaluationConfig,
    on_items: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """Ask a model every item under one frame condition.

    Args:
        split: where the items are.
        indices: which of them.
        frames: one of `FRAMES`.
        predict: gives the model's predictor; called only when something is left to ask.
        journal: where answers are kept.
        config: batch size and seed.
        on_items: told how many more items are answered.

    Returns:
        An answer per index, in the same order; one that failed carries its error.

    Raises:
        EvaluationError: a whole batch failed, which says nothing about the model.
    """
    others = other_videos(split.samples, config.seed) if frames == "other_video" else {}
    answers: list[Answer] = []
    for batch, start in enumerate(range(0, len(indices), config.batch_size)):
        chosen = indices[start : start + config.batch_size]
        found = journal.read(batch)
        if found is None:
            found = _ask_batch(split, chosen, frames, others, predict(), config.seed)
            journal.write(batch, found)
        if [answer.id for answer in found] != [split.samples[index].id for index in chosen]:
            raise EvaluationError(
                f"{journal.prefix}: batch {batch} holds other items; delete this prefix and run again"
            )
        answers += found
        on_items(len(chosen))
    return answers


def _ask_batch(
    split: Items, indices: Sequence[int], frames: str, others: Mapping[str, int], predict: Predict, seed: int
) -> list[Answer]:
    answers: dict[int, Answer] = {}
    clips: dict[int, Any] = {}
    for index in indices:
        try:
            clips[index] = clip_for(split[index], frames, split, others, seed)
        except Exception as error:
            answers[index] = _failed(split.samples[index], error)
    asked = answer_all([split.samples[index] for index in clips], list(clips.values()), predict)
    answers |= dict(zip(clips, asked, strict=True))
    check_systemic(list(answers.values()))
    return [answers[index] for index in indices]


def by_video(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of the questions about the same part of the same video, in the order of the first of them."""
    groups: dict[tuple[str, float | None, float | None], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((sample.media.uri, sample.media.start_s, sample.media.end_s), []).append(index)
    return list(groups.values())


def ask_videos(
    samples: Sequence[Sample],
    groups: Iterable[Sequence[int]],
    media: Callable[[Iterable[Sample]], Iterator[Any]],
    frames: Sequence[str],
    predict: Callable[[], Predict],
    keep: Callable[[str, Sequence[Answer], Sequence[int]], None],
    config: EvaluationConfig,
    asked: Callable[[str, int], bool],
) -> None:
    """Ask questions video by video.

    Args:
        samples: the questions.
        groups: indices of the questions about one video each, from `by_video`.
        media: gives the clip (file, or the error of decoding it) for the sample that stands for each group.
        frames: conditions, of `FRAMES`; an image is asked about as it is alone.
        predict: gives the model's predictor; called only when something is left to ask.
        keep: takes the answers to some questions under one condition.
        config: batch size and seed.
        asked: whether a question has been asked under a condition.

    Raises:
        EvaluationError: a whole batch failed, which says nothing about the model.
    """

    def left(condition: str, group: Sequence[int]) -> list[int]:
        if condition != "ordered" and samples[group[0]].media.kind == "image":
            return []
        return [index for index in group if not asked(condition, index)]

    def ask_batch(batch: Sequence[tuple[Sequence[int], Any]]) -> None:
        for condition in frames:
            _ask_videos(samples, batch, condition, left, predict, keep, config)

    unfinished = [group for group in groups if any(left(condition, group) for condition in frames)]
    batch: list[tuple[Sequence[int], Any]] = []
    for group, medium in zip(unfinished, media(samples[group[0]] for group in unfinished), strict=True):
        # A video is not divided: its questions would be taken in twice.
        if batch and sum(len(other) for other, _ in batch) + len(group) > config.batch_size:
            ask_batch(batch)
            batch = []
        batch.append((group, medium))
    if batch:
        ask_batch(batch)


def _ask_videos(
    samples: Sequence[Sample],
    batch: Sequence[tuple[Sequence[int], Any]],
    condition: str,
    left: Callable[[str, Sequence[int]], list[int]],
    predict: Callable[[], Predict],
    keep: Callable[[str, Sequence[Answer], Sequence[int]], None],
    config: EvaluationConfig,
) -> None:
    indices: list[int] = []
    media: list[Any] = []
    for group, medium in batch:
        wanted = left(condition, group)
        if isinstance(medium, Exception):
            keep(condition, [_failed(samples[index], medium) for index in wanted], wanted)
            continue
        if condition != "ordered" and wanted:
            # One order for all questions about a video, so that they can share its prefill.
            medium = under(medium, condition, clip_key(samples[group[0]]), config.seed)
        indices += wanted
        media += [medium] * len(wanted)
    if not indices:
        return
    answers = answer_all([samples[index] for index in indices], media, predict())
    check_systemic(answers)
    keep(condition, answers, indices)


def clip_key(sample: Sample) -> str:
    """Names the part of the video that a question is about."""
    media = sample.media
    return f"{media.uri}/{media.start_s}/{media.end_s}"
