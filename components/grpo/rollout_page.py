"""A GRPO step's rollouts as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..common.html.images import frame_strip
from ..common.html.page import page, template_block


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutCompletion:
    """One completion of a group."""

    text: str
    rewards: Mapping[str, float]
    """Every component of the reward by name, and their ``total``."""
    advantage: float | None = None
    """None for completions that are not trained on (those on shuffled frames)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRow:
    """One prompt of a GRPO step with its groups."""

    prompt: str
    truth: str
    frames_ordered: Sequence[bytes]
    """Encoded pictures in the order of the video."""
    completions_ordered: Sequence[RolloutCompletion]
    frames_shuffled: Sequence[bytes] = ()
    """The same pictures in the order of the shuffled rollouts; empty where there were none."""
    completions_shuffled: Sequence[RolloutCompletion] = ()


def rollout_table(rows: Iterable[RolloutRow]) -> Markup:
    """Prompts with frames, completions, reward components and advantages, ordered and shuffled side by
    side."""
    shown = []
    for row in rows:
        groups = [("Ordered frames", row.frames_ordered, row.completions_ordered)]
        if row.frames_shuffled or row.completions_shuffled:
            groups.append(("Shuffled frames", row.frames_shuffled, row.completions_shuffled))
        sides = []
        for heading, frames, completions in groups:
            names = list(dict.fromkeys(name for completion in completions for name in completion.rewards))
            names.sort(key=lambda name: name == "total")
            sides.append(
                {
                    "heading": heading,
                    "strip": frame_strip(frames),
                    "names": names,
                    "completions": list(completions),
                }
            )
        shown.append({"prompt": row.prompt, "truth": row.truth, "sides": sides})
    return template_block("rollouts", rows=shown)


def rollout_page(title: str, rows: Iterable[RolloutRow], subtitle: str = "") -> str:
    """`rollout_table` as a page of its own."""
    return page(title, [("", rollout_table(rows))], subtitle)
