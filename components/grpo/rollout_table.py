"""A GRPO step's rollouts in MLflow: a page to look at and a table to search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..common.html.images import frame_strip
from ..common.html.page import page, template_block
from ..common.tracking.run import Tracker
from ..common.video.clip import encode_frames
from ..common.video.config import VideoConfig
from .rollouts import Rollouts

_SHOWN_PROMPTS = 4


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
    """Prompts with frames, completions, reward components and advantages, ordered and shuffled side by side."""
    shown = []
    for row in rows:
        groups = [("Ordered frames", row.frames_ordered, row.completions_ordered)]
        if row.frames_shuffled or row.completions_shuffled:
            groups.append(("Shuffled frames", row.frames_shuffled, row.completions_shuffled))
        sides = []
        for heading, frames, completions in groups:
            names = list(dict.fromkeys(name for completion in completions for name in completion.rewards))
            names.sort(key=lambda name: name == "total")
            strip = frame_strip(frames)
            sides.append({"heading": heading, "strip": strip, "names": names, "completions": list(completions)})
        shown.append({"prompt": row.prompt, "truth": row.truth, "sides": sides})
    return template_block("rollouts", rows=shown)


def rollout_rows(rollouts: Rollouts, video: VideoConfig, names: Sequence[str]) -> list[RolloutRow]:
    """The first prompts of a step: frames, completions, rewards by name (`RewardConfig.names`), advantages."""
    rows = []
    for i, item in enumerate(rollouts.items[:_SHOWN_PROMPTS]):
        clip, rewards = rollouts.shuffled_clips[i], rollouts.rewards[i]
        ordered = zip(
            rollouts.completions[i], rewards.components.tolist(), rollouts.advantages[i].tolist(), strict=True
        )
        shuffled = zip(rollouts.shuffled_completions[i], rewards.shuffled_accuracy.tolist(), strict=True)
        rows.append(
            RolloutRow(
                prompt=item.sample.question,
                truth=item.sample.answer,
                frames_ordered=encode_frames(item.clip, video),
                frames_shuffled=encode_frames(clip, video) if clip is not None else [],
                completions_ordered=[
                    RolloutCompletion(
                        text=completion.text,
                        rewards=dict(zip(names, parts, strict=True)) | {"total": sum(parts)},
                        advantage=advantage,
                    )
                    for completion, parts, advantage in ordered
                ],
                completions_shuffled=[
                    RolloutCompletion(text=completion.text, rewards={"accuracy": accuracy})
                    for completion, accuracy in shuffled
                ],
            )
        )
    return rows


@dataclass(frozen=True)
class RolloutTable:
    """Writes steps' rollouts to MLflow."""

    tracker: Tracker
    video: VideoConfig
    names: Sequence[str]
    """`RewardConfig.names`."""

    def write(self, step: int, rollouts: Rollouts) -> None:
        """A page and a table of its own for each step: a training that is resumed replaces those that it repeats."""
        rows = rollout_rows(rollouts, self.video, self.names)
        html = page(f"Rollouts at step {step}", [("", rollout_table(rows))])
        self.tracker.log_html(f"rollouts/step-{step:06d}.html", html)
        records: list[dict[str, Any]] = [
            {
                "step": step,
                "question": row.prompt,
                "truth": row.truth,
                "frames": frames,
                "completion": completion.text,
                **{name: completion.rewards.get(name) for name in self.names},
                "advantage": completion.advantage,
            }
            for row in rows
            for frames, group in (("ordered", row.completions_ordered), ("shuffled", row.completions_shuffled))
            for completion in group
        ]
        self.tracker.log_table(
            f"rollouts/step-{step:06d}.json", {name: [record[name] for record in records] for name in records[0]}
        )
