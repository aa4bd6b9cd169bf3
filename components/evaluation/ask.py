"""Asking a model the questions of a benchmark, video by video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..common.rows.sample import Sample
from .answers import Answer, Predict, answer_all, check_systemic, failed_answer
from .benchmarks.benchmark import QuestionSet
from .conditions import CONDITIONS, ORDERED, clip_key, other_videos, video_of

Media = Callable[[Iterable[Sample]], Iterator[Any]]
"""Gives what a model is shown of each sample's video, in order: a clip, a file, or the error of reading it."""
Keep = Callable[[str, Sequence[Sample], Sequence[Answer]], None]
"""Takes the answers to some questions under a condition."""


def clip_key_of(sample: Sample) -> str:
    """Names the part of the video that a question is about."""
    return clip_key(video_of(sample), sample.media.start_s, sample.media.end_s)


def by_video(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The questions about the same part of the same video together, in the order of the first of them."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(clip_key_of(sample), []).append(sample)
    return list(groups.values())


def to_ask(samples: Iterable[Sample], condition: str) -> list[Sample]:
    """The questions that are asked under a condition; one about an image is asked as it is alone."""
    return [sample for sample in samples if condition == ORDERED or sample.media.kind == "video"]


def ask(
    questions: QuestionSet,
    media: Media,
    conditions: Sequence[str],
    predict: Callable[[], Predict],
    keep: Keep,
    asked: Callable[[str, Sample], bool],
    *,
    batch_size: int,
    seed: int,
) -> None:
    """Ask what has not been asked, video by video, so that the questions about one share its prefill.

    Args:
        questions: what to ask.
        media: gives the videos.
        conditions: names, of `CONDITIONS`.
        predict: gives the model's predictor; called only when something is left to ask.
        keep: takes answers, batch by batch.
        asked: whether a question has been asked under a condition.
        batch_size: questions that are decoded and asked together; a video is not divided.
        seed: of shuffled frames and exchanged videos.

    Raises:
        UserError: a whole batch failed, which says nothing about the model.
    """

    def left(condition: str, samples: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in to_ask(samples, condition) if not asked(condition, sample)]

    def ask_batch(batch: Sequence[tuple[Sequence[Sample], Any]], condition: str) -> None:
        samples: list[Sample] = []
        shown: list[Any] = []
        for group, medium in batch:
            wanted = left(condition, group)
            if isinstance(medium, Exception):
                keep(condition, wanted, [failed_answer(sample, medium) for sample in wanted])
            elif wanted:
                samples += wanted
                shown += [CONDITIONS.get(condition).show(medium, clip_key_of(group[0]), seed)] * len(wanted)
        if samples:
            answers = answer_all(samples, shown, predict())
            check_systemic(answers)
            keep(condition, samples, answers)

    for condition in conditions:
        lost = [sample for sample in left(condition, questions.samples) if sample.id in questions.missing]
        keep(condition, lost, [Answer(sample.id, error=questions.missing[sample.id]) for sample in lost])
    there = [sample for sample in questions.samples if sample.id not in questions.missing]
    others = other_videos(there, seed)
    for other_video in (False, True):  # these show other clips, so that they are another round through the videos
        names = [name for name in conditions if CONDITIONS.get(name).other_video == other_video]
        groups = [group for group in by_video(there) if any(left(name, group) for name in names)]
        if other_video:
            groups = [group for group in groups if video_of(group[0]) in others]
        wanted = [others[video_of(group[0])] if other_video else group[0] for group in groups]
        for batch in _batches(zip(groups, media(wanted), strict=True), batch_size):
            for name in names:
                ask_batch(batch, name)


def _batches(
    groups: Iterable[tuple[Sequence[Sample], Any]], batch_size: int
) -> Iterator[list[tuple[Sequence[Sample], Any]]]:
    batch: list[tuple[Sequence[Sample], Any]] = []
    for group, medium in groups:
        # A video is not divided: its questions would be taken in twice.
        if batch and sum(len(other) for other, _ in batch) + len(group) > batch_size:
            yield batch
            batch = []
        batch.append((group, medium))
    if batch:
        yield batch
