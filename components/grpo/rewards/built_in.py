"""The rewards that come with the project, each an entry of `REWARDS`, from which `RewardConfig` and metrics take them.

Source: Video-R1 (arXiv 2503.21776), equations 1-3, and the settings of its repository; DAPO (arXiv 2503.14476). No
torch here: the configuration is made of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from pydantic import Field, model_validator

from ...common.answers.formats import follows_format
from ...common.config import Section
from ...common.registry import Registry
from .group import Group

_ROUNDING = 1e-6
"""Means that differ by less are equal: rounding does not decide a tie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """An entry of `REWARDS`."""

    description: str
    """Documents its key in ``grpo.rewards``."""
    function: Callable[..., Sequence[float]]
    """From a group and ``settings``, the value of that key, to a number for each completion."""
    settings: type[Section] | None = None
    """Its own settings, off where they are null; None: the key is a weight, 1 by default."""


def accuracy(group: Group, settings: float) -> list[float]:
    """The graded answers."""
    return [settings * accuracy for accuracy in group.accuracy]


def well_formed(group: Group, settings: float) -> list[float]:
    """The weight where the whole completion has the shape that the prompt asked for, else 0."""
    return [settings * follows_format(group.sample, text, group.answer_format) for text in group.texts]


class TemporalConfig(Section):
    """T-GRPO (Video-R1, arXiv 2503.21776 §3.1): reward what needs the order of the frames."""

    ratio: float = Field(default=0.8, ge=0)
    """μ: the bonus is given when accuracy(ordered) ≥ μ · accuracy(shuffled). 0.8 in the code, 1 in paper v4."""
    bonus: float = Field(default=0.3, ge=0)
    """α: added to correct ordered rollouts of a video prompt."""
    shuffled_fraction: float = Field(default=0.5, gt=0, le=1)
    """Shuffled rollouts per ordered one (G // 2 in Video-R1)."""


def temporal_bonus(group: Group, settings: TemporalConfig) -> list[float]:
    """α for each correct ordered rollout when mean(ordered) ≥ μ · mean(shuffled) (Video-R1, equations 1 and 2).

    None for an image, which has no order to lose.
    """
    if not group.shuffled_accuracy:
        return [0.0] * len(group.texts)
    in_order = fmean(group.accuracy) >= settings.ratio * fmean(group.shuffled_accuracy) - _ROUNDING
    return [settings.bonus * (correct and in_order) for correct in group.correct]


class LengthConfig(Section):
    """Length bonus (Video-R1 §3.2): correct answers that reason neither too briefly nor too long."""

    bonus: float = Field(default=0.2, ge=0)
    """ω. 0.2 in the code and paper v4, 0.1 in v1."""
    min_tokens: int = Field(default=320, ge=0)
    """Shortest completion that earns it."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest completion that earns it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        return self


def length_bonus(group: Group, settings: LengthConfig) -> list[float]:
    """ω for each correct rollout within the window, when the group has more than one correct rollout (equation 3)."""
    if sum(group.correct) <= 1:
        return [0.0] * len(group.texts)
    return [
        settings.bonus * (correct and settings.min_tokens <= count <= settings.max_tokens)
        for correct, count in zip(group.correct, group.token_counts, strict=True)
    ]


class OverlongConfig(Section):
    """Soft penalty for completions that run out of room (DAPO, arXiv 2503.14476, equation 13)."""

    start_tokens: int = Field(default=512, ge=0)
    """Length from which the penalty grows, linearly."""
    max_tokens: int = Field(default=768, ge=1)
    """Length at which it is whole."""
    penalty: float = Field(default=1.0, ge=0)
    """What a completion of ``max_tokens`` loses."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_tokens >= self.max_tokens:
            raise ValueError("start_tokens must be below max_tokens")
        return self


def overlong_penalty(group: Group, settings: OverlongConfig) -> list[float]:
    """0 up to ``start_tokens``, then linearly down to −``penalty`` at ``max_tokens`` (DAPO, equation 13)."""
    room = settings.max_tokens - settings.start_tokens
    excess = [(count - settings.start_tokens) / room for count in group.token_counts]
    return [-settings.penalty * min(max(value, 0.0), 1.0) for value in excess]


REWARDS: Registry[Reward] = Registry(
    "reward",
    Reward,
    {
        "accuracy": Reward(description="Weight of the graded answer in [0, 1].", function=accuracy),
        "format": Reward(description="Weight of the format in {0, 1}.", function=well_formed),
        "temporal": Reward(
            description="T-GRPO's bonus; null: plain GRPO.", function=temporal_bonus, settings=TemporalConfig
        ),
        "length": Reward(description="Length bonus; null: none.", function=length_bonus, settings=LengthConfig),
        "overlong": Reward(
            description="Penalty for overlong completions; null: none.",
            function=overlong_penalty,
            settings=OverlongConfig,
        ),
    },
)
"""Every reward of the project, in the order of its column in tables; a new one is a new entry here."""
