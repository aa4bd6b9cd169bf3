"""transformers 5: weights that its Trainer saves under other names than it loads them by.

``save_pretrained`` writes the hub's names for weights and ``from_pretrained`` translates them back, but
``Trainer._load_from_checkpoint`` loads the file with ``load_state_dict(strict=False)`` and translates nothing: for the
Qwen-VL models, whose names differ, a resumed training goes on from the weights that the model happened to have, with a
warning in the log. Seen with 5.17.0.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.integrations import deepspeed as hf_deepspeed

from ..errors import UserError


def read_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a Trainer saved of ``model`` (of its adapters, where it has some), by the names of its
    parameters, on the CPU.

    Raises:
        UserError: a weight is missing or left over."""
    if hasattr(model, "peft_config"):
        saved = load_file(folder / "adapter_model.safetensors")
        names = {name.replace(".default.", "."): name for name, p in model.named_parameters() if p.requires_grad}
        odd = sorted(saved.keys() ^ names.keys())
        weights = {names[name]: tensor for name, tensor in saved.items() if name in names}
    else:
        deepspeed = hf_deepspeed._hf_deepspeed_config_weak_ref
        hf_deepspeed.unset_hf_deepspeed_config()  # under ZeRO-3 every process would have to take part
        try:
            source, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
        finally:
            hf_deepspeed._hf_deepspeed_config_weak_ref = deepspeed
        odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
        weights = source.state_dict()
    if odd:
        raise UserError(f"{folder}: {len(odd)} weights do not fit the model, among them {', '.join(odd[:3])}")
    return weights


def load_weights(model: Any, folder: Path) -> None:
    """Load a saved model's weights into ``model``, all of them; `UserError` as `read_weights`."""
    model.load_state_dict(read_weights(model, folder), strict=True)
