"""What is tested, and what it is held to: our own engine and the trainer's log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.generation import Completion, Sampling
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.grpo.vllm.answer import SampledCompletion
from vthink.components.grpo.vllm.engine import VLLMEngine

VIDEOS = {
    "qwen2_5_vl": VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56),
    "qwen3_vl": VideoConfig(num_frames=8, min_pixels=64 * 64, max_pixels=64 * 64, size_multiple=32),
}
LENGTH = 1024
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)


@dataclass(frozen=True)
class Item:
    """A question about a file."""

    path: Path
    clip: Clip
    prompt: EncodedPrompt

    @classmethod
    def read(cls, path: Path, video: VideoConfig, encoder: ChatEncoder) -> Item:
        clip = read_clip(path, video, "video" if path.suffix == ".mp4" else "image")
        return cls(path, clip, encoder.encode(QUESTION, OPTIONS, "multiple_choice", clip))


QUESTION, OPTIONS = "Which way does the square move?", ("left", "right")


@dataclass(frozen=True)
class Subject:
    """A vLLM of one kind with the policy that it samples from."""

    part: str
    mode: str
    model: Any
    encoder: ChatEncoder
    engine: VLLMEngine
    urls: list[str]

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        counts: Sequence[int] | None = None,
        sampling: Sampling = SAMPLED,
        step: int = 0,
    ) -> list[list[SampledCompletion]]:
        """Completions with the weights of ``step``."""
        counts = counts or [1] * len(prompts)
        with self.engine.policy(step):
            return self.engine.generate(prompts, sampling, counts, list(range(len(prompts))))

    def gap(self, prompt: EncodedPrompt, completion: SampledCompletion) -> float:
        """Largest difference of a token's log-probability to the trainer's on ``prompt``."""
        difference = self.log_probs(prompt, completion) - torch.tensor(completion.log_probs)
        return float(difference.abs().max())

    @torch.no_grad()
    def log_probs(self, prompt: EncodedPrompt, completion: Completion) -> torch.Tensor:
        """(C,) the trainer's."""
        batch = self.encoder.collate([prompt], [completion.token_ids])
        logits = self.model(**batch).logits[0, len(prompt) - 1 : -1].float()
        return torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the policy's weights."""
        for parameter in self.model.parameters():
            parameter.mul_(factor)
