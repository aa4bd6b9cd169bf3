"""Asking a model the questions of a benchmark, video by video: together, then apart where that fails."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.errors import UserError
from ..common.rows.sample import Sample
from .benchmarks.benchmark import QuestionSet
from .conditions import CONDITIONS, ORDERED, clip_key, other_videos, video_of

logger = logging.getLogger(__name__)

SYSTEMIC = 8  # so many failures in one batch, and nothing but failures, are a broken machine and not broken items


@dataclass(frozen=True, slots=True)
class Completion:
    """A response as a model gave it."""

    text: str
    token_ids: Sequence[int]  # empty where a server does not give them
    finish_reason: str  # ``stop`` or ``length``


Predict = Callable[[Sequence[Sample], Sequence[Any]], Sequence[Completion | Exception]]
"""Answers questions about clips (or files, for an endpoint); an error in place of an answer is of that question
alone, one that is raised may be of any."""
Media = Callable[[Iterable[Sample]], Iterator[Any]]
"""Gives what a model is shown of each sample's video, in order: a clip, a file, or the error of reading it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one question, before any grading."""

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    duration_s: float = 0.0  # length of the clip that was shown
    error: str | None = None  # why there is no answer


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
        conditions: names, of `CONDITIONS`.
        predict: gives the model's predictor; called only when something is left to ask.
        asked: whether a question has been asked under a condition.
        batch_size: questions that are decoded and asked together; a video is not divided.
        seed: of shuffled frames and exchanged videos.

    Raises:
        UserError: a whole batch failed, which says nothing about the model."""

    def left(condition: str, samples: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in to_ask(samples, condition) if not asked(condition, sample)]

    def ask_batch(batch: Sequence[_Group], condition: str) -> None:
        samples: list[Sample] = []
        shown: list[Any] = []
        for group, medium in batch:
            wanted = left(condition, group)
            if isinstance(medium, Exception):
                keep(condition, wanted, [_failed(sample, medium) for sample in wanted])
            elif wanted:
                samples += wanted
                shown += [CONDITIONS.get(condition).show(medium, clip_key_of(group[0]), seed)] * len(wanted)
        if samples:
            answers = answer_all(samples, shown, predict())
            errors = [answer.error for answer in answers if answer.error is not None]
            if len(errors) == len(answers) >= SYSTEMIC:
                raise UserError(
                    f"all {len(errors)} items of a batch failed ({errors[-1]}); nothing of it was recorded: "
                    "remove the cause and run again"
                )
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


_Group = tuple[Sequence[Sample], Any]  # questions about a clip, and the clip


def _batches(groups: Iterable[_Group], batch_size: int) -> Iterator[list[_Group]]:
    batch: list[_Group] = []
    for group, medium in groups:
        # A video is not divided: its questions would be taken in twice.
        if batch and sum(len(other) for other, _ in batch) + len(group) > batch_size:
            yield batch
            batch = []
        batch.append((group, medium))
    if batch:
        yield batch


def answer_all(samples: Sequence[Sample], media: Sequence[Any], predict: Predict) -> list[Answer]:
    """As many answers: all questions are asked at once, where that fails video by video, then one by one. ``media`` are
    the clip (or file) of each; questions about the same one share the object. A question that fails by itself gets an
    answer with its error."""
    answers: dict[int, Answer] = {}
    same: dict[int, list[int]] = {}
    for place, medium in enumerate(media):
        same.setdefault(id(medium), []).append(place)
    everything = list(range(len(samples)))
    tried: list[list[int]] = [[]]
    for wanted in [everything, *same.values(), *([place] for place in everything)]:
        if (wanted and wanted[0] in answers) or wanted in tried:
            continue
        tried.append(wanted)
        try:
            completions = predict([samples[place] for place in wanted], [media[place] for place in wanted])
            if len(completions) != len(wanted):
                raise UserError(f"{len(completions)} completions for {len(wanted)} questions")
        except Exception as error:
            if len(wanted) == 1:
                answers[wanted[0]] = _failed(samples[wanted[0]], error)
            else:
                logger.warning("a batch of %d failed (%s); asking smaller ones", len(wanted), one_line(error))
            continue
        answers |= {
            place: _answer(samples[place], media[place], completion)
            for place, completion in zip(wanted, completions, strict=True)
        }
    return [answers[place] for place in everything]


def _answer(sample: Sample, medium: Any, completion: Completion | Exception) -> Answer:
    if isinstance(completion, Exception):
        return _failed(sample, completion)
    duration_s = float(getattr(medium, "duration_s", 0.0))
    return Answer(sample.id, completion.text, tuple(completion.token_ids), completion.finish_reason, duration_s)


def _failed(sample: Sample, error: Exception) -> Answer:
    logger.warning("item '%s' failed and counts as wrong: %s", sample.id, one_line(error))
    return Answer(id=sample.id, error=one_line(error))


def one_line(error: BaseException) -> str:
    """Kind and message of an error, short enough for a table."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
