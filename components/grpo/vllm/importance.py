"""Truncated importance sampling per token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...common.errors import UserError
from ...common.model.generation import Completion
from .answer import SampledCompletion


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceWeights:
    """What token losses are multiplied by because the sampler is not quite the policy, and how far apart they are."""

    weights: torch.Tensor  # like the log-probabilities; 1 where the mask is 0. Without gradient
    truncated: float  # share of tokens whose ratio was above the cap
    mean_gap: float
    """Mean |log π_trainer − log π_sampler| over tokens; large when vLLM saw other pixels, positions or weights."""
    max_gap: float  # largest gap of a token


def importance_weights(
    trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, cap: float = 2.0
) -> ImportanceWeights:
    """Truncated importance sampling per token, min(π_trainer / π_sampler, C): TRL's ``token_truncate``.

    Rollouts come from vLLM's kernels and types, gradients from the trainer's; the same weights give other
    probabilities there. The ratio corrects for it, the cap keeps its variance finite. With a nucleus below 1 the
    sampler's probabilities are those within the nucleus, so ratios lie a little below 1 and the gap is never 0.

    Args:
        trainer: log-probabilities of the sampled tokens under the weights they were sampled with, at the same
            temperature.
        sampler: `SampledCompletion.log_probs`, in the same shape.
        mask: 1 for tokens of completions, 0 for padding.
        cap: C.

    Raises:
        ValueError: shapes differ, or the cap is below 1.
        UserError: a log-probability is not finite."""
    if trainer.shape != sampler.shape or trainer.shape != mask.shape:
        raise ValueError(f"shapes differ: {tuple(trainer.shape)}, {tuple(sampler.shape)}, {tuple(mask.shape)}")
    if not cap >= 1:
        raise ValueError(f"the cap must be at least 1, not {cap:g}: it would scale down tokens without a mismatch")
    counted = mask.bool()
    gap = torch.where(counted, trainer.detach().float() - sampler.float(), 0.0)
    if not bool(gap.isfinite().all()):
        row = int((~gap.isfinite()).nonzero()[0, 0])
        raise UserError(f"row {row}: a log-probability of the trainer or the sampler is not finite")
    ratio = gap.exp()
    total = max(int(counted.sum()), 1)
    return ImportanceWeights(
        weights=ratio.clamp(max=cap),
        truncated=int((ratio > cap).sum()) / total,
        mean_gap=float(gap.abs().sum()) / total,
        max_gap=float(gap.abs().max()) if gap.numel() else 0.0,
    )


def sampler_log_probs(completions: Sequence[Completion], like: torch.Tensor) -> torch.Tensor:
    """(B, C) what each completion's tokens were sampled with, 0 after its end; ``like`` gives shape and device."""
    values = torch.zeros(like.shape, device=like.device)
    for row, completion in enumerate(completions):
        if isinstance(completion, SampledCompletion):
            values[row, : len(completion.log_probs)] = torch.tensor(completion.log_probs, device=like.device)
    return values
