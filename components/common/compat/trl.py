"""TRL 1.16.0 and transformers 5.17.0: what their trainers get wrong for our models, or insist on.

``save_pretrained`` writes the hub's names for weights and ``from_pretrained`` translates them back, but
``Trainer._load_from_checkpoint`` loads the file with ``load_state_dict(strict=False)`` and translates nothing: for the
Qwen-VL models, whose names differ, a resumed training goes on from the weights that the model happened to have, with a
warning in the log: `load_weights`.
"""

from pathlib import Path
from typing import Any

from ..errors import UserError


def load_weights(model: Any, folder: Path) -> None:
    """Load a saved model's weights into ``model``; a `UserError` where one is missing or left over."""
    source, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
        raise UserError(f"{folder}: {len(odd)} weights do not fit the model, among them {', '.join(odd[:3])}")
    model.load_state_dict(source.state_dict(), strict=True)


def average_over_all_tokens(trainer: Any) -> None:
    """Let an `SFTTrainer` take the mean over the tokens of the whole batch.

    The Qwen-VL models say (``accepts_loss_kwargs = False``) that they cannot be told how many those are, and the
    trainer averages over processes and accumulated micro-batches as if all had as many. TRL computes the loss itself,
    by its fused head, and does not need the model for it."""
    trainer.model_accepts_loss_kwargs = True


def no_reward(**_: Any) -> list[float]:
    """What a `GRPOTrainer` that rewards whole groups by itself passes as ``reward_funcs``, which must not be empty."""
    raise RuntimeError("rewards come from grpo/rewards.py")
