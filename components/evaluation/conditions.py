"""What a model is shown with a question: the registry of conditions, and the choices that a seed makes.

Adding a condition is one `Condition` here, or in a module of one's own that ``evaluation.conditions`` names
(``my_module:CONDITION``)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import UserError
from ..common.registry import Registry
from ..common.rows.sample import Sample

if TYPE_CHECKING:
    from ..common.video.clip import Clip

NO_VIDEO = object()  # stands for the clip (or file) of a question that is asked ``blind``


@dataclass(frozen=True, slots=True)
class Condition:
    """What becomes of a video before a model is asked about it."""

    name: str  # in items, results and gate rules
    title: str  # in reports
    description: str
    show: Callable[[Clip, str, int], Any]
    """What the model is given: of the clip in order, a key of the clip, and the seed (both of random choices)."""
    other_video: bool = False  # whether the clip is that of another video


def _single_frame(clip: Clip) -> Clip:
    middle = slice(len(clip.frames) // 2, len(clip.frames) // 2 + 1)
    return replace(clip, frames=clip.frames[middle], times_s=clip.times_s[middle])


ORDERED = "ordered"  # the condition that every model is asked under, and that the others are compared with

_LIST = (
    Condition(ORDERED, "in order", "the video as it is", lambda clip, key, seed: clip),
    Condition(
        "shuffled",
        "shuffled",
        "its frames in a random order, the same for all questions about it",
        lambda clip, key, seed: clip.permuted(frame_order(key, len(clip.frames), seed)),
    ),
    Condition("other_video", "another video's", "the frames of another video", lambda clip, key, seed: clip, True),
    Condition(
        "reversed",
        "backwards",
        "the video played backwards",
        lambda clip, *_: clip.permuted(np.arange(len(clip.frames))[::-1]),
    ),
    Condition("single_frame", "one frame", "its middle frame alone", lambda clip, *_: _single_frame(clip)),
    Condition("blind", "no video", "the question alone", lambda clip, key, seed: NO_VIDEO),
)

CONDITIONS: Registry[Condition] = Registry("condition", Condition, {condition.name: condition for condition in _LIST})
"""The conditions under which a model can be asked, in the order in which reports show them."""

DEFAULT_CONDITIONS = ("shuffled", "other_video")  # asked under by default; where they are not, reports say so
RELIANCE = ("shuffled", "reversed", "single_frame", "blind")
"""Conditions under which a model that needs the video, in order, must do worse."""


def add_entries(registry: Registry[Any], references: Iterable[str]) -> tuple[str, ...]:
    """The names of entries, registered ones or ``my_module:THING``, which are registered under their own name.

    Raises `UserError`: there is no such entry, or another one has its name."""
    names = []
    for reference in references:
        entry = registry.get(reference)
        if entry.name not in registry:
            registry.register(entry.name, entry)
        elif registry.get(entry.name) is not entry:
            kind = registry.kind
            raise UserError(f"{kind} '{reference}': there is another {kind} '{entry.name}'; choose another name")
        names.append(entry.name)
    return tuple(dict.fromkeys(names))


def condition_title(name: str) -> str:
    """What reports call a condition; its name where this process does not know it."""
    return CONDITIONS.get(name).title if name in CONDITIONS else name


def which_conditions(wanted: Iterable[str], samples: Sequence[Sample]) -> tuple[list[str], dict[str, str]]:
    """The conditions that questions are asked under (``wanted``, besides ``ordered``), and why others are left out."""
    videos = {video_of(sample) for sample in samples if sample.media.kind == "video"}
    asked: list[str] = [ORDERED]
    left_out: dict[str, str] = {}
    for name, condition in CONDITIONS.items():
        if name == ORDERED:
            continue
        if name not in wanted:
            left_out |= {name: "switched off"} if name in DEFAULT_CONDITIONS else {}
        elif not videos:
            left_out[name] = "there are no videos"
        elif condition.other_video and len(videos) < 2:
            left_out[name] = "there are fewer than two videos"
        else:
            asked.append(name)
    return asked, left_out


def seed_of(*parts: object) -> int:
    """A seed that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def frame_order(key: str, num_frames: int, seed: int) -> np.ndarray:
    """A random order of ``num_frames`` frames, the same for the same key and seed, and never the true order."""
    rng = np.random.default_rng(seed_of(seed, "frames", key))
    order = rng.permutation(num_frames)
    while num_frames > 1 and (order == np.arange(num_frames)).all():
        order = rng.permutation(num_frames)
    return order


def other_videos(samples: Iterable[Sample], seed: int) -> Mapping[str, Sample]:
    """For each video, a sample about another one, whose pixels it gets; empty with fewer than two."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if sample.media.kind == "video":
            first.setdefault(video_of(sample), sample)
    ring = sorted(first, key=lambda video: seed_of(seed, "other", video))
    if len(ring) < 2:
        return {}
    return {video: first[ring[(place + 1) % len(ring)]] for place, video in enumerate(ring)}


def choose_items(samples: Sequence[Sample], limit: int | None, seed: int) -> list[int]:
    """Indices of the items to ask: all, or ``limit`` of them drawn by the seed, in the order of the set."""
    indices = range(len(samples))
    return sorted(sorted(indices, key=lambda index: seed_of(seed, "item", samples[index].id))[:limit])


def video_of(sample: Sample) -> str:
    """What its items are clustered by: the same file is the same video, whichever part of it is asked about."""
    return sample.media.sha256 or sample.media.uri


def clip_key(video: str, start_s: float | None, end_s: float | None) -> str:
    """Names the part of a video that a question is about."""
    return f"{video}/{start_s}/{end_s}"


def kind_of(sample: Sample) -> str | None:
    """``metadata.kind`` as a name that a gate rule can hold."""
    kind = sample.metadata.get("kind")
    return re.sub(r"\W+", "_", str(kind)).strip("_") or None if kind is not None else None
