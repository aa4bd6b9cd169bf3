"""Asking a model: which items, with which frames, batch by batch, so that nothing is asked twice.

Answers are kept in the store as they come, one object per batch, and batches are always cut the same way: an
evaluation that was killed asks only what is missing, in the same company, and ends with the same answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..common.samples import Sample
from ..common.storage import Storage, join
from .config import EvaluationConfig
from .expressions import FRAMES

if TYPE_CHECKING:
    from ..common.video import Clip

logger = logging.getLogger(__name__)

SYSTEMIC = 8
"""So many failures in one batch, and nothing but failures, are a broken machine and not broken items."""


class EvaluationError(RuntimeError):
    """An evaluation that cannot be carried out, with the reason and what to do."""


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


Predict = Callable[[Sequence[Sample], Sequence["Clip"]], Sequence[Completion]]
"""Answers questions about clips."""


class Items(Protocol):
    """A split of a prepared set."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The rows without frames."""

    def __getitem__(self, index: int, /) -> Any:
        """The row with its clip (``.sample``, ``.clip``)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one question, before any grading."""

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    duration_s: float = 0.0
    """Length of the clip that was shown."""
    error: str | None = None
    """Why there is no answer."""


# -- what is asked -------------------------------------------------------------------------------------------


def seed_of(*parts: object) -> int:
    """A seed that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def video_of(sample: Sample) -> str:
    """What its items are clustered by: the same file is the same video, whichever part of it is asked
    about."""
    return sample.media.sha256 or sample.media.uri


def frame_order(sample_id: str, num_frames: int, seed: int) -> np.ndarray:
    """A random order of ``num_frames`` frames, the same for the same sample and seed, and never the true
    order."""
    rng = np.random.default_rng(seed_of(seed, "frames", sample_id))
    order = rng.permutation(num_frames)
    while num_frames > 1 and (order == np.arange(num_frames)).all():
        order = rng.permutation(num_frames)
    return order


def other_videos(samples: Sequence[Sample], seed: int) -> dict[str, int]:
    """For each video, the index of a sample about another one whose pixels it gets; empty with fewer than
    two."""
    first: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample.media.kind == "video":
            first.setdefault(video_of(sample), index)
    ring = sorted(first, key=lambda video: seed_of(seed, "other", video))
    if len(ring) < 2:
        return {}
    return {video: first[ring[(place + 1) % len(ring)]] for place, video in enumerate(ring)}


def choose_items(samples: Sequence[Sample], limit: int | None, seed: int) -> list[int]:
    """Indices of the items to ask: all, or ``limit`` of them drawn by the seed, in the order of the split."""
    indices = list(range(len(samples)))
    if limit is None or limit >= len(indices):
        return indices
    return sorted(sorted(indices, key=lambda index: seed_of(seed, "item", samples[index].id))[:limit])


def conditions(config: EvaluationConfig, samples: Sequence[Sample]) -> dict[str, str | None]:
    """Frame conditions, each with the reason why it is left out, or None."""
    videos = {video_of(sample) for sample in samples if sample.media.kind == "video"}
    left_out: dict[str, str | None] = dict.fromkeys(FRAMES)
    if not config.shuffled:
        left_out["shuffled"] = "switched off"
    elif not videos:
        left_out["shuffled"] = "there are no videos"
    if not config.other_video_control:
        left_out["other_video"] = "switched off"
    elif len(videos) < 2:
        left_out["other_video"] = "there are fewer than two videos"
    return left_out


def clip_for(item: Any, frames: str, split: Items, others: Mapping[str, int], seed: int) -> Clip:
    """The clip that an item is asked with."""
    clip: Clip = item.clip
    if frames == "shuffled":
        return clip.permuted(frame_order(item.sample.id, len(clip.frames), seed))
    if frames == "other_video":
        other: Clip = split[others[video_of(item.sample)]].clip
        return other
    return clip


# -- asking --------------------------------------------------------------------------------------------------


class Journal:
    """Answers in the store, one object per batch, so that a killed evaluation asks nothing twice."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.storage = storage
        self.prefix = prefix
        self.finished = {info.uri for info in storage.list(prefix)}

    def _uri(self, batch: int) -> str:
        return join(self.prefix, f"batch-{batch:06d}.jsonl")

    def missing(self, num_batches: int) -> bool:
        """Whether any of the batches has not been asked."""
        return any(self._uri(batch) not in self.finished for batch in range(num_batches))

    def read(self, batch: int) -> list[Answer] | None:
        """The answers of a batch, or None when it has not been asked."""
        if self._uri(batch) not in self.finished:
            return None
        lines = self.storage.read_bytes(self._uri(batch)).decode().splitlines()
        return [Answer(**{**(row := json.loads(line)), "token_ids": tuple(row["token_ids"])}) for line in lines]

    def write(self, batch: int, answers: Iterable[Answer]) -> None:
        """Keep the answers of a batch."""
        text = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        self.storage.write_bytes(self._uri(batch), text.encode())
        self.finished.add(self._uri(batch))


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
    clips: dict[int, Clip] = {}
    for index in indices:
        try:
            clips[index] = clip_for(split[index], frames, split, others, seed)
        except Exception as error:
            answers[index] = _failed(split.samples[index], error)
    for group in [list(clips)], [[index] for index in clips]:  # all at once; one by one where that failed
        for wanted in group:
            samples = [split.samples[index] for index in wanted]
            if not wanted or wanted[0] in answers:
                continue
            try:
                completions = predict(samples, [clips[index] for index in wanted])
                if len(completions) != len(wanted):
                    raise EvaluationError(f"{len(completions)} completions for {len(wanted)} questions")
            except Exception as error:
                if len(wanted) == 1:
                    answers[wanted[0]] = _failed(samples[0], error)
                else:
                    logger.warning("a batch of %d failed (%s); asking one by one", len(wanted), one_line(error))
                continue
            for index, sample, completion in zip(wanted, samples, completions, strict=True):
                answers[index] = Answer(
                    id=sample.id,
                    text=completion.text,
                    token_ids=tuple(completion.token_ids),
                    finish_reason=completion.finish_reason,
                    duration_s=float(clips[index].duration_s),
                )
    errors = [answer.error for answer in answers.values() if answer.error is not None]
    if len(errors) == len(indices) >= SYSTEMIC:
        raise EvaluationError(
            f"all {len(errors)} items of a batch failed ({errors[-1]}); nothing of it was recorded: "
            "remove the cause and run again"
        )
    return [answers[index] for index in indices]


def _failed(sample: Sample, error: Exception) -> Answer:
    logger.warning("item '%s' failed and counts as wrong: %s", sample.id, one_line(error))
    return Answer(id=sample.id, error=one_line(error))


def one_line(error: BaseException) -> str:
    """Kind and message of an error, short enough for a table."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
