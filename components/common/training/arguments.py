"""What trainers are told, from our configuration: their arguments, which weights stay as they are, and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError
from ..model.load import iter_linear_names, pick_dtype
from .config import TrainingConfig
from .processes import world_size

_SAME_NAME = "seed max_steps learning_rate warmup_steps weight_decay adam_beta2 max_grad_norm gradient_checkpointing"
"""Settings whose name is also TRL's."""


def accumulation(config: TrainingConfig, planned_processes: int | None) -> int:
    """Micro-batches per optimiser step on the processes there are, so that the same rows make a step as was planned.

    Planned for eight processes and going on with four, the other node being gone, a training takes twice as many.

    Args: ``planned_processes``: those that ``gradient_accumulation`` was meant for; None: those there are.

    Raises: `ConfigError`: the planned batch cannot be shared out between the processes there are.
    """
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

    Args:
        dtype: `ModelConfig.dtype`; with bfloat16 the forward pass is computed in it, while the weights that the
            optimiser updates stay in float32 (its own, or DeepSpeed's master copy).
        planned_processes: see `accumulation`.
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
