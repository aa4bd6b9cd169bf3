"""Settings of GRPO and T-GRPO."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..common.config import Section, TrainingConfig


class TemporalConfig(Section):
    """T-GRPO (Video-R1, arXiv 2503.21776 §3.1): reward what needs the order of the frames."""

    ratio: float = Field(default=0.8, ge=0)
    """μ: the bonus is given when accuracy(ordered) ≥ μ · accuracy(shuffled). 0.8 in the code, 1 in paper v4."""
    bonus: float = Field(default=0.3, ge=0)
    """α: added to correct ordered rollouts of a video prompt."""
    shuffled_fraction: float = Field(default=0.5, gt=0, le=1)
    """Shuffled rollouts per ordered one (G // 2 in Video-R1)."""


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


class RewardConfig(Section):
    """What a completion is worth."""

    accuracy: float = Field(default=1.0, ge=0)
    """Weight of the graded answer in [0, 1]."""
    format: float = Field(default=1.0, ge=0)
    """Weight of the format in {0, 1}."""
    correct_above: float = Field(default=0.1, ge=0, lt=1)
    """A rollout counts as correct, for both bonuses, when its graded answer is above this."""
    temporal: TemporalConfig | None = None
    """T-GRPO's bonus; null: plain GRPO."""
    length: LengthConfig | None = None
    """Length bonus; null: none."""


REWARD_PRESETS: dict[str, RewardConfig] = {
    "video_r1_code": RewardConfig(temporal=TemporalConfig(ratio=0.8), length=LengthConfig(bonus=0.2)),
    "video_r1_v4": RewardConfig(temporal=TemporalConfig(ratio=1.0), length=LengthConfig(bonus=0.2)),
    "video_thinker": RewardConfig(),
}
"""Published reward systems: Video-R1's repository, its last paper version, and Video-Thinker."""


class GRPOConfig(TrainingConfig):
    """Group-relative policy optimisation on video, with T-GRPO's temporal contrast as an option."""

    save_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints; each is validated, and the best one is the result."""
    num_generations: int = Field(default=8, ge=2)
    """G: completions per prompt."""
    prompts_per_step: int = Field(default=1, ge=1)
    """Prompts per process and micro-batch."""
    max_new_tokens: int = Field(default=768, ge=1)
    """Longest completion."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of rollouts."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of rollouts."""
    kl_coefficient: float = Field(default=0.04, ge=0)
    """β: weight of the k3 estimate of KL to the start of this stage; 0 keeps no reference model."""
    epsilon: float = Field(default=0.2, gt=0)
    """Clip range of the importance ratio (inactive while each rollout is used for one update)."""
    loss: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """How token losses are averaged: per sequence, per maximum length, per token."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation."""
    rewards: Literal["video_r1_code", "video_r1_v4", "video_thinker"] | RewardConfig = "video_r1_code"
    """A published preset by name, or its parts."""
    permute_rewards: bool = False
    """Control experiment: hand each completion the reward of another one of its group. Nothing must be learned."""
    rollout_table_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between rollout tables in MLflow."""

    @model_validator(mode="after")
    def _best_is_saved(self) -> Self:
        if self.validation.every_steps != self.save_every_steps:
            raise ValueError(
                "validation.every_steps and save_every_steps must be equal, so that the best checkpoint is one that "
                f"was saved (they are {self.validation.every_steps} and {self.save_every_steps})"
            )
        return self

    @property
    def reward_config(self) -> RewardConfig:
        """The rewards, with a preset's name resolved."""
        return REWARD_PRESETS[self.rewards] if isinstance(self.rewards, str) else self.rewards
