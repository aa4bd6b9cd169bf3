"""Loading checkpoints whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .callbacks import CheckpointCallback


def load_weights(model: Any, folder: Path) -> None:
    """Load a saved model's weights into ``model``, all of them.

    transformers 5 saves under the hub's names for weights and translates them back in ``from_pretrained``, but its
    Trainer loads checkpoints without translating and without insisting: it would go on from random weights.

    Raises:
        UserError: a weight is missing or left over.
    """
    source, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
        raise UserError(f"{folder}: {len(odd)} weights do not fit the model, among them {', '.join(odd[:3])}")
    model.load_state_dict(source.state_dict(), strict=True)


class WholeCheckpoints:
    """For a trainer (listed before it among the bases): resuming and choosing the best really load the weights."""

    def _plain(self: Any) -> bool:
        """Whether the checkpoint is a model folder; DeepSpeed and PEFT keep and load theirs correctly."""
        return not self.is_deepspeed_enabled and not hasattr(self.model, "peft_config")

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._plain():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        load_weights(
            self.accelerator.unwrap_model(model if model is not None else self.model), Path(resume_from_checkpoint)
        )

    def _load_best_model(self: Any) -> None:
        if not self._plain():
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CheckpointCallback):
                    callback.store.complete(Path(self.state.best_model_checkpoint))
            super()._load_best_model()  # type: ignore[misc]
            return
        model = self.accelerator.unwrap_model(self.model)
        if self.accelerator.is_main_process:  # only its node has the weights
            load_weights(model, Path(self.state.best_model_checkpoint))
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Save; on every node the folder is there first.

        The trainer believes in a best checkpoint where it sees its folder. Nodes with disks of their own would come to
        different beliefs, and those that load it would wait for the others for ever.
        """
        Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
