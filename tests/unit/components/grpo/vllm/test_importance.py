"""The correction for a sampler that is not quite the policy."""

import numpy as np
import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.grpo.vllm.importance import importance_weights


def test_importance_weights_are_the_table_worked_out_by_hand() -> None:
    policy = torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.6, 1.0]]).log().requires_grad_()
    sampler = torch.tensor([[0.5, 0.4, 0.3], [0.4, 0.4, 1.0]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    result = importance_weights(policy, sampler, mask, cap=2.0)
    #                                  0.9 / 0.3 = 3, capped at 2
    expected = torch.tensor([[1.0, 0.5, 2.0], [0.25, 1.5, 1.0]])
    assert torch.allclose(result.weights, expected)
    assert not result.weights.requires_grad
    assert result.truncated == pytest.approx(1 / 5)
    gaps = np.log([1, 2, 3, 4, 1.5])
    assert result.mean_gap == pytest.approx(gaps.mean())
    assert result.max_gap == pytest.approx(gaps.max())


def test_padding_counts_for_nothing_whatever_it_holds() -> None:
    trainer, sampler = torch.tensor([-1.0, float("nan")]), torch.tensor([-1.0, -5.0])
    result = importance_weights(trainer, sampler, torch.tensor([1, 0]))
    assert result.weights.tolist() == [1.0, 1.0]
    assert result.max_gap == 0
    with pytest.raises(UserError, match="row 1"):
        importance_weights(trainer, sampler, torch.tensor([1, 1]))


def test_completions_without_tokens_have_no_weights() -> None:
    empty = torch.zeros(2, 0)
    result = importance_weights(empty, empty, empty)
    assert result.weights.shape == (2, 0)
    assert (result.truncated, result.mean_gap, result.max_gap) == (0, 0, 0)


def test_shapes_that_differ_and_a_cap_below_one_are_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="shapes differ"):
        importance_weights(two, three, two)
    with pytest.raises(ValueError, match="cap"):
        importance_weights(two, two, two, cap=0.5)
