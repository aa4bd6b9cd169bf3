"""A GRPO step's rollouts in MLflow: figures averaged over ranks, a page to look at and a table to search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from ..common.html.images import frame_strip
from ..common.html.page import page, template_block
from ..common.tracking.run import Tracker
from ..common.video.codec import encode_frames
from ..common.video.config import VideoConfig
from .rollouts import Rollouts

_SHOWN_PROMPTS = 4


def rollout_metrics(rollouts: Rollouts, reward_names: Sequence[str], accelerator: Any) -> dict[str, float]:
    """Means over all ranks' completions; every rank must call it. ``reward_names``: `RewardConfig.names`."""
    completions = [completion for group in rollouts.completions for completion in group]
    shuffled = [group.shuffled_accuracy.mean() for group in rollouts.rewards if len(group.shuffled_accuracy)]
    rewards = rollouts.components
    values = {f"grpo/reward/{name}": rewards[:, :, i].mean() for i, name in enumerate(reward_names)}
    values |= {
        "grpo/reward/total": rewards.sum(-1).mean(),
        "grpo/accuracy_ordered": torch.stack([group.accuracy for group in rollouts.rewards]).mean(),
        # A rank without a video in this step has no shuffled accuracy: NaN leaves it out of the mean.
        "grpo/accuracy_shuffled": torch.stack(shuffled).mean() if shuffled else torch.tensor(float("nan")),
        "grpo/completion_length": torch.tensor([float(len(c.token_ids)) for c in completions]).mean(),
        "grpo/truncated": torch.tensor([float(c.finish_reason == "length") for c in completions]).mean(),
        "grpo/zero_std_groups": torch.tensor(len(rollouts.without_signal) / len(rollouts.completions)),
    }
    stacked = torch.stack([value.float() for value in values.values()]).to(accelerator.device)
    averages = accelerator.gather(stacked).view(-1, len(values)).nanmean(0).tolist()
    return dict(zip(values, averages, strict=True)) | _accuracy_by_kind(rollouts, accelerator.num_processes)


def _accuracy_by_kind(rollouts: Rollouts, num_processes: int) -> dict[str, float]:
    """Mean accuracy per problem type and per source, over all ranks."""
    local = [
        (f"grpo/accuracy/{name}", float(group.accuracy.mean()))
        for item, group in zip(rollouts.items, rollouts.rewards, strict=True)
        for name in (f"type/{item.sample.problem_type}", f"source/{item.sample.source or 'unnamed'}")
    ]
    parts: list[Any] = [local] * num_processes
    if num_processes > 1:
        torch.distributed.all_gather_object(parts, local)
    merged: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, accuracy in part:
            merged[name].append(accuracy)
    return {name: sum(values) / len(values) for name, values in merged.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutCompletion:
    """One completion of a group."""

    text: str
    rewards: Mapping[str, float]  # every component of the reward by name, and their ``total``
    advantage: float | None = None  # None for completions that are not trained on (those on shuffled frames)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRow:
    """One prompt of a GRPO step with its groups."""

    prompt: str
    truth: str
    frames_ordered: Sequence[bytes]  # encoded pictures in the order of the video
    completions_ordered: Sequence[RolloutCompletion]
    frames_shuffled: Sequence[bytes] = ()  # in the order of the shuffled rollouts; empty where there were none
    completions_shuffled: Sequence[RolloutCompletion] = ()

    @property
    def sides(self) -> list[tuple[str, Sequence[bytes], Sequence[RolloutCompletion]]]:
        """The order of the frames, they themselves, and the completions on them."""
        shuffled = ("shuffled", self.frames_shuffled, self.completions_shuffled)
        sides = [("ordered", self.frames_ordered, self.completions_ordered), shuffled]
        return sides if self.frames_shuffled or self.completions_shuffled else sides[:1]


def rollout_table(rows: Iterable[RolloutRow]) -> Markup:
    """Prompts with frames, completions, reward components and advantages, ordered and shuffled side by side."""
    shown = []
    for row in rows:
        sides = []
        for order, frames, completions in row.sides:
            names = dict.fromkeys(name for completion in completions for name in completion.rewards)
            side = {"heading": f"{order.capitalize()} frames", "strip": frame_strip(frames), "completions": completions}
            sides.append(side | {"names": sorted(names, key=lambda name: name == "total")})
        shown.append({"prompt": row.prompt, "truth": row.truth, "sides": sides})
    return template_block("rollouts", rows=shown)


def rollout_row(rollouts: Rollouts, index: int, video: VideoConfig, names: Sequence[str]) -> RolloutRow:
    """A prompt of a step: frames, completions, rewards by name (`RewardConfig.names`), advantages."""
    item, clip, rewards = rollouts.items[index], rollouts.shuffled_clips[index], rollouts.rewards[index]
    parts, advantages = rewards.components.tolist(), rollouts.advantages[index].tolist()
    ordered = zip(rollouts.completions[index], parts, advantages, strict=True)
    shuffled = zip(rollouts.shuffled_completions[index], rewards.shuffled_accuracy.tolist(), strict=True)
    return RolloutRow(
        prompt=item.sample.question,
        truth=item.sample.answer,
        frames_ordered=encode_frames(item.clip, video),
        frames_shuffled=encode_frames(clip, video) if clip is not None else [],
        completions_ordered=[
            RolloutCompletion(
                text=completion.text,
                rewards=dict(zip(names, earned, strict=True)) | {"total": sum(earned)},
                advantage=advantage,
            )
            for completion, earned, advantage in ordered
        ],
        completions_shuffled=[
            RolloutCompletion(text=completion.text, rewards={"accuracy": accuracy}) for completion, accuracy in shuffled
        ],
    )


def write_rollouts(tracker: Tracker, video: VideoConfig, names: Sequence[str], step: int, rollouts: Rollouts) -> None:
    """A page and a table of its own for each step: a training that is resumed replaces those that it repeats."""
    rows = [rollout_row(rollouts, i, video, names) for i in range(min(_SHOWN_PROMPTS, len(rollouts.items)))]
    html = page(f"Rollouts at step {step}", [("", rollout_table(rows))])
    tracker.log_html(f"rollouts/step-{step:06d}.html", html)
    records: list[dict[str, object]] = [
        {
            "step": step,
            "question": row.prompt,
            "truth": row.truth,
            "frames": order,
            "completion": completion.text,
            **{name: completion.rewards.get(name) for name in names},
            "advantage": completion.advantage,
        }
        for row in rows
        for order, _, completions in row.sides
        for completion in completions
    ]
    columns = {name: [record[name] for record in records] for name in records[0]}
    tracker.log_table(f"rollouts/step-{step:06d}.json", columns)
