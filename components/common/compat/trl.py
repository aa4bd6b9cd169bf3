"""TRL: what its trainers get wrong for our models, or insist on.

Seen with TRL 1.16.0 and transformers 5.17.0.
"""

from typing import Any


def average_over_all_tokens(trainer: Any) -> None:
    """Let an `SFTTrainer` take the mean over the tokens of the whole batch.

    The Qwen-VL models say (``accepts_loss_kwargs = False``) that they cannot be told how many those are, and the
    trainer averages over processes and accumulated micro-batches as if all had as many. TRL computes the loss itself,
    by its fused head, and does not need the model for it."""
    trainer.model_accepts_loss_kwargs = True


def no_reward(**_: Any) -> list[float]:
    """What a `GRPOTrainer` that rewards whole groups by itself passes as ``reward_funcs``, which must not be empty."""
    raise RuntimeError("rewards come from grpo/rewards.py")
