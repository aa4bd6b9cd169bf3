"""Rollouts in vLLM, for the cluster: inside the training process (colocate) or on servers of its own (server).

TRL's `VLLMGeneration` starts vLLM and moves the weights into it (ZeRO-3, FSDP, LoRA; NCCL to a server); its
``generate`` knows images only. What is here instead sends what the trainer itself computes with: the prompt's token
ids, placeholders expanded, and its patches, already resized, normalised and laid out. So vLLM neither samples frames,
resizes, tokenises nor counts placeholders, and cannot come to another prompt than the trainer's.

Facts from the source of vLLM 0.31:

- ``LLMEngine.add_request`` takes such a prompt as ``vllm.inputs.mm_input``; a server takes it at
  ``/inference/v1/generate`` as ``features`` (``entrypoints/scale_out/token_in_token_out``).
- A raw video would go through vLLM's processor, which rounds every floating tensor to the model's type
  (``multimodal/processing/context.py``), and Qwen2.5-VL's seconds per patch with it: 0.7 s becomes 0.69922 s.
- Qwen2.5-VL in vLLM normalises pixels itself (``mm_device_do_normalize``, on by default) and expects bytes; patches
  that are normalised already would be normalised twice without a word. Qwen3-VL does not.
- M-RoPE positions are vLLM's own, from grids and seconds per patch; they equal `ChatEncoder`'s.
- Qwen3-VL writes times between the patches of a video. A server cannot be told which part of a placeholder is text
  (``PlaceholderRangeInfo`` has a TODO), so each temporal patch goes as an image: the vision tower attends within a
  temporal patch only, and an image's position is where its tokens are.
- Vision features are cached by ``mm_hash`` and the prefix by token ids, ``mm_hash`` and ``cache_salt``; neither cache
  is emptied by a change of weights on its own. Here both keys hold the pixels' hash and a salt that changes with
  the weights: a shuffled clip is never served the ordered one's features, nor a new policy the old one's.

Run with vLLM 0.31 on a CPU and tiny models of both families (`TestWithVLLM`): the engine's log-probabilities are the
trainer's within 1e-4, and vLLM's own types read the body for a server back unchanged. Not run here: a server, NCCL
weight transfer, sleep mode, a GPU, models of real size.
"""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from ...common.errors import UserError
from ...common.model.chat import ChatEncoder
from ...common.model.generation import Sampling
from ...common.model.prompt import EncodedPrompt
from .answer import Answer, SampledCompletion, check_answer, engine_answer
from .request import Request, engine_request, make_request
from .server import VLLMServer


class VLLMEngine:
    """A `RolloutEngine` that samples in vLLM."""

    is_policy = False

    def __init__(self, generation: Any, encoder: ChatEncoder, timeout_s: float = 1800.0, concurrency: int = 32) -> None:
        """Rollouts in a vLLM that TRL started.

        Args:
            generation: TRL's ``VLLMGeneration`` (a `GRPOTrainer` with ``use_vllm`` has it as ``vllm_generation``).
            encoder: of the policy.
            timeout_s: longest wait for a server to complete one prompt.
            concurrency: prompts that this process sends to a server at a time.

        Raises:
            UserError: a setting under which rollouts would be wrong."""
        self.generation, self.encoder = generation, encoder
        self._weights_of_step: int | None = None
        self._salt = uuid.uuid4().hex
        self._server: VLLMServer | None = None
        self._concurrency = concurrency
        if generation.mode == "colocate":
            if generation.tensor_parallel_size != 1:
                raise UserError(
                    f"vllm_tensor_parallel_size is {generation.tensor_parallel_size}, but in colocate mode each "
                    "process has prompts of its own; set it to 1, or use server mode"
                )
            model = generation.llm.llm_engine.vllm_config.model_config
            self._normalises = bool(model.multimodal_config.mm_device_do_normalize)
            log_probs_mode = model.logprobs_mode
        else:
            url = generation.server_base_url or f"http://{generation.server_host}:{generation.server_port}"
            self._server = VLLMServer(url, timeout_s, concurrency)
            self._normalises, log_probs_mode = self._server.settings()
        if log_probs_mode != "processed_logprobs":
            raise UserError(
                f"vLLM returns {log_probs_mode}, which are not of the distribution it samples from; "
                "start it with --logprobs-mode processed_logprobs"
            )

    @contextmanager
    def policy(self, step: int) -> Iterator[None]:
        """vLLM with the policy's present weights, for as long as the block lasts. All processes must take part. The
        weights are moved when ``step`` is another than last time, or when vLLM slept in between and lost them."""
        generation = self.generation
        sleeps = generation.mode == "colocate" and generation.enable_sleep_mode
        if step != self._weights_of_step:
            self._weights_of_step = None
            generation.sync_weights()
            self._salt = uuid.uuid4().hex
            if generation.mode == "server":  # only the main process sends them: the others must not ask too early
                generation.accelerator.wait_for_everyone()
            self._weights_of_step = step
        if sleeps:
            generation.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            if sleeps:
                generation.llm.sleep(level=2)
                self._weights_of_step = None

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, n: int = 1, keys: Sequence[int] | None = None
    ) -> list[list[SampledCompletion]]:
        """Sample ``n`` completions for each prompt, on the prompt's own pixels.

        Args:
            prompts: for T-GRPO's shuffled rollouts those made by `ChatEncoder.with_clip`.
            keys: a number per prompt that, with ``sampling.seed``, determines its completions; default: its index.

        Returns:
            For each prompt, in the order given, its ``n`` completions.

        Raises:
            UserError: see `check_answer`; or called outside `policy`; or the server cannot be used."""
        if self._weights_of_step is None:
            raise UserError("vLLM has no weights of the policy yet: generate within `with engine.policy(step):`")
        dtype = torch.uint8 if self._normalises else next(self.generation.model.parameters()).dtype
        requests = [
            make_request(prompt, self.encoder, sampling, n, key, self._salt, dtype)
            for prompt, key in zip(prompts, keys if keys is not None else range(len(prompts)), strict=True)
        ]
        answers = self._from_engine(requests) if self._server is None else self._from_server(self._server, requests)
        return [check_answer(*pair, self.encoder) for pair in zip(requests, answers, strict=True)]

    def _from_engine(self, requests: Sequence[Request]) -> list[Answer]:
        engine = self.generation.llm.llm_engine
        names = [f"{uuid.uuid4().hex}-{index}" for index in range(len(requests))]
        try:
            for name, request in zip(names, requests, strict=True):
                engine.add_request(name, *engine_request(request))
        except Exception as error:  # longer than the model's context or the cache of vision features, as a rule
            engine.abort_request(names)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(f"vLLM refused a prompt of {len(request.token_ids)} tokens: {reason}") from error
        answers: dict[str, Answer] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = engine_answer(output)
        if missing := [name for name in names if name not in answers]:
            raise UserError(f"vLLM finished without answering {len(missing)} of {len(names)} prompts")
        return [answers[name] for name in names]

    def _from_server(self, server: VLLMServer, requests: Sequence[Request]) -> list[Answer]:
        with ThreadPoolExecutor(min(self._concurrency, len(requests)) or 1, "vllm") as pool:
            return list(pool.map(server.generate, requests))
