"""GRPO's objective, and DAPO's, Dr. GRPO's and GSPO's: advantages, clipped ratio, KL, and what is averaged over what.

Per token t of completion i, with ratio ρ = π/π_old, advantage A_i and reference π_ref (GRPO: arXiv 2402.03300, eq. 3):

    L = −w · min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) + β · (π_ref/π − log(π_ref/π) − 1)

w is 1 unless another engine than the trainer sampled the completions (`vllm.importance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from ..common.model.prompt import BlindInputError, EncodedPrompt
from .config import GRPOConfig


def group_advantages(rewards: torch.Tensor, scale_by_std: bool = True) -> torch.Tensor:
    """Advantages (…, G) from total rewards (…, G): (r − mean) / (std + 1e-4) within each group. The standard deviation
    is the unbiased one, as in Video-R1's code. Statistics never cross prompts."""
    advantages = rewards - rewards.mean(-1, keepdim=True)
    return advantages / (rewards.std(-1, keepdim=True) + 1e-4) if scale_by_std else advantages


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """B completions to learn from, those of a group side by side."""

    prompts: Sequence[EncodedPrompt]  # B; completions of a group have the same object
    completion_ids: torch.Tensor  # (B, C)
    completion_mask: torch.Tensor  # (B, C), 1 for tokens of completions, 0 for padding
    loss_mask: torch.Tensor  # (B, C), 1 for the tokens that the loss counts
    advantages: torch.Tensor  # (B,)
    num_loss_tokens: torch.Tensor  # those that the loss counts in the whole generation step, over all processes
    old_log_probs: torch.Tensor | None = None  # (B, C) of the policy that sampled; None: the policy before its update
    ref_log_probs: torch.Tensor | None = None  # (B, C) of the reference; None without KL
    importance_weights: torch.Tensor | None = None  # (B, C) w; None: all 1

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.completion_ids):
            raise BlindInputError(f"{len(self.completion_ids)} completions, and the pixels of {len(self.prompts)}")

    def rows(self, rows: slice) -> TrainingBatch:
        """Some of the completions."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_loss_tokens"}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def split(self, count: int) -> list[TrainingBatch]:
        """``count`` parts of equal size."""
        size = len(self.prompts) // count
        return [self.rows(slice(start, start + size)) for start in range(0, size * count, size)]


def policy_loss(
    config: GRPOConfig, log_probs: torch.Tensor, batch: TrainingBatch, denominator: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective for log-probabilities (B, C) of a batch, or of a part of one: parts add up to its loss.

    Args: ``denominator``: `loss_denominator` of the whole batch.

    Returns: the loss, and sums (4,) over the tokens that it counts: their number, their KL, and how many (for gspo: in
    the sequences) have their gradient cut off, being below the range of the ratio, and above it."""
    mask = batch.loss_mask
    old = log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
    log_ratio = log_probs - old
    if config.loss == "gspo":  # one ratio per sequence (arXiv 2507.18071, eq. 7)
        log_ratio = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = log_ratio.exp()
    low, high = 1 - config.epsilon, 1 + (config.epsilon_high or config.epsilon)
    advantages = batch.advantages[:, None]
    losses = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    if batch.importance_weights is not None:
        losses = losses * batch.importance_weights
    kl = torch.zeros_like(log_probs)
    if batch.ref_log_probs is not None:
        log_ref_ratio = batch.ref_log_probs - log_probs
        kl = log_ref_ratio.exp() - log_ref_ratio - 1  # k3: unbiased and never negative
        losses = losses + config.kl_coefficient * kl
    losses = losses * mask
    if config.loss in ("grpo", "gspo"):  # the mean of each sequence
        losses = losses.sum(-1) / mask.sum(-1).clamp(min=1)
    clipped_low, clipped_high = (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
    counted = [torch.ones_like(kl), kl.detach(), clipped_low, clipped_high]
    return losses.sum() / denominator, torch.stack([(values * mask).sum().float() for values in counted])


def loss_denominator(
    config: GRPOConfig, batch: TrainingBatch, micro_batches: int, steps_per_generation: int, num_processes: int
) -> torch.Tensor | float:
    """What the sum of a micro-batch's losses is divided by.

    Args: ``micro_batches``: of an optimiser step; ``steps_per_generation``: those that a generation step makes."""
    if config.loss == "dapo":  # all tokens of the optimiser step, over all processes (DDP takes their mean)
        tokens = batch.num_loss_tokens.clamp(min=1) / num_processes
        return tokens * micro_batches / steps_per_generation
    if config.loss == "dr_grpo":  # as many tokens as there could be: no bias towards long wrong answers
        return len(batch.prompts) * config.max_new_tokens * micro_batches
    return len(batch.prompts) * micro_batches
