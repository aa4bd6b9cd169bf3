"""transformers 5: weights that its Trainer saves under other names than it loads them by.

``save_pretrained`` writes the hub's names for weights and ``from_pretrained`` translates them back, but
``Trainer._load_from_checkpoint`` loads the file with ``load_state_dict(strict=False)`` and translates nothing: for the
Qwen-VL models, whose names differ, a resumed training goes on from the weights that the model happened to have, with a
warning in the log. Seen with 5.17.0.
"""

from __future__ import annotations

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
