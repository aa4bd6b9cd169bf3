"""Rewards and advantages of GRPO and T-GRPO, as plain functions of a group's completions.

Everything here is per group: one prompt's G ordered completions, and for T-GRPO its completions on shuffled frames.
Source: Video-R1 (arXiv 2503.21776), equations 1–4, and the settings of its repository (see `config.REWARD_PRESETS`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..common.answers.formats import follows_format
from ..common.answers.grading import grade
from ..common.answers.responses import parse_response
from ..common.config import ConfigError
from ..common.rows.sample import Sample
from .config import LengthConfig, OverlongConfig, RewardConfig, TemporalConfig


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


def well_formed(sample: Sample, texts: Sequence[str], answer_format: str) -> torch.Tensor:
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


def overlong_penalty(token_counts: Sequence[int], config: OverlongConfig) -> torch.Tensor:
    """0 up to ``start_tokens``, then linearly down to −``penalty`` at ``max_tokens`` (DAPO, equation 13)."""
    counts = torch.tensor(token_counts, dtype=torch.float32)
    excess = (counts - config.start_tokens) / (config.max_tokens - config.start_tokens)
    return -config.penalty * excess.clamp(0, 1)


Reward = Callable[[Group], Sequence[float]]
"""A reward of one's own: one number for each of a group's completions."""


class RewardError(RuntimeError):
    """A reward function failed, or returned something that is no reward."""


def load_rewards(config: RewardConfig) -> dict[str, Reward]:
    """The functions that ``config.extra`` names.

    Raises:
        ConfigError: there is no such function.
    """
    found: dict[str, Reward] = {}
    for path in config.extra:
        module, _, name = path.partition(":")
        try:
            found[path] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"grpo.rewards.extra: '{path}' cannot be loaded ({error}); is its module importable from here?"
            ) from error
    return found


def earned(path: str, reward: Reward, group: Group) -> torch.Tensor:
    """(G,) what a reward of one's own gives to a group.

    Raises:
        RewardError: it raised, or did not return one finite number per completion.
    """
    try:
        values = [float(value) for value in reward(group)]
    except Exception as error:
        raise RewardError(
            f"reward {path} failed on sample {group.sample.id}: {type(error).__name__}: {error}"
        ) from error
    if len(values) != len(group.texts) or not all(math.isfinite(value) for value in values):
        raise RewardError(
            f"reward {path} returned {values} for the {len(group.texts)} completions of sample {group.sample.id}"
        )
    return torch.tensor(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """What a group's completions earned."""

    components: torch.Tensor
    """(G, K) in the order of `RewardConfig.names`, weights applied; a completion's reward is the sum of its row."""
    accuracy: torch.Tensor
    """(G,) graded answers in [0, 1]."""
    shuffled_accuracy: torch.Tensor
    """(G̃,) graded answers of the shuffled rollouts."""


def group_rewards(
    group: Group, config: RewardConfig, answer_format: str, extra: Mapping[str, Reward] | None = None
) -> GroupRewards:
    """Reward the completions of one prompt; ``extra`` is what `load_rewards` found."""
    graded = accuracy(group.sample, group.texts)
    shuffled = accuracy(group.sample, group.shuffled_texts)
    zero = torch.zeros_like(graded)
    above = config.correct_above
    columns = [
        config.accuracy * graded,
        config.format * well_formed(group.sample, group.texts, answer_format),
        temporal_bonus(graded, shuffled, above, config.temporal) if config.temporal else zero,
        length_bonus(graded, group.token_counts, above, config.length) if config.length else zero,
        overlong_penalty(group.token_counts, config.overlong) if config.overlong else zero,
    ]
    columns += [config.extra[path] * earned(path, reward, group) for path, reward in (extra or {}).items()]
    return GroupRewards(components=torch.stack(columns, dim=1), accuracy=graded, shuffled_accuracy=shuffled)


def group_advantages(rewards: torch.Tensor, scale_by_std: bool = True) -> torch.Tensor:
    """Advantages (…, G) from total rewards (…, G): (r − mean) / (std + 1e-4) within each group.

    The standard deviation is the unbiased one, as in Video-R1's code. Statistics never cross prompts.
    """
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if scale_by_std:
        advantages = advantages / (rewards.std(-1, keepdim=True) + 1e-4)
    return advantages
