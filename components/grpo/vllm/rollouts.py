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

A server for this: ``VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs
--weight-transfer-config '{"backend": "nccl"}'``.

Run with vLLM 0.31 on a CPU and tiny models of both families (`TestWithVLLM`): the engine's log-probabilities are the
trainer's within 1e-4, and vLLM's own types read the body for a server back unchanged. Not run here: a server, NCCL
weight transfer, sleep mode, a GPU, models of real size.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import torch

from ...common.model.chat import ChatEncoder
from ...common.model.generation import Sampling
from ...common.model.prompt import EncodedPrompt
from .answer import Answer, SampledCompletion, checked, engine_answer, server_answer
from .request import Request, RolloutError, engine_request, request, server_payload


class VLLMRollouts:
    """Completes prompts as `generation.sample` does, in vLLM."""

    def __init__(self, engine: Any, encoder: ChatEncoder, timeout_s: float = 1800.0, concurrency: int = 32) -> None:
        """Rollouts over an engine that TRL started.

        Args:
            engine: TRL's ``VLLMGeneration`` (a `GRPOTrainer` with ``use_vllm`` has it as ``vllm_generation``).
            encoder: of the policy.
            timeout_s: longest wait for a server to complete one prompt.
            concurrency: prompts that this process sends to a server at a time.

        Raises:
            RolloutError: a setting under which rollouts would be wrong.
        """
        self.engine, self.encoder = engine, encoder
        self._step: int | None = None
        self._salt = uuid.uuid4().hex
        self._http: httpx.Client | None = None
        self._concurrency = concurrency
        if engine.mode == "colocate":
            if engine.tensor_parallel_size != 1:
                raise RolloutError(
                    f"vllm_tensor_parallel_size is {engine.tensor_parallel_size}, but in colocate mode each process "
                    "has prompts of its own; set it to 1, or use server mode"
                )
            model = engine.llm.llm_engine.vllm_config.model_config
            self._normalises = bool(model.multimodal_config.mm_device_do_normalize)
            mode = model.logprobs_mode
        else:
            limits = httpx.Limits(max_connections=concurrency)
            self._http = httpx.Client(
                base_url=engine.server_base_url or f"http://{engine.server_host}:{engine.server_port}",
                timeout=httpx.Timeout(timeout_s, connect=30.0, pool=None),
                transport=httpx.HTTPTransport(retries=3, limits=limits),
            )
            settings = _server_settings(self._http)
            self._normalises, mode = settings
        if mode != "processed_logprobs":
            raise RolloutError(
                f"vLLM returns {mode}, which are not of the distribution it samples from; "
                "start it with --logprobs-mode processed_logprobs"
            )

    @contextmanager
    def policy(self, step: int) -> Iterator[None]:
        """vLLM with the policy's present weights, for as long as the block lasts. All processes must take part.

        The weights are moved when ``step`` is another than last time, or when vLLM slept in between and lost them.
        """
        engine = self.engine
        sleeps = engine.mode == "colocate" and engine.enable_sleep_mode
        if step != self._step:
            self._step = None
            engine.sync_weights()
            self._salt = uuid.uuid4().hex
            if engine.mode == "server":  # only the main process sends them: the others must not ask too early
                engine.accelerator.wait_for_everyone()
            self._step = step
        if sleeps:
            engine.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            if sleeps:
                engine.llm.sleep(level=2)
                self._step = None

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
            RolloutError: see `checked`; or called outside `policy`; or the server cannot be used.
        """
        if self._step is None:
            raise RolloutError("vLLM has no weights of the policy yet: generate within `with rollouts.policy(step):`")
        keys = list(keys) if keys is not None else list(range(len(prompts)))
        dtype = torch.uint8 if self._normalises else next(self.engine.model.parameters()).dtype
        asked = [
            request(prompt, self.encoder, sampling, n, key, self._salt, dtype)
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        answers = self._ask_engine(asked) if self._http is None else self._ask_server(self._http, asked)
        return [checked(one, answer, self.encoder) for one, answer in zip(asked, answers, strict=True)]

    def _ask_engine(self, asked: Sequence[Request]) -> list[Answer]:
        engine = self.engine.llm.llm_engine
        names = [f"{uuid.uuid4().hex}-{index}" for index in range(len(asked))]
        try:
            for name, one in zip(names, asked, strict=True):
                engine.add_request(name, *engine_request(one))
        except Exception as error:  # longer than the model's context or the cache of vision features, as a rule
            engine.abort_request(names)
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise RolloutError(f"vLLM refused a prompt of {len(one.token_ids)} tokens: {what}") from error
        answers: dict[str, Answer] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = engine_answer(output)
        if missing := [name for name in names if name not in answers]:
            raise RolloutError(f"vLLM finished without answering {len(missing)} of {len(names)} prompts")
        return [answers[name] for name in names]

    def _ask_server(self, http: httpx.Client, asked: Sequence[Request]) -> list[Answer]:
        def ask(one: Request) -> Answer:
            body = _fetch(http, "POST", _GENERATE, json=server_payload(one))
            try:
                return server_answer(body)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise RolloutError(f"{http.base_url}: {_GENERATE} answered in another form: {error!r}") from error

        with ThreadPoolExecutor(min(self._concurrency, len(asked)) or 1, "vllm") as pool:
            return list(pool.map(ask, asked))


_GENERATE = "/inference/v1/generate"


def _fetch(http: httpx.Client, method: str, path: str, **arguments: Any) -> Any:
    """The JSON at ``path`` of a vLLM server.

    Raises:
        RolloutError: it cannot be reached, refuses, or does not answer with JSON.
    """
    where = f"{str(http.base_url).rstrip('/')}{path}"
    try:
        response = http.request(method, path, **arguments)
    except httpx.HTTPError as error:
        raise RolloutError(f"{where}: {type(error).__name__}: {error}; is the vLLM server up?") from error
    if response.status_code == 404:
        needed = "--enable-scale-out" if path == _GENERATE else "VLLM_SERVER_DEV_MODE=1 in its environment"
        raise RolloutError(f"{where}: not found; start the vLLM server with {needed}")
    if response.status_code != 200:
        raise RolloutError(f"{where}: status {response.status_code}: {' '.join(response.text.split())[:300]}")
    try:
        return response.json()
    except ValueError as error:
        raise RolloutError(f"{where}: the answer is not JSON: {error}") from error


def _server_settings(http: httpx.Client) -> tuple[bool, str]:
    """Whether the server's model normalises pixels itself, and of which distribution it returns log-probabilities."""
    body = _fetch(http, "GET", "/server_info", params={"config_format": "json"})
    try:
        model = body["vllm_config"]["model_config"]
        return bool(model["multimodal_config"]["mm_device_do_normalize"]), str(model["logprobs_mode"])
    except (KeyError, TypeError) as error:
        raise RolloutError(f"{http.base_url}: /server_info has another form: {error!r}") from error
