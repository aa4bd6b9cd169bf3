"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field

from ..common.training.config import TrainingConfig


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on reasoning traces (the cold start before GRPO)."""

    batch_size: int = Field(default=1, ge=1)
    """Samples per process and micro-batch."""
    response: Literal["auto", "video_r1", "video_thinker"] = "auto"
    """Shape of the target; ``auto``: what the model's prompt template asks for."""
    stop_at_accuracy: float | None = Field(default=None, gt=0, le=1)
    """Stop once validation accuracy reaches this: a cold start that leaves room for GRPO."""
