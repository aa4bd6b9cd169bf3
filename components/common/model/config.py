"""The base model and the prompt it is asked with."""

from __future__ import annotations

from typing import Literal

from ..config import Section


class TinyModelConfig(Section):
    """A small Qwen2.5-VL or Qwen3-VL that is built from this description, for laptops and tests."""

    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    """Architecture."""
    hidden_size: int = 64
    """Width of the language model and of the vision tower."""
    num_layers: int = 2
    """Layers of the language model."""
    num_vision_layers: int = 2
    """Layers of the vision tower."""
    num_heads: int = 4
    """Attention heads of both."""
    initializer_range: float = 0.08
    """Standard deviation of the initial weights; 0.08 leaves the plateau of the demo's task soonest."""


class ModelConfig(Section):
    """The base model and the prompt it is asked with."""

    name: str = "tiny"
    """``tiny`` (built from the `tiny` section), a hub id, a local folder, or an ``s3://…/`` prefix."""
    revision: str | None = None
    """Commit of the hub repository; set it, so that a run can be repeated."""
    seed: int = 0
    """Seed of the weights when ``name`` is ``tiny``."""
    tiny: TinyModelConfig = TinyModelConfig()
    """Shape of the tiny model; ignored for every other name."""
    prompt: str = "video_thinker/1"
    """Prompt template and its version; the same in SFT, rollouts, evaluation and the server."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the accelerator has it, float32 on a CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels."""
