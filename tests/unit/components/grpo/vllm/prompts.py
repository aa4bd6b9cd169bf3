"""Tiny models, clips and prompts for the tests of vLLM rollouts."""

from typing import Any

import numpy as np
import torch
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.request import Request, make_request

FAMILIES = {"qwen2_5_vl": 28, "qwen3_vl": 32}
SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
ORDER = [3, 1, 7, 0, 2, 6, 5, 4]


def build(family: str) -> tuple[Any, Any, ChatEncoder]:
    """Model, processor and encoder; heads of 32, the smallest that vLLM's CPU kernels take."""
    video = VideoConfig(size_multiple=FAMILIES[family])
    tiny = TinyModelConfig(family=family, hidden_size=128, num_heads=4, initializer_range=0.08)  # type: ignore[arg-type]
    model, processor = build_tiny(tiny, video, 0)
    return model.eval(), processor, ChatEncoder(processor, "compact/1", video, tokens_per_second(model))


def clip_of(encoder: ChatEncoder, kind: str = "video", seed: int = 0) -> Clip:
    side, frames = encoder.video.size_multiple * 2, 8 if kind == "video" else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, side, side + side // 2, 3), dtype=np.uint8)
    # 0.7 s per temporal patch: neither float32 nor bfloat16 hold it exactly
    return Clip(pixels, np.arange(frames) * 0.35, frames * 0.35 if kind == "video" else 0.0, kind)  # type: ignore[arg-type]


def prompt_of(encoder: ChatEncoder, clip: Clip) -> EncodedPrompt:
    return encoder.encode("Which way does the square move?", ["left", "right"], "multiple_choice", clip)


def ask(encoder: ChatEncoder, prompt: EncodedPrompt, key: int = 1, **changes: Any) -> Request:
    arguments = {"n": 3, "dtype": torch.float32} | changes
    return make_request(prompt, encoder, SAMPLING, key=key, **arguments)


def run(vllm: Any, encoder: ChatEncoder, prompts: list[EncodedPrompt], n: int = 2) -> list:
    rollouts = VLLMEngine(vllm, encoder, torch.float32)
    with rollouts.policy(0):
        return rollouts.generate(prompts, SAMPLING, [n] * len(prompts), keys=list(range(len(prompts))))
