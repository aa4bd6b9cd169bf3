"""The model families, by transformers' ``model_type``, and what differs from one to another. Nothing needs torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """A ``model_type`` of transformers, as this package prompts, positions and builds it."""

    classes: str  # how its classes in transformers begin: ``…Processor``, ``…Config``, ``…ForConditionalGeneration``
    size_multiple: int  # pixels per vision token along height and width: patch size × merge size
    time_in_text: bool
    """Whether the time of a temporal patch is written in the prompt; else it is in the M-RoPE positions."""
    video_text: Callable[[int, Sequence[float]], str]
    """The text that stands for a video, from the vision tokens of a temporal patch and the time of each in seconds."""
    video_processor: str  # class of the tiny model's video processor
    video_options: Mapping[str, Any] = field(default_factory=dict)  # what else that class is told
    complete_tiny: Callable[[dict[str, Any], dict[str, Any]], None]
    """Completes the text and the vision configuration of a tiny model, which hold what all families have in common."""


def _qwen2_5_video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    return "<|vision_start|>" + "<|video_pad|>" * (tokens * len(patch_times_s)) + "<|vision_end|>"


def _complete_qwen2_5(text: dict[str, Any], vision: dict[str, Any]) -> None:
    vision |= {"fullatt_block_indexes": [vision["depth"] - 1], "tokens_per_second": 1}


def _qwen3_video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    # The timestamped blocks replace the outer vision tokens, as Qwen3-VL was trained and as vLLM prompts it
    # (transformers 5.17's processor keeps the outer pair around them, 4.57's did not).
    block = "<|vision_start|>" + "<|video_pad|>" * tokens + "<|vision_end|>"
    return "".join(f"<{time_s:.1f} seconds>{block}" for time_s in patch_times_s)


def _complete_qwen3(text: dict[str, Any], vision: dict[str, Any]) -> None:
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}


_FAMILIES = {
    # arXiv 2502.13923: one block of vision tokens; the time is in their M-RoPE positions.
    "qwen2_5_vl": ModelFamily(
        classes="Qwen2_5_VL",
        size_multiple=28,
        time_in_text=False,
        video_text=_qwen2_5_video_text,
        video_processor="Qwen2VLVideoProcessor",
        video_options={"cap_pixels_per_frame": False},
        complete_tiny=_complete_qwen2_5,
    ),
    # arXiv 2511.21631: a block of vision tokens per temporal patch, behind its time written as text.
    "qwen3_vl": ModelFamily(
        classes="Qwen3VL",
        size_multiple=32,
        time_in_text=True,
        video_text=_qwen3_video_text,
        video_processor="Qwen3VLVideoProcessor",
        complete_tiny=_complete_qwen3,
    ),
}
FAMILIES = Registry[ModelFamily]("model family", ModelFamily, _FAMILIES)


def family_of(processor: Any) -> ModelFamily:
    """The family that a processor belongs to; UserError when none has such a processor."""
    name = type(processor).__name__
    for _, family in FAMILIES.items():
        if name == f"{family.classes}Processor":
            return family
    raise UserError(f"a model with a {name} is not supported; families: {', '.join(FAMILIES)}")
