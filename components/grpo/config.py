"""Settings of GRPO and T-GRPO."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..common.config import Section
from ..common.training.config import TrainingConfig
from .rewards import REWARD_PRESETS, RewardConfig


class VLLMConfig(Section):
    """Rollouts in vLLM instead of our own engine: much faster decoding on GPUs. Needs vLLM where training runs."""

    mode: Literal["colocate", "server"] = "colocate"
    """Inside each training process, or on servers of their own (see `components/grpo/vllm/`)."""
    server_url: str | None = None
    """Where the server is, e.g. ``http://rollouts:8000``."""
    gpu_memory_utilization: float = Field(default=0.3, gt=0, le=1)
    """Part of the GPU's memory that vLLM takes in colocate mode."""
    sleep: bool = True
    """In colocate mode give that memory back while training."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Token losses are weighted by min(π_trainer / π_sampler, cap), for the two compute slightly different numbers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError("server_url belongs to mode=server, and mode=server needs it")
        return self


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
    max_kl: float = Field(default=10.0, gt=0)
    """Training stops with an error when the mean KL per token exceeds this: the policy has come apart."""
    epsilon: float = Field(default=0.2, gt=0)
    """Clip range of the importance ratio (inactive while each rollout is used for one update)."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """Upper clip range, where it differs (DAPO's clip-higher: 0.28); null: ``epsilon``."""
    num_iterations: int = Field(default=1, ge=1)
    """Updates per rollout."""
    vllm: VLLMConfig | None = None
    """Rollouts in vLLM; null: in our own engine, on the training model itself."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    """How token losses are averaged: per sequence (grpo), per maximum length (dr_grpo, arXiv 2503.20783), per token
    (dapo, 2503.14476); gspo (2507.18071) is grpo with one importance ratio per sequence."""
    mask_truncated: bool = False
    """Leave completions that ran out of room out of the loss (DAPO §3.4)."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """DAPO §3.2: groups whose completions all earned the same teach nothing. Up to so many times another prompt is
    tried in such a group's place; what is left without signal is left out of the loss. 0: keep all groups."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation."""
    rewards: Literal["video_r1_code", "video_r1_v4", "video_thinker"] | RewardConfig = "video_r1_code"
    """A published preset by name, or its parts."""
    permute_rewards: bool = False
    """Control experiment: hand each completion the reward of another one of its group. Nothing must be learned."""
    max_steps_without_signal: int = Field(default=50, ge=1)
    """Training stops with an error after so many steps in which no group had completions of different reward."""
    shared_prefix: Literal["two_call", "mask", "off"] = "two_call"
    """How log-probabilities are computed: prompt and completions in one pass, with two attention calls or one mask;
    ``off``: the plain way, the prompt once per completion."""
    max_tokens_per_pass: int | None = Field(default=None, ge=1)
    """Token budget of one forward and backward pass; a micro-batch above it is split between its groups, with the same
    gradients. Null: no limit."""
    prefetch_workers: int = Field(default=2, ge=0)
    """Threads that decode the next step's clips meanwhile."""
    data_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for a step's clips before training stops and names them."""
    rollout_table_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between rollout tables in MLflow."""

    @model_validator(mode="after")
    def _best_is_saved(self) -> Self:
        if self.validation.every_steps != self.save_every_steps:
            raise ValueError(
                "validation.every_steps and save_every_steps must be equal, so that the best checkpoint is one that "
                f"was saved (they are {self.validation.every_steps} and {self.save_every_steps})"
            )
        if self.save_every_steps % self.num_iterations:
            raise ValueError(
                f"save_every_steps ({self.save_every_steps}) must be a multiple of num_iterations "
                f"({self.num_iterations}), so that a checkpoint never lies between two updates on one rollout"
            )
        return self

    @property
    def reward_config(self) -> RewardConfig:
        """The rewards, with a preset's name resolved."""
        return REWARD_PRESETS[self.rewards] if isinstance(self.rewards, str) else self.rewards
