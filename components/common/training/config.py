"""What SFT and GRPO have in common."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..config import Section


class LoraConfig(Section):
    """Low-rank adapters; merged into the weights before the model leaves training."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


class ValidationConfig(Section):
    """Accuracy on the validation split while training; the test split is not touched."""

    every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between validations."""
    num_items: int = Field(default=256, ge=1)
    """Questions asked (the first of the split, after the filter below)."""
    kinds: tuple[str, ...] = ()
    """Only questions whose ``metadata.kind`` is listed; empty: all."""
    batch_size: int = Field(default=64, ge=1)
    """Questions decoded at once."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest response."""


class TrainingConfig(Section):
    """What SFT and GRPO have in common."""

    enabled: bool = True
    """Whether the stage runs."""
    seed: int = 0
    """Seed of data order and sampling."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1: as `num_epochs` says."""
    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the training split, when ``max_steps`` is -1."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the schedule after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second-moment decay."""
    max_grad_norm: float = Field(default=5.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass, to save memory."""
    deepspeed: Literal["none", "zero2", "zero3"] = "none"
    """DeepSpeed ZeRO stage."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    freeze_vision: bool = False
    """Keep the vision tower as it is."""
    freeze_projector: bool = False
    """Keep the projector between vision tower and language model as it is."""
    kinds: tuple[str, ...] = ()
    """Train only on questions whose ``metadata.kind`` is listed; empty: all."""
    images: bool = True
    """Train on image rows too."""
    shuffle: bool = True
    """Draw the rows in random order; false: in the order of the prepared set, for a curriculum (``data.order``)."""
    save_every_steps: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept, besides the best."""
    log_every_steps: int = Field(default=10, ge=1)
    """Optimiser steps between logged metrics."""
    validation: ValidationConfig = ValidationConfig()
    """Validation while training."""

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if self.lora is not None and self.deepspeed == "zero3":
            raise ValueError("lora with deepspeed=zero3 is not supported yet; use zero2 or none")
        return self
