"""The objective against TRL's own, value and gradient, and advantages against tables worked out by hand."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer
from vthink.components.common.model.prompt import BlindInputError
from vthink.components.grpo.config import GRPOConfig
from vthink.components.grpo.losses import TrainingBatch, group_advantages, loss_denominator, policy_loss

B, C, STEPS_PER_GENERATION, MICRO_BATCHES = 6, 5, 2, 4


def config(**changes: Any) -> GRPOConfig:
    return GRPOConfig(**({"max_new_tokens": C, "kl_coefficient": 0.04, "epsilon": 0.1} | changes))


def batch_of(seed: int = 0, **changes: Any) -> tuple[TrainingBatch, torch.Tensor]:
    """Completions of different length, one of them empty, and log-probabilities that are not quite the old ones."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(C) < torch.tensor([5, 3, 0, 4, 1, 5])[:, None]).long()
    loss_mask = mask.clone()
    loss_mask[3] = 0  # left out of the loss, as a truncated one is
    old, drift, drift_ref = (torch.randn(B, C, generator=generator) for _ in range(3))
    batch = TrainingBatch(
        prompts=[None] * B,  # type: ignore[list-item]
        completion_ids=torch.zeros(B, C, dtype=torch.long),
        completion_mask=mask,
        loss_mask=loss_mask,
        advantages=torch.randn(B, generator=generator),
        num_loss_tokens=torch.tensor(31),
        old_log_probs=old,
        ref_log_probs=old + 0.3 * drift_ref,
    )
    return replace(batch, **changes), old + 0.2 * drift


def by_trl(
    settings: GRPOConfig, batch: TrainingBatch, log_probs: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's loss of the same completions, in a trainer that has nothing but what it needs for that."""
    metrics: dict[str, list[float]] = defaultdict(list)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros(B, C), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if settings.loss == "gspo" else "token",
        beta=settings.kl_coefficient,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=STEPS_PER_GENERATION),
        loss_type="grpo" if settings.loss == "gspo" else settings.loss,
        epsilon_low=settings.epsilon,
        epsilon_high=settings.epsilon_high or settings.epsilon,
        use_vllm=batch.importance_weights is not None,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=MICRO_BATCHES,
        max_completion_length=settings.max_new_tokens,
        accelerator=SimpleNamespace(num_processes=2, gather=lambda x: x, reduce=lambda x, reduction: x),
        _entropy_bonus_enabled=False,
        _metrics={"train": metrics},
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": batch.completion_ids,
        "completion_mask": batch.completion_mask,
        "tool_mask": batch.loss_mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_log_probs,
        "ref_per_token_logps": batch.ref_log_probs,
        "importance_sampling_ratio": batch.importance_weights,
        "num_items_in_batch": batch.num_loss_tokens,
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[-1] for name, values in metrics.items()}


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo"])
@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, {}),
        ({"epsilon_high": 0.28}, {"importance_weights": torch.full((B, C), 0.7)}),
        ({}, {"old_log_probs": None}),
        ({"kl_coefficient": 0.0}, {"ref_log_probs": None}),
    ],
    ids=["plain", "clip higher, weighted", "on policy", "no KL"],
)
def test_loss_and_gradient_are_trls_also_in_parts(loss: str, changes: dict[str, Any], without: dict[str, Any]) -> None:
    settings = config(loss=loss, **changes)
    batch, values = batch_of(**without)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected, metrics = by_trl(settings, batch, theirs)
    expected.backward()
    denominator = loss_denominator(settings, batch, MICRO_BATCHES, STEPS_PER_GENERATION, num_processes=2)
    parts = [slice(0, 2), slice(2, 3), slice(3, B)]
    results = [policy_loss(settings, ours[rows], batch.rows(rows), denominator) for rows in parts]
    total = torch.stack([part for part, _ in results]).sum()
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)  # type: ignore[arg-type]
    tokens, kl, low, high = torch.stack([sums for _, sums in results]).sum(0).tolist()
    assert tokens == int(batch.loss_mask.sum())
    if settings.kl_coefficient:
        assert kl / tokens == pytest.approx(metrics["kl"], rel=1e-5)
    if loss != "gspo":  # TRL counts sequences there, we count their tokens
        for name, value in (("low", low), ("high", high)):
            assert value / tokens == pytest.approx(metrics[f"clip_ratio/{name}_mean"], abs=1e-6)
        assert ("old_log_probs" in without) or metrics["clip_ratio/region_mean"] > 0  # the control


def test_a_batch_splits_into_parts_of_equal_size_and_lacks_no_prompt() -> None:
    batch, _ = batch_of(importance_weights=torch.rand(B, C))
    first, second = batch.split(2)
    assert torch.equal(torch.cat([first.advantages, second.advantages]), batch.advantages)
    assert first.importance_weights is not None
    assert first.importance_weights.shape == (3, C)
    assert first.num_loss_tokens == batch.num_loss_tokens
    with pytest.raises(BlindInputError, match="6 completions, and the pixels of 5"):
        replace(batch, prompts=batch.prompts[:-1])


def test_statistics_never_cross_prompts() -> None:
    rewards = torch.tensor([[1.0, 0.0], [10.0, 8.0]])
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == pytest.approx([0.70701, -0.70701], abs=1e-4)
    assert torch.equal(advantages[1], group_advantages(rewards[1:])[0])
    assert group_advantages(torch.ones(1, 4)).abs().max() == 0  # a group without signal moves nothing


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("grpo", (True, 0.2, None)), ("dr_grpo", (False, 0.2, None)), ("gspo", (True, 3e-4, 4e-4))],
)
def test_a_loss_brings_its_papers_settings_unless_the_configuration_says_otherwise(
    loss: str, expected: tuple[Any, ...]
) -> None:
    settings = GRPOConfig(loss=loss)  # type: ignore[arg-type]
    assert (settings.scale_by_std, settings.epsilon, settings.epsilon_high) == expected
    assert GRPOConfig.load(settings.to_json()) == settings
    own = GRPOConfig(loss=loss, scale_by_std=True, epsilon=0.1, epsilon_high=None)  # type: ignore[arg-type]
    assert (own.scale_by_std, own.epsilon, own.epsilon_high) == (True, 0.1, None)


def test_the_kl_of_a_token_is_clamped_as_in_the_published_code() -> None:
    batch, _ = batch_of(ref_log_probs=torch.full((B, C), 30.0), old_log_probs=None)
    _, sums = policy_loss(config(), torch.zeros(B, C), batch, 1.0)
    assert float(sums[1] / sums[0]) == pytest.approx(math.exp(10) - 11)
