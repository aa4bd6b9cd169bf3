"""Rollouts by our own engine and by vLLM, in this process, on the CPU: same model, same prompts, in turns.

``make bench-vllm`` runs this in the environment of `make vllm`. A round is what a step pays: vLLM gets the weights and
forgets its caches, as it must when they have changed. Models have random weights: speed does not depend on them.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from bench_grpo import GRIDS
from recording import OUTPUT, Measurement, interleave, record
from vthink.components.common.compat.torchvision import declare_torchvision_operators

declare_torchvision_operators()  # before transformers is imported
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.load import PatchEmbedding, tokens_per_second
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.vllm.colocated import ColocatedVLLM
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.weights import PolicyWeights

LONGEST = 4096
COMPLETION = 64
QUESTIONS = 32


class Work:
    """A model and both ways to sample from it."""

    def __init__(self, hidden: int, layers: int, threads: int) -> None:
        torch.set_num_threads(threads)
        video = VideoConfig()
        tiny = TinyModelConfig(hidden_size=hidden, num_heads=hidden // 32, num_layers=layers)
        self.model, processor = build_tiny(tiny, video, 0)
        folder = tempfile.mkdtemp()
        self.model.save_pretrained(folder)
        processor.save_pretrained(folder)
        self.model.name_or_path = folder
        self.model.eval().model.visual.patch_embed.proj.__class__ = PatchEmbedding
        self.encoder = ChatEncoder(processor, "compact/1", video, tokens_per_second(self.model))
        length = LONGEST + 1024 + COMPLETION
        vllm = ColocatedVLLM(
            PolicyWeights(self.model, Accelerator(cpu=True)),
            False,
            dtype="float32",
            max_model_len=length,
            max_num_batched_tokens=length,
            max_num_seqs=QUESTIONS,
            logprobs_mode="raw_logprobs",
        )
        self.engine, self._step = VLLMEngine(vllm, self.encoder, torch.float32), 0
        # Every completion has the full length: speed must not depend on when a random model stops.
        self.encoder.eos_token_id = len(processor.tokenizer) + 1

    def prompts(self, length: int) -> tuple[EncodedPrompt, EncodedPrompt]:
        """A prompt of so many tokens, and the same on shuffled frames."""
        t, h, w = GRIDS[length]
        generator = np.random.default_rng(0)
        frames = generator.integers(0, 256, (2 * t, h * 28, w * 28, 3), dtype=np.uint8)
        clip = Clip(frames, np.arange(2 * t) / 2, float(t), "video")
        missing = length - len(self.encoder.encode("Which?", ["a", "b"], "multiple_choice", clip))
        prompt = self.encoder.encode("Which?" + " left" * max(missing, 0), ["a", "b"], "multiple_choice", clip)
        return prompt, self.encoder.with_clip(prompt, clip.permuted(generator.permutation(2 * t).tolist()))

    def questions(self, length: int) -> list[EncodedPrompt]:
        """Several questions about one video."""
        t, h, w = GRIDS[length]
        frames = np.random.default_rng(0).integers(0, 256, (2 * t, h * 28, w * 28, 3), dtype=np.uint8)
        clip = Clip(frames, np.arange(2 * t) / 2, float(t), "video")
        asked = [(f"Which? {number}", ["a", "b"], "multiple_choice") for number in range(QUESTIONS)]
        return self.encoder.encode_many(asked, clip)

    def own(self, prompts: Sequence[EncodedPrompt], counts: Sequence[int], sampling: Sampling) -> None:
        """Our engine: prompts of which equally many completions are wanted together."""
        for n in sorted(set(counts)):
            chosen = [prompt for prompt, count in zip(prompts, counts, strict=True) if count == n]
            sample(self.model, self.encoder, chosen, sampling, n)

    def vllm(self, prompts: Sequence[EncodedPrompt], counts: Sequence[int], sampling: Sampling) -> None:
        """vLLM, with the weights of a new step."""
        self._step += 1
        with self.engine.policy(self._step):
            self.engine.generate(prompts, sampling, counts, range(len(prompts)))


def measure(
    work: Work, name: str, prompts: Sequence[EncodedPrompt], counts: Sequence[int], **about: Any
) -> Measurement:
    """Seconds of both ways; the plain one is vLLM."""
    sampling = Sampling(max_new_tokens=COMPLETION, temperature=1.0)
    rounds = about["rounds"]
    theirs, ours = interleave(
        lambda: work.vllm(prompts, counts, sampling), lambda: work.own(prompts, counts, sampling), rounds
    )
    setting = about | {"C": COMPLETION, "dtype": "float32", "device": "cpu", "torch": torch.__version__}
    return Measurement(
        name=f"vllm/{name}",
        plain_seconds=theirs,
        own_seconds=ours,
        setting=setting,
        extra={"vllm_faster": ours / theirs},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    work = Work(options.hidden, options.layers, options.threads)
    common = {name: getattr(options, name) for name in ("rounds", "threads", "hidden", "layers")}
    for length in (256, 1024, LONGEST):
        record(
            [measure(work, f"t_grpo_rollouts/P{length}-8+4", work.prompts(length), [8, 4], P=length, **common)],
            options.output,
        )
    record(
        [measure(work, f"questions_on_one_video/{QUESTIONS}", work.questions(1024), [1] * QUESTIONS, P=1024, **common)],
        options.output,
    )


if __name__ == "__main__":
    main()
