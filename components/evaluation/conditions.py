"""Frame conditions: what a model is shown with a question."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..common.rows.sample import Sample
from .config import EvaluationConfig
from .expressions import FRAMES

NO_VIDEO = object()
"""Stands for the clip (or file) of a question that is asked ``blind``."""


class Items(Protocol):
    """A split of a prepared set."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The rows without frames."""

    def __getitem__(self, index: int, /) -> Any:
        """The row with its clip (``.sample``, ``.clip``)."""


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


RELIANCE = ("shuffled", "reversed", "single_frame", "blind")
"""Conditions under which a model that needs the video, in order, must do worse."""


def kind_of(sample: Sample) -> str | None:
    """``metadata.kind`` as a name that a gate rule can hold."""
    kind = sample.metadata.get("kind")
    return re.sub(r"\W+", "_", str(kind)).strip("_") or None if kind is not None else None
