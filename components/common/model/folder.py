"""Model folders: what may be in them, and how one is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .card import ModelCard
from .families.registry import FAMILIES

if TYPE_CHECKING:
    import torch

WEIGHTS_THAT_RUN_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".msgpack", ".h5")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that is not a supported model in safetensors.

    Raises:
        UserError: naming the file or the setting, and what to do.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{folder}: no config.json; expected a Hugging Face model folder")
    try:
        config = json.loads(config_path.read_text())
        family = config.get("model_type")
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path}: not a JSON object ({error})") from error
    if family not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise UserError(f"{config_path}: model_type {family!r} is not supported; supported: {supported}")
    if "auto_map" in config:
        raise UserError(f"{config_path}: asks for code of its own (auto_map); code from a model folder never runs here")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in WEIGHTS_THAT_RUN_CODE)
        hint = f" (found {', '.join(pickled)}, which can run code when read)" if pickled else ""
        raise UserError(f"{folder}: no *.safetensors{hint}; convert the weights to safetensors first")


def copy_safe(source: Path, target: Path) -> None:
    """Copy what inference needs from a model folder, leaving out pickles, code and training state."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in WEIGHTS_THAT_RUN_CODE and path.stat().st_size > 0:
            if path.name.startswith((".", "_COMPLETE", "optimizer", "training_args")):
                continue
            shutil.copyfile(path, target / path.name)


def save_model(
    folder: Path,
    model: Any,
    processor: Any,
    card: ModelCard,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a flat, servable folder: safetensors (shards of at most 5 GB), processor, chat template, `vthink.json`.

    Args:
        state_dict: the weights, where the model itself holds only a shard of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    processor.save_pretrained(folder)
    card.write(folder)
