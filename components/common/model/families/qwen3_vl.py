"""Qwen3-VL (arXiv 2511.21631): a block of vision tokens per temporal patch, behind its time written as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .family import ModelFamily


def _video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    """The timestamped blocks replace the outer vision tokens, as Qwen3-VL was trained and as vLLM prompts it.

    (transformers 5.17's processor keeps the outer pair around them, 4.57's did not.)
    """
    block = "<|vision_start|>" + "<|video_pad|>" * tokens + "<|vision_end|>"
    return "".join(f"<{time_s:.1f} seconds>{block}" for time_s in patch_times_s)


def _build_processor(video: Mapping[str, Any], **parts: Any) -> Any:
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    return Qwen3VLProcessor(video_processor=Qwen3VLVideoProcessor(**video), **parts)


def _build_tiny(text: dict[str, Any], vision: dict[str, Any], token_ids: Mapping[str, int]) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **token_ids, tie_word_embeddings=False)
    )


QWEN3_VL = ModelFamily(
    processor="Qwen3VLProcessor",
    size_multiple=32,
    time_in_text=True,
    video_text=_video_text,
    build_processor=_build_processor,
    build_tiny=_build_tiny,
)
