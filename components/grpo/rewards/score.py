"""What the completions of a prompt are worth: the rewards of `RewardConfig`, and those of somebody else's modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...common.errors import UserError
from ...common.registry import Registry
from ..config import RewardConfig
from .built_in import REWARDS
from .group import Group

RewardFunction = Callable[[Group], Sequence[float]]
"""One number for each of a group's completions."""

_OUTSIDE: Registry[RewardFunction] = Registry("grpo.rewards.extra: reward", Callable)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """What a group's completions are worth."""

    components: torch.Tensor
    """(G, K) in the order of `RewardConfig.names`, weights applied; a completion's reward is the sum of its row."""
    accuracy: torch.Tensor
    """(G,) graded answers in [0, 1]."""
    shuffled_accuracy: torch.Tensor
    """(G̃,) graded answers of the shuffled rollouts."""


def reward_functions(config: RewardConfig) -> dict[str, RewardFunction]:
    """The functions behind `RewardConfig.names`, weighted, in that order.

    Raises:
        UserError: there is no function of a name in ``config.extra``.
    """
    functions: dict[str, RewardFunction] = {}
    for name, reward in REWARDS.items():
        settings = getattr(config, name)
        functions[name] = _nothing if settings is None else partial(reward.function, settings=settings)
    for path, weight in config.extra.items():
        functions[path] = partial(_weighted, function=_OUTSIDE.get(path), weight=weight)
    return functions


def _nothing(group: Group) -> list[float]:
    return [0.0] * len(group.texts)


def _weighted(group: Group, function: RewardFunction, weight: float) -> list[float]:
    return [weight * float(value) for value in function(group)]


def score_group(group: Group, functions: Mapping[str, RewardFunction]) -> GroupRewards:
    """Reward the completions of one prompt.

    Args:
        functions: of `reward_functions`.

    Raises:
        UserError: a function raised, or did not return one finite number per completion.
    """
    columns = []
    for name, function in functions.items():
        try:
            values = [float(value) for value in function(group)]
        except Exception as error:
            raise UserError(
                f"reward {name} failed on sample {group.sample.id}: {type(error).__name__}: {error}"
            ) from error
        if len(values) != len(group.texts) or not all(map(math.isfinite, values)):
            raise UserError(
                f"reward {name} returned {values} for the {len(group.texts)} completions of sample {group.sample.id}"
            )
        columns.append(values)
    return GroupRewards(
        components=torch.tensor(columns, dtype=torch.float32).T.contiguous(),
        accuracy=torch.tensor(group.accuracy, dtype=torch.float32),
        shuffled_accuracy=torch.tensor(group.shuffled_accuracy, dtype=torch.float32),
    )
