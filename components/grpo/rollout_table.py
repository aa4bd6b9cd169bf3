"""A GRPO step's rollouts in MLflow: figures averaged over ranks, a page to look at and a table to search."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from markupsafe import Markup

from ..common.html.images import frame_strip
from ..common.html.page import page, template_block
from ..common.tracking.run import Tracker
from ..common.video.clip import Clip, encode_frames
from ..common.video.config import VideoConfig
from .rollouts import Rollouts

_SHOWN_PROMPTS = 4


def rollout_metrics(rollouts: Rollouts, reward_names: Sequence[str], accelerator: Any) -> dict[str, float]:
    """Means over all ranks' completions; every rank must call it. ``reward_names``: `RewardConfig.names`."""
    completions = [completion for group in rollouts.completions for completion in group]
    shuffled = [fmean(group.shuffled_accuracy) for group in rollouts.groups if group.shuffled_accuracy]
    means = rollouts.components.mean((0, 1)).tolist()
    values = {f"grpo/reward/{name}": mean for name, mean in zip(reward_names, means, strict=True)} | {
        "grpo/reward/total": sum(means),
        "grpo/accuracy_ordered": fmean(fmean(group.accuracy) for group in rollouts.groups),
        # A rank without a video in this step has no shuffled accuracy: NaN leaves it out of the mean.
        "grpo/accuracy_shuffled": fmean(shuffled or [math.nan]),
        "grpo/completion_length": fmean(len(completion.token_ids) for completion in completions),
        "grpo/truncated": fmean(completion.finish_reason == "length" for completion in completions),
        "grpo/zero_std_groups": len(rollouts.without_signal) / len(rollouts.completions),
    }
    gathered = accelerator.gather(torch.tensor(list(values.values()), device=accelerator.device))
    averages = gathered.view(-1, len(values)).nanmean(0).tolist()
    return dict(zip(values, averages, strict=True)) | _accuracy_by_kind(rollouts, accelerator.num_processes)


def _accuracy_by_kind(rollouts: Rollouts, num_processes: int) -> dict[str, float]:
    """Mean accuracy per problem type and per source, over all ranks."""
    local = [
        (f"grpo/accuracy/{name}", fmean(group.accuracy))
        for group in rollouts.groups
        for name in (f"type/{group.sample.problem_type}", f"source/{group.sample.source or 'unnamed'}")
    ]
    parts: list[Any] = [local] * num_processes
    if num_processes > 1:
        torch.distributed.all_gather_object(parts, local)
    merged: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, accuracy in part:
            merged[name].append(accuracy)
    return {name: fmean(values) for name, values in merged.items()}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A completion as it is shown, with every component of its reward by name."""

    text: str
    rewards: Mapping[str, float]
    advantage: float | None = None  # None for completions that are not trained on (those on shuffled frames)


def _sides(rollouts: Rollouts, index: int, names: Sequence[str]) -> list[tuple[str, Clip, list[_Shown]]]:
    """The completions of a prompt on its frames in order and, where there are any, on them shuffled."""
    clip, group = rollouts.shuffled_clips[index], rollouts.groups[index]
    earned, advantages = rollouts.rewards[index].tolist(), rollouts.advantages[index].tolist()
    ordered = [
        _Shown(text, dict(zip(names, parts, strict=True)) | {"total": sum(parts)}, advantage)
        for text, parts, advantage in zip(group.texts, earned, advantages, strict=True)
    ]
    graded = zip(group.shuffled_texts, group.shuffled_accuracy, strict=True)
    shuffled = [_Shown(text, {"accuracy": accuracy}) for text, accuracy in graded]
    sides = [("ordered", rollouts.items[index].clip, ordered)]
    return sides if clip is None else [*sides, ("shuffled", clip, shuffled)]


def rollout_table(rollouts: Rollouts, video: VideoConfig, names: Sequence[str]) -> Markup:
    """The first prompts with frames, completions, rewards and advantages, ordered and shuffled side by side; ``names``:
    `RewardConfig.names`."""
    rows = []
    for index, item in enumerate(rollouts.items[:_SHOWN_PROMPTS]):
        sides = [
            {
                "heading": f"{order.capitalize()} frames",
                "strip": frame_strip(encode_frames(clip, video)),
                "names": [*names, "total"],
                "completions": shown,
            }
            for order, clip, shown in _sides(rollouts, index, names)
        ]
        rows.append({"prompt": item.sample.question, "truth": item.sample.answer, "sides": sides})
    return template_block("rollouts", rows=rows)


def write_rollouts(tracker: Tracker, video: VideoConfig, names: Sequence[str], step: int, rollouts: Rollouts) -> None:
    """A page and a table of its own for each step: a training that is resumed replaces those that it repeats."""
    html = page(f"Rollouts at step {step}", [("", rollout_table(rollouts, video, names))])
    tracker.log_html(f"rollouts/step-{step:06d}.html", html)
    records: list[dict[str, object]] = [
        {
            "step": step,
            "question": item.sample.question,
            "truth": item.sample.answer,
            "frames": order,
            "completion": completion.text,
            **{name: completion.rewards.get(name) for name in names},
            "advantage": completion.advantage,
        }
        for index, item in enumerate(rollouts.items[:_SHOWN_PROMPTS])
        for order, _, shown in _sides(rollouts, index, names)
        for completion in shown
    ]
    columns = {name: [record[name] for record in records] for name in records[0]}
    tracker.log_table(f"rollouts/step-{step:06d}.json", columns)
