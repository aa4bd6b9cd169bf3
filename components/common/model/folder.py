"""Model folders: what may be in them, and the card that says how the model is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..video.config import VideoConfig

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""Supported ``model_type`` values."""


CARD = "vthink.json"


_WEIGHTS_THAT_RUN_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".msgpack", ".h5")


def write_card(folder: Path, prompt: str, video: VideoConfig, lineage: dict[str, Any]) -> None:
    """Write ``vthink.json``: what inference must do to see what training saw, and where the model came from."""
    card = {"prompt": prompt, "video": video.model_dump(mode="json"), "lineage": lineage}
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


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
        raise UserError(f"{config_path}: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    if "auto_map" in config:
        raise UserError(f"{config_path}: asks for code of its own (auto_map); code from a model folder never runs here")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _WEIGHTS_THAT_RUN_CODE)
        found = f" (found {', '.join(pickled)}, which can run code when read)" if pickled else ""
        raise UserError(f"{folder}: no *.safetensors{found}; convert the weights to safetensors first")


def _copy_safe(source: Path, target: Path) -> None:
    """Copy what inference needs from a model folder, leaving out pickles, code and training state."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS_THAT_RUN_CODE and path.stat().st_size > 0:
            if path.name.startswith((".", "_COMPLETE", "optimizer", "training_args")):
                continue
            shutil.copyfile(path, target / path.name)


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of ``vthink.json``.

    Raises:
        UserError: it is missing or malformed.
    """
    path = folder / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        card["video"] = VideoConfig.load(card["video"], source=str(path))
        card["prompt"] = str(card["prompt"])
        return card
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CARD}; bring the model in with `vthink` first") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def save_model(
    folder: Path,
    model: Any,
    processor: Any,
    card: dict[str, Any],
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a flat, servable folder: safetensors (shards of at most 5 GB), processor, chat template, `vthink.json`.

    Args:
        state_dict: the weights, where the model itself holds only a shard of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    processor.save_pretrained(folder)
    write_card(folder, card["prompt"], card["video"], card.get("lineage", {}))
