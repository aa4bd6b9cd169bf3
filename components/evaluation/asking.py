"""Asking a model: which items, with which frames, batch by batch, so that nothing is asked twice.

The pipeline's answers are kept in the store as they come, one object per batch, and batches are always cut the
same way: an evaluation that was killed asks only what is missing, in the same company, and ends with the same
answers. A benchmark's are appended to a file. Its questions are asked video by video: a video is decoded once
for all its questions and conditions, and all questions about the same frames go to the engine together, with
one set of pixels, so that it has to take them in once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from ..common.samples import Sample
from ..common.storage import Storage, join
from .config import EvaluationConfig
from .expressions import FRAMES

logger = logging.getLogger(__name__)

SYSTEMIC = 8
"""So many failures in one batch, and nothing but failures, are a broken machine and not broken items."""


NO_VIDEO = object()
"""Stands for the clip (or file) of a question that is asked ``blind``."""


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


Predict = Callable[[Sequence[Sample], Sequence[Any]], Sequence[Completion | Exception]]
"""Answers questions about clips (or files, for an endpoint); an error in place of an answer is of that question
alone, one that is raised may be of any."""


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
    """Frame conditions that are wanted by default or by the settings, each with why it is left out, or None."""
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
    for frames in ("reversed", "single_frame", "blind"):
        if not getattr(config, frames):
            del left_out[frames]  # off unless asked for: nothing to say
        elif not videos:
            left_out[frames] = "there are no videos"
    return left_out


def clip_for(item: Any, frames: str, split: Items, others: Mapping[str, int], seed: int) -> Any:
    """The clip that an item of a prepared set is asked with."""
    if frames == "other_video":
        return split[others[video_of(item.sample)]].clip
    return under(item.clip, frames, item.sample.id, seed)


def under(clip: Any, frames: str, key: str, seed: int) -> Any:
    """A clip as a frame condition shows it.

    Args:
        clip: frames in order (of a file that is handed on, only ``blind`` is possible).
        frames: one of `FRAMES` that needs no other video.
        key: determines the order of ``shuffled``, with ``seed``.
        seed: of the evaluation.

    Returns:
        The same times as ``clip``, but for ``single_frame``, which is its middle frame alone, and ``blind``,
        which is `NO_VIDEO`.
    """
    if frames == "shuffled":
        return clip.permuted(frame_order(key, len(clip.frames), seed))
    if frames == "reversed":
        return clip.permuted(np.arange(len(clip.frames))[::-1])
    if frames == "single_frame":
        middle = slice(len(clip.frames) // 2, len(clip.frames) // 2 + 1)
        return replace(clip, frames=clip.frames[middle], times_s=clip.times_s[middle])
    if frames == "blind":
        return NO_VIDEO
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


def check_systemic(answers: Sequence[Answer]) -> None:
    """See that a batch did not fail as a whole.

    Raises:
        EvaluationError: it did, and is too large for that to be chance.
    """
    errors = [answer.error for answer in answers if answer.error is not None]
    if len(errors) == len(answers) >= SYSTEMIC:
        raise EvaluationError(
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
                raise EvaluationError(f"{len(completions)} completions for {len(wanted)} questions")
        except Exception as error:
            if len(wanted) == 1:
                answers[wanted[0]] = _failed(samples[wanted[0]], error)
            else:
                logger.warning("a batch of %d failed (%s); asking smaller ones", len(wanted), one_line(error))
            continue
        for place, completion in zip(wanted, completions, strict=True):
            if isinstance(completion, Exception):
                answers[place] = _failed(samples[place], completion)
                continue
            answers[place] = Answer(
                id=samples[place].id,
                text=completion.text,
                token_ids=tuple(completion.token_ids),
                finish_reason=completion.finish_reason,
                duration_s=float(getattr(media[place], "duration_s", 0.0)),
            )
    return [answers[place] for place in everything]


def _failed(sample: Sample, error: Exception) -> Answer:
    logger.warning("item '%s' failed and counts as wrong: %s", sample.id, one_line(error))
    return Answer(id=sample.id, error=one_line(error))


def one_line(error: BaseException) -> str:
    """Kind and message of an error, short enough for a table."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# -- a benchmark, video by video -----------------------------------------------------------------------------


class ItemJournal:
    """Graded items in a file, one per line: what is there has been asked.

    Lines are appended and forced to disk batch by batch; a line that was cut off is dropped. One process at a
    time (the file is locked).
    """

    def __init__(self, path: Path) -> None:
        """Open or begin the file.

        Raises:
            EvaluationError: another process writes it, or it holds something else.
        """
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        """By (frames, id)."""
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise EvaluationError(f"{path}: another evaluation is writing it; give another --output") from None
        try:
            self._read()
        except EvaluationError:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        kept = 0
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                self.rows[row["frames"], row["id"]] = row
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == len(lines) - 1:  # cut off, or blocks of the file that never reached the disk
                    break
                raise EvaluationError(f"{self.path}, line {number}: not an item of an evaluation") from None
            kept += len(line) + 1
        self._file.truncate(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep items; when this returns they are on the disk."""
        rows = list(rows)
        self._file.write(b"".join(line_of(row) for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows |= {(row["frames"], row["id"]): row for row in rows}

    def forget_failed(self) -> int:
        """Take out the items that failed, so that they are asked again; their number."""
        failed = [key for key, row in self.rows.items() if row["error"] is not None]
        for key in failed:
            del self.rows[key]
        if failed:
            self._file.truncate(0)
            self.append(self.rows.values())
        return len(failed)


def line_of(row: Mapping[str, Any]) -> bytes:
    """An item as a line of ``items.jsonl``."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def answer_of(row: Mapping[str, Any]) -> Answer:
    """What was said, from the item that was kept."""
    return Answer(
        id=row["id"],
        text=row["response"],
        token_ids=tuple(row["token_ids"]),
        finish_reason=row["finish_reason"],
        duration_s=row["duration_s"],
        error=row["error"],
    )


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
