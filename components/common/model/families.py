"""The model families, by transformers' ``model_type``, and what differs from one to another. Nothing needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFamily:
    """A ``model_type`` of transformers, as this package prompts, positions and builds it."""

    processor: str
    """Class of its processor, by which an encoder knows the family."""
    size_multiple: int
    """Pixels per vision token along height and width: patch size × merge size."""
    time_in_text: bool
    """Whether the time of a temporal patch is written in the prompt; else it is in the M-RoPE positions."""
    video_text: Callable[[int, Sequence[float]], str]
    """The text that stands for a video, from the vision tokens of a temporal patch and the time of each in seconds."""
    build_processor: Callable[..., Any]
    """A processor for the tiny model, from its ``image_processor``, ``tokenizer``, ``chat_template``, and ``video``:
    the arguments of the family's video processor."""
    build_tiny: Callable[[dict[str, Any], dict[str, Any], Mapping[str, int]], Any]
    """A randomly initialised model, from what all families have in common: the text and the vision configuration, which
    it completes, and the token ids."""


def _qwen2_5_video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    return "<|vision_start|>" + "<|video_pad|>" * (tokens * len(patch_times_s)) + "<|vision_end|>"


def _qwen2_5_processor(video: Mapping[str, Any], **parts: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(video_processor=Qwen2VLVideoProcessor(**video, cap_pixels_per_frame=False), **parts)


def _qwen2_5_tiny(text: dict[str, Any], vision: dict[str, Any], token_ids: Mapping[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision |= {"fullatt_block_indexes": [vision["depth"] - 1], "tokens_per_second": 1}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **token_ids, tie_word_embeddings=False)
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    # The timestamped blocks replace the outer vision tokens, as Qwen3-VL was trained and as vLLM prompts it
    # (transformers 5.17's processor keeps the outer pair around them, 4.57's did not).
    block = "<|vision_start|>" + "<|video_pad|>" * tokens + "<|vision_end|>"
    return "".join(f"<{time_s:.1f} seconds>{block}" for time_s in patch_times_s)


def _qwen3_processor(video: Mapping[str, Any], **parts: Any) -> Any:
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(video_processor=Qwen3VLVideoProcessor(**video), **parts)


def _qwen3_tiny(text: dict[str, Any], vision: dict[str, Any], token_ids: Mapping[str, int]) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **token_ids, tie_word_embeddings=False)
    return Qwen3VLForConditionalGeneration(config)


_FAMILIES = {
    # arXiv 2502.13923: one block of vision tokens; the time is in their M-RoPE positions.
    "qwen2_5_vl": ModelFamily(
        processor="Qwen2_5_VLProcessor",
        size_multiple=28,
        time_in_text=False,
        video_text=_qwen2_5_video_text,
        build_processor=_qwen2_5_processor,
        build_tiny=_qwen2_5_tiny,
    ),
    # arXiv 2511.21631: a block of vision tokens per temporal patch, behind its time written as text.
    "qwen3_vl": ModelFamily(
        processor="Qwen3VLProcessor",
        size_multiple=32,
        time_in_text=True,
        video_text=_qwen3_video_text,
        build_processor=_qwen3_processor,
        build_tiny=_qwen3_tiny,
    ),
}
FAMILIES = Registry[ModelFamily]("model family", ModelFamily, _FAMILIES)


def family_of(processor: Any) -> ModelFamily:
    """The family that a processor belongs to; UserError when none has such a processor."""
    name = type(processor).__name__
    for _, family in FAMILIES.items():
        if family.processor == name:
            return family
    raise UserError(f"a model with a {name} is not supported; families: {', '.join(FAMILIES)}")
