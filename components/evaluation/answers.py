"""Answers of a model: asked together, then apart where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..common.errors import UserError
from ..common.rows.sample import Sample

logger = logging.getLogger(__name__)


SYSTEMIC = 8
"""So many failures in one batch, and nothing but failures, are a broken machine and not broken items."""


class Completion(Protocol):
    """What a predictor returns for one question (`generation.Completion`)."""

    @property
    def text(self) -> str:
        """Decoded, without special tokens."""

    @property
    def token_ids(self) -> list[int]:
        """Sampled tokens."""

    @property
    def finish_reason(self) -> str:
        """``stop`` or ``length``."""


Predict = Callable[[Sequence[Sample], Sequence[Any]], Sequence[Completion | Exception]]
"""Answers questions about clips (or files, for an endpoint); an error in place of an answer is of that question
alone, one that is raised may be of any."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one question, before any grading."""

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    duration_s: float = 0.0
    """Length of the clip that was shown."""
    error: str | None = None
    """Why there is no answer."""


def check_systemic(answers: Sequence[Answer]) -> None:
    """See that a batch did not fail as a whole.

    Raises:
        UserError: it did, and is too large for that to be chance.
    """
    errors = [answer.error for answer in answers if answer.error is not None]
    if len(errors) == len(answers) >= SYSTEMIC:
        raise UserError(
            f"all {len(errors)} items of a batch failed ({errors[-1]}); nothing of it was recorded: "
            "remove the cause and run again"
        )


def answer_all(samples: Sequence[Sample], media: Sequence[Any], predict: Predict) -> list[Answer]:
    """An answer to every question: all are asked at once, where that fails video by video, then one by one.

    Args:
        samples: the questions.
        media: the clip (or file) of each; questions about the same one share the object.
        predict: the model.

    Returns:
        As many answers; a question that failed by itself carries its error.
    """
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
                answers[wanted[0]] = failed_answer(samples[wanted[0]], error)
            else:
                logger.warning("a batch of %d failed (%s); asking smaller ones", len(wanted), one_line(error))
            continue
        for place, completion in zip(wanted, completions, strict=True):
            if isinstance(completion, Exception):
                answers[place] = failed_answer(samples[place], completion)
                continue
            answers[place] = Answer(
                id=samples[place].id,
                text=completion.text,
                token_ids=tuple(completion.token_ids),
                finish_reason=completion.finish_reason,
                duration_s=float(getattr(media[place], "duration_s", 0.0)),
            )
    return [answers[place] for place in everything]


def failed_answer(sample: Sample, error: Exception) -> Answer:
    """The answer to a question that could not be asked."""
    logger.warning("item '%s' failed and counts as wrong: %s", sample.id, one_line(error))
    return Answer(id=sample.id, error=one_line(error))


def one_line(error: BaseException) -> str:
    """Kind and message of an error, short enough for a table."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
