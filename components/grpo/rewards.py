"""Rewards and advantages of GRPO and T-GRPO, as plain functions of a group's completions.

Everything here is per group: one prompt's G ordered completions, and for T-GRPO its completions on shuffled frames.
Source: Video-R1 (arXiv 2503.21776), equations 1–4, and the settings of its repository (see `config.REWARD_PRESETS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..common.answers import follows_format, grade, parse_response
from ..common.prompts import AnswerFormat
from ..common.samples import Sample
from .config import LengthConfig, RewardConfig, TemporalConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One prompt's rollouts."""

    sample: Sample
    texts: Sequence[str]
    """G completions on the frames in order."""
    token_counts: Sequence[int]
    """Their lengths in tokens."""
    shuffled_texts: Sequence[str] = ()
    """Completions on permuted frames; empty for images and for plain GRPO."""


def accuracy(sample: Sample, texts: Sequence[str]) -> torch.Tensor:
    """Graded answers in [0, 1], one per completion (problem types: Video-R1 §3.2).

    Only an answer inside ``<answer>`` counts: a reward for guesses found elsewhere in the text would be paid for
    ignoring the format.
    """
    parsed = [parse_response(text) for text in texts]
    return torch.tensor([grade(sample, p.answer) if p.tagged else 0.0 for p in parsed], dtype=torch.float32)


def well_formed(sample: Sample, texts: Sequence[str], answer_format: AnswerFormat) -> torch.Tensor:
    """1.0 where the whole completion has the shape that the prompt asked for, else 0.0."""
    return torch.tensor([float(follows_format(sample, text, answer_format)) for text in texts])


def temporal_bonus(
    ordered: torch.Tensor, shuffled: torch.Tensor, correct_above: float, config: TemporalConfig
) -> torch.Tensor:
    """T-GRPO's bonus (equations 1 and 2): α for each correct ordered rollout when mean(ordered) ≥ μ · mean(shuffled).

    Args:
        ordered: (G,) graded answers on the frames in order.
        shuffled: (G̃,) graded answers on permuted frames; empty for an image, which has no order to lose.
    """
    if shuffled.numel() == 0:
        return torch.zeros_like(ordered)
    earned = ordered.mean() >= config.ratio * shuffled.mean()
    return config.bonus * (ordered > correct_above).float() * earned.float()


def length_bonus(
    ordered: torch.Tensor, token_counts: Sequence[int], correct_above: float, config: LengthConfig
) -> torch.Tensor:
    """ω for each correct rollout within the window, when the group has more than one correct rollout (equation 3)."""
    correct = ordered > correct_above
    if int(correct.sum()) <= 1:
        return torch.zeros_like(ordered)
    counts = torch.tensor(token_counts)
    return config.bonus * (correct & (counts >= config.min_tokens) & (counts <= config.max_tokens)).float()


COMPONENTS = ("accuracy", "format", "temporal", "length")
"""Columns of `group_rewards`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """What a group's completions earned."""

    components: torch.Tensor
    """(G, 4) in the order of `COMPONENTS`, weights applied; a completion's reward is the sum of its row."""
    accuracy: torch.Tensor
    """(G,) graded answers in [0, 1]."""
    shuffled_accuracy: torch.Tensor
    """(G̃,) graded answers of the shuffled rollouts."""


def group_rewards(group: Group, config: RewardConfig, answer_format: AnswerFormat) -> GroupRewards:
    """Reward the completions of one prompt."""
    graded = accuracy(group.sample, group.texts)
    shuffled = accuracy(group.sample, group.shuffled_texts)
    zero = torch.zeros_like(graded)
    columns = [
        config.accuracy * graded,
        config.format * well_formed(group.sample, group.texts, answer_format),
        temporal_bonus(graded, shuffled, config.correct_above, config.temporal) if config.temporal else zero,
        length_bonus(graded, group.token_counts, config.correct_above, config.length) if config.length else zero,
    ]
    return GroupRewards(components=torch.stack(columns, dim=1), accuracy=graded, shuffled_accuracy=shuffled)


def group_advantages(rewards: torch.Tensor, scale_by_std: bool = True) -> torch.Tensor:
    """Advantages (…, G) from total rewards (…, G): (r − mean) / (std + 1e-4) within each group.

    The standard deviation is the unbiased one, as in Video-R1's code. Statistics never cross prompts.
    """
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if scale_by_std:
        advantages = advantages / (rewards.std(-1, keepdim=True) + 1e-4)
    return advantages
