"""What a generation step's rollouts say about the training, averaged over ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from .rollouts import Rollouts


def rollout_metrics(rollouts: Rollouts, reward_names: Sequence[str], accelerator: Any) -> dict[str, float]:
    """Means over all ranks' completions; every rank must call it.

    Args:
        reward_names: `RewardConfig.names`.
    """
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
    local: dict[str, list[float]] = defaultdict(list)
    for item, group in zip(rollouts.items, rollouts.rewards, strict=True):
        for name in (f"type/{item.sample.problem_type}", f"source/{item.sample.source or 'unnamed'}"):
            local[f"grpo/accuracy/{name}"].append(float(group.accuracy.mean()))
    parts: list[dict[str, list[float]]] = [local]
    if num_processes > 1:
        parts = [{} for _ in range(num_processes)]
        torch.distributed.all_gather_object(parts, dict(local))
    merged: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, values in part.items():
            merged[name] += values
    return {name: sum(values) / len(values) for name, values in merged.items()}
