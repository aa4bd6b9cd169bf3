"""The base model and the prompt it is asked with."""

from typing import Literal

from pydantic import field_validator

from ..config import Section
from ..errors import UserError
from .families import FAMILIES
from .prompts import Prompt, resolve_prompt


class TinyModelConfig(Section):
    """A small Qwen2.5-VL or Qwen3-VL that is built from this description, for laptops and tests."""

    family: str = "qwen2_5_vl"
    """Architecture: ``qwen2_5_vl`` or ``qwen3_vl``."""
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

    @field_validator("family")
    @classmethod
    def _known(cls, family: str) -> str:
        return FAMILIES.check(family)


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
    prompt: Prompt = "video_thinker/1"
    """Prompt template, the same in SFT, rollouts, evaluation and the server: a name with its version,
    ``my_module:TEMPLATE``, the path of a YAML or JSON file with a template's fields, or those fields."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the accelerator has it, float32 on a CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernels."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _resolve(cls, prompt: object) -> object:
        """What lies outside is read here, so that every stage, on whatever machine, is told its content."""
        try:
            return resolve_prompt(prompt) if isinstance(prompt, str) else prompt
        except UserError as error:
            raise ValueError(str(error)) from error
