"""What both trainers do in another way than transformers' Trainer: validation, and checkpoints on several nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from trl.models import unwrap_model_for_generation

from ..compat.transformers import load_weights
from .callbacks import CheckpointCallback
from .processes import in_group
from .validation import Validation


class VideoTrainer:
    """For a trainer of TRL's, listed before it among the bases."""

    validation: Validation

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy of greedy answers on the validation split, instead of a loss."""
        # Under ZeRO-3 this gathers the weights, so that ranks may decode different numbers of tokens.
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            score = self.validation.score(model, self.accelerator.process_index, self.accelerator.num_processes)
        metrics = {"eval_accuracy": score.accuracy, "eval_format_rate": score.format_rate}
        # TRL's own `log` would add the training metrics gathered so far; these are complete as they are.
        Trainer.log(self, dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _checkpoints_are_models(self: Any) -> bool:
        """Whether a checkpoint is a model folder; DeepSpeed and PEFT keep and load theirs correctly."""
        return not self.is_deepspeed_enabled and not hasattr(self.model, "peft_config")

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._checkpoints_are_models():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        model = self.model if model is None else model
        load_weights(self.accelerator.unwrap_model(model), Path(resume_from_checkpoint))

    def _load_best_model(self: Any) -> None:
        if not self._checkpoints_are_models():
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CheckpointCallback):
                    callback.store.fetch_other_nodes(Path(self.state.best_model_checkpoint))
            super()._load_best_model()  # type: ignore[misc]
            return
        model = self.accelerator.unwrap_model(self.model)
        if self.accelerator.is_main_process:  # only its node has the weights
            load_weights(model, Path(self.state.best_model_checkpoint))
        if in_group():
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Save; on every node the folder is there first.

        The trainer believes in a best checkpoint where it sees its folder. Nodes with disks of their own would come to
        different beliefs, and those that load it would wait for the others for ever.
        """
        Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
