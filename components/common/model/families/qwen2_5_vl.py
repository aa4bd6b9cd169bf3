"""Qwen2.5-VL (arXiv 2502.13923): one block of vision tokens; the time is in their M-RoPE positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .family import ModelFamily


def _video_text(tokens: int, patch_times_s: Sequence[float]) -> str:
    return "<|vision_start|>" + "<|video_pad|>" * (tokens * len(patch_times_s)) + "<|vision_end|>"


def _build_processor(video: Mapping[str, Any], **parts: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(video_processor=Qwen2VLVideoProcessor(**video, cap_pixels_per_frame=False), **parts)


def _build_tiny(text: dict[str, Any], vision: dict[str, Any], token_ids: Mapping[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision |= {"fullatt_block_indexes": [vision["depth"] - 1], "tokens_per_second": 1}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **token_ids, tie_word_embeddings=False)
    )


QWEN2_5_VL = ModelFamily(
    processor="Qwen2_5_VLProcessor",
    size_multiple=28,
    time_in_text=False,
    video_text=_video_text,
    build_processor=_build_processor,
    build_tiny=_build_tiny,
)
