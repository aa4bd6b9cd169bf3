"""The trained model as a servable folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..model.folder import Lineage, save_model
from ..model.load import LoadedModel, pick_dtype


def export(trainer: Any, loaded: LoadedModel, folder: Path, lineage: Lineage, dtype: str = "auto") -> None:
    """Write the trained model as a servable folder: adapters merged, sharded weights gathered, in ``dtype``.

    Every rank must call it; the first one writes.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
        state = model.state_dict()
    if not trainer.is_deepspeed_enabled:
        model = model.to(pick_dtype(dtype, loaded.device))
        state = model.state_dict()
    shutil.rmtree(folder, ignore_errors=True)
    card = loaded.card.model_copy(update={"lineage": lineage})
    save_model(folder, model, loaded.encoder.processor, card, state_dict=state)
