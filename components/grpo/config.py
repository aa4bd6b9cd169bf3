"""Settings of GRPO and T-GRPO."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..common.config import Section
from ..common.training.config import TrainingConfig
from .rewards import REWARD_PRESETS, RewardConfig


class VLLMConfig(Section):
    """Rollouts in vLLM instead of our own engine: much faster decoding on GPUs. Needs vLLM where training runs."""

    mode: Literal["colocate", "server"] = "colocate"
    """Inside each training process, or on servers of their own (see `components/grpo/vllm/`)."""
    server_urls: tuple[str, ...] = ()
    """Where the servers are, e.g. ``http://rollouts:8000``; they take turns."""
    weights_folder: str | None = None
    """In server mode send new weights as a file in this folder, which the servers must see under the same path; null:
    by NCCL where GRPO trains on GPUs, else in this machine's folder for temporary files."""
    gpu_memory_utilization: float = Field(default=0.3, gt=0, le=1)
    """Part of the GPU's memory that vLLM takes in colocate mode."""
    max_model_len: int | None = Field(default=None, ge=1)
    """In colocate mode, most tokens of a prompt and its completion, for which vLLM must have memory; null: what the
    longest question, the most frames and ``grpo.max_new_tokens`` come to."""
    sleep: bool = True
    """In colocate mode give that memory back while training; not on a CPU, where vLLM cannot."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Token losses are weighted by min(π_trainer / π_sampler, cap), for the two compute slightly different numbers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mode == "server") != bool(self.server_urls):
            raise ValueError("server_urls belong to mode=server, and mode=server needs them")
        return self


LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"scale_by_std": False},  # arXiv 2503.20783 §3.2: it weighs easy and hard questions more
    "gspo": {"epsilon": 3e-4, "epsilon_high": 4e-4},  # arXiv 2507.18071 §5.1: ratios of whole sequences differ little
}
"""What a loss brings along where the configuration does not set it."""


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
    top_k: int = Field(default=0, ge=0)
    """Rollouts draw from so many of the likeliest tokens, before the nucleus is taken; 0: from all."""
    kl_coefficient: float = Field(default=0.04, ge=0)
    """β: weight of the k3 estimate of KL to the start of this stage; 0 keeps no reference model."""
    kl_clamp: float = Field(default=10.0, gt=0)
    """log(π_ref / π) of a token is clamped to ± this before its KL is taken (Video-R1's code)."""
    max_kl: float = Field(default=10.0, gt=0)
    """Training stops with an error when the mean KL per token exceeds this: the policy has come apart."""
    epsilon: float = Field(default=0.2, gt=0)
    """Clip range of the importance ratio (inactive while each rollout is used for one update); see `LOSS_DEFAULTS`."""
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
    """Divide advantages by the group's standard deviation; see `LOSS_DEFAULTS`."""
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

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return LOSS_DEFAULTS.get(str(data.get("loss")), {}) | dict(data) if isinstance(data, Mapping) else data

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

    @model_validator(mode="after")
    def _vllm_reports_comparable_log_probs(self) -> Self:
        if self.vllm is not None and self.temperature != 1 and (self.top_p != 1 or self.top_k):
            raise ValueError(
                f"temperature {self.temperature:g} with top_p {self.top_p:g} or top_k {self.top_k}: vLLM then tells no "
                "log-probability to compare with the trainer's; set temperature to 1, or top_p to 1 and top_k to 0"
            )
        return self

    @property
    def logprobs_mode(self) -> str:
        """vLLM's log-probabilities that are of the trainer's distribution: at the temperature, without a nucleus."""
        return "raw_logprobs" if self.temperature == 1 else "processed_logprobs"

    @property
    def num_shuffled(self) -> int:
        """Completions of a video prompt on shuffled frames."""
        temporal = self.reward_config.temporal
        return max(1, int(self.num_generations * temporal.shuffled_fraction)) if temporal is not None else 0

    @property
    def reward_config(self) -> RewardConfig:
        """The rewards, with a preset's name resolved."""
        return REWARD_PRESETS[self.rewards] if isinstance(self.rewards, str) else self.rewards
