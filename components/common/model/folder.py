"""Model folders: their card ``vthink.json``, what may be in them, and how one is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Section
from ..errors import UserError
from ..video.config import VideoConfig
from .families import FAMILIES
from .prompts import Prompt, PromptTemplate, get_template

if TYPE_CHECKING:
    import torch


CARD = "vthink.json"  # the card's file in a model folder


class Lineage(Section):
    """Where a model comes from."""

    base: str | None = None
    """The base model: a name, folder or prefix."""
    revision: str | None = None
    """Commit of the base model's hub repository."""
    fingerprint: str = ""
    """Of the base model as it was brought into the store, or of the stage that trained this one."""
    stage: str | None = None
    """The stage that trained it."""
    start: str | None = None
    """Prefix of the model that this training started from."""
    data: str | None = None
    """Manifest of the prepared data that it was trained on."""
    run_id: str | None = None
    """The pipeline run."""

    def known(self) -> dict[str, Any]:
        """What is known of it, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)


class ModelCard(Section):
    """What stands in ``vthink.json``."""

    prompt: Prompt
    """The prompt template: the name of one of ours, or the fields of another."""
    video: VideoConfig
    """How videos become frames."""
    lineage: Lineage = Lineage()
    """Where the model comes from."""

    @property
    def template(self) -> PromptTemplate:
        """The prompt template itself."""
        return get_template(self.prompt)

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        card = self.model_dump(mode="json") | {"lineage": self.lineage.known()}
        (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """The card of a model folder; UserError when it is missing or damaged."""
        path = folder / CARD
        try:
            return cls.load(path.read_text("utf-8"), str(path))
        except FileNotFoundError:
            raise UserError(f"{folder}: no {CARD}; bring the model in with `vthink` first") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: damaged ({error})") from error


WEIGHTS_THAT_RUN_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".msgpack", ".h5")


def check_folder(folder: Path) -> None:
    """UserError for a folder that is not a supported model in safetensors: names the file, and what to do."""
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
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in WEIGHTS_THAT_RUN_CODE)
        hint = f" (found {', '.join(pickled)}, which can run code when read)" if pickled else ""
        raise UserError(f"{folder}: no *.safetensors{hint}; convert the weights to safetensors first")


def copy_safe(source: Path, target: Path) -> None:
    """Copy what inference needs from a model folder, leaving out pickles, code and training state."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        unsafe = path.suffix in WEIGHTS_THAT_RUN_CODE
        state = path.name.startswith((".", "_COMPLETE", "optimizer", "training_args"))
        if path.is_file() and not unsafe and not state and path.stat().st_size > 0:
            shutil.copyfile(path, target / path.name)


def save_model(
    folder: Path, model: Any, processor: Any, card: ModelCard, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a flat, servable folder: safetensors (shards of at most 5 GB), processor, chat template, `vthink.json`.
    ``state_dict`` has the weights, where the model itself holds only a shard of them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    processor.save_pretrained(folder)
    card.write(folder)
