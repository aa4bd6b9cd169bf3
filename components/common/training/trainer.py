"""What both trainers are told, and what they do in another way than transformers' Trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from trl.models import unwrap_model_for_generation

from ..answers.formats import follows_format
from ..answers.grading import is_correct
from ..answers.reading import read_answer
from ..answers.responses import parse_response
from ..compat.deepspeed import gathered
from ..compat.transformers import load_weights, read_weights
from ..config import ConfigError
from ..model.chat import ChatEncoder
from ..model.generation import Sampling, sample
from ..model.load import iter_linear_names, pick_dtype
from ..rows.prepared import Split
from .config import TrainingConfig, ValidationConfig
from .processes import in_group, world_size

_SAME_NAME = "seed max_steps learning_rate warmup_steps weight_decay adam_beta2 max_grad_norm gradient_checkpointing"
"""Settings whose name is also TRL's."""


def accumulation(config: TrainingConfig, planned_processes: int | None) -> int:
    """Micro-batches per optimiser step on the processes there are, so that the same rows make a step as was planned.

    Planned for eight processes and going on with four, the other node being gone, a training takes twice as many.

    Args: ``planned_processes``: those that ``gradient_accumulation`` was meant for; None: those there are.

    Raises: `ConfigError`: the planned batch cannot be shared out between the processes there are."""
    processes = world_size()
    total = config.gradient_accumulation * (planned_processes or processes)
    if total % processes:
        raise ConfigError(
            f"the batch was planned as {total} micro-batches per step, which {processes} processes cannot share; "
            f"start a number of them that divides {total}"
        )
    return total // processes


def trainer_arguments(
    config: TrainingConfig, folder: Path, on_cpu: bool, dtype: str = "auto", planned_processes: int | None = None
) -> dict[str, Any]:
    """Keyword arguments that TRL's SFTConfig and GRPOConfig share, from our configuration.

    Args: ``dtype``: `ModelConfig.dtype`; with bfloat16 the forward pass is computed in it, while the weights that the
    optimiser updates stay in float32 (its own, or DeepSpeed's master copy); ``planned_processes``: see `accumulation`.
    """
    arguments: dict[str, Any] = {name: getattr(config, name) for name in _SAME_NAME.split()} | {
        "output_dir": str(folder),
        "data_seed": config.seed,
        "num_train_epochs": config.num_epochs,
        "train_sampling_strategy": "random" if config.shuffle else "sequential",
        "lr_scheduler_type": config.lr_schedule,
        "gradient_accumulation_steps": accumulation(config, planned_processes),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "steps",
        "save_steps": config.save_every_steps,
        "save_total_limit": config.keep_checkpoints,
        "eval_strategy": "steps",
        "eval_steps": config.validation.every_steps,
        "logging_steps": config.log_every_steps,
        "logging_first_step": True,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "bf16": pick_dtype(dtype, torch.device("cpu" if on_cpu else "cuda")) == torch.bfloat16,
        "use_cpu": on_cpu,
        # Every parameter takes part in every step (each row brings an image or a video), so DDP need not search.
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not on_cpu,
    }
    if config.deepspeed != "none":
        import deepspeed

        # Before any model is made under ZeRO-3 (the reference model is): DeepSpeed would count one rank.
        deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl")
        arguments["deepspeed"] = {
            "zero_optimization": {
                "stage": {"zero2": 2, "zero3": 3}[config.deepspeed],
                "overlap_comm": True,
                "contiguous_gradients": True,
                "stage3_gather_16bit_weights_on_model_save": config.deepspeed == "zero3",
            },
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
        }
    return arguments


def freeze(model: Any, config: TrainingConfig) -> None:
    """Stop gradients into the vision tower or the projector, as configured."""
    for name, parameter in model.named_parameters():
        in_vision = ".visual." in f".{name}"
        if in_vision and (config.freeze_projector if ".merger" in name else config.freeze_vision):
            parameter.requires_grad_(False)


def adapter_config(model: Any, config: TrainingConfig) -> Any | None:
    """The PEFT configuration for LoRA on the language model's linear layers, or None."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    scale = {"r": config.lora.rank, "lora_alpha": config.lora.alpha, "lora_dropout": config.lora.dropout}
    return LoraConfig(**scale, target_modules=sorted(iter_linear_names(model)), task_type="CAUSAL_LM")


def pick_rows(split: Split, kinds: Sequence[str], images: bool = True) -> list[int]:
    """Indices of the samples whose ``metadata.kind`` is wanted (all when ``kinds`` is empty)."""
    return [
        row
        for row, sample in enumerate(split.samples)
        if (not kinds or sample.metadata.get("kind") in kinds) and (images or sample.media.kind == "video")
    ]


@dataclass(frozen=True)
class Validation:
    """Questions of the validation split that are put to the model while it trains."""

    encoder: ChatEncoder
    split: Split
    config: ValidationConfig

    @property
    def rows(self) -> list[int]:
        """The rows of the split that are asked."""
        return pick_rows(self.split, self.config.kinds)[: self.config.num_items]

    def score(self, model: Any, rank: int = 0, world_size: int = 1) -> dict[str, float]:
        """Ask this rank's share greedily: ``eval_accuracy`` and ``eval_format_rate``, which are over all ranks."""
        rows = self.rows[rank::world_size]
        sampling = Sampling(max_new_tokens=self.config.max_new_tokens)
        totals = torch.zeros(3)  # right, well formed, asked
        for start in range(0, len(rows), self.config.batch_size):
            items = [self.split[row] for row in rows[start : start + self.config.batch_size]]
            completions = sample(model, self.encoder, [self.encoder.encode_sample(item) for item in items], sampling)
            for item, (completion,) in zip(items, completions, strict=True):
                parsed = parse_response(completion.text)  # read as evaluation reads it
                cut_off = completion.finish_reason == "length"
                right = is_correct(item.sample, read_answer(item.sample, parsed, cut_off=cut_off))
                formed = follows_format(item.sample, completion.text, self.encoder.template.answer_format)
                totals += torch.tensor([right, formed, 1.0])
        if world_size > 1:
            totals = totals.to(next(model.parameters()).device)
            torch.distributed.all_reduce(totals)
        accuracy, format_rate = (totals[:2] / totals[2].clamp(min=1)).tolist()
        return {"eval_accuracy": accuracy, "eval_format_rate": format_rate}


class VideoTrainer:
    """For a trainer of TRL's, listed before it among the bases."""

    validation: Validation

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy and format of greedy answers on the validation split, instead of a loss."""
        # Under ZeRO-3 this gathers the weights, so that ranks may decode different numbers of tokens.
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            metrics = self.validation.score(model, self.accelerator.process_index, self.accelerator.num_processes)
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
        """Load the weights alone, which the first process reads: nothing is trained after it, and the optimiser's part
        of a checkpoint, which DeepSpeed would load too, is six times as large."""
        model, best = self.accelerator.unwrap_model(self.model), Path(self.state.best_model_checkpoint)
        adapters = hasattr(model, "peft_config")
        weights = read_weights(model, best) if self.accelerator.is_main_process else {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or not adapters:
                with gathered([parameter], modified=True):
                    if weights:
                        parameter.data.copy_(weights[name])
                    if in_group() and not hasattr(parameter, "ds_id"):
                        torch.distributed.broadcast(parameter.data, src=0)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Save; on every node the folder is there first. The trainer believes in a best checkpoint where it sees its
        folder. Nodes with disks of their own would come to different beliefs, and those that load it would wait for the
        others for ever."""
        Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
