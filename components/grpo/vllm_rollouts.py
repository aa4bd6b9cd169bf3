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

import hashlib
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import torch

from ..common.chat import TEXT, ChatEncoder, EncodedPrompt
from ..common.generation import Completion, Sampling

_IMPOSSIBLE = -9000.0
"""No token was sampled with such a log-probability: a server writes -9999 where it has none."""
_FINAL_ONLY = 2
"""vLLM's ``RequestOutputKind``: with its default, only the completion that ended last of ``n`` is returned."""


class RolloutError(RuntimeError):
    """vLLM could not be asked, or answered something that must not be trained on."""


class PromptMismatchError(RolloutError):
    """vLLM completed another prompt than the trainer will compute log-probabilities for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledCompletion(Completion):
    """A completion with the probabilities that it was sampled with."""

    log_probs: list[float]
    """One per token: of the distribution sampled from, that is after temperature, nucleus and suppressed tokens."""


# -- the request ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionItem:
    """Neighbouring vision tokens of a prompt, and what vLLM's model takes to compute them."""

    modality: Literal["video", "image"]
    offset: int
    """Position of the first of the tokens in the prompt."""
    length: int
    """Number of tokens."""
    patches: torch.Tensor
    """(N, D)"""
    grid_thw: torch.Tensor
    """(3,) patches along time, height, width; N = t·h·w."""
    seconds: float | None
    """Seconds that a temporal patch spans; None where positions do not depend on it."""
    key: str
    """What vLLM caches the features under."""

    def fields(self) -> dict[str, torch.Tensor]:
        """The model's keyword arguments: patches first, the others small and used on the CPU."""
        suffix = "_videos" if self.modality == "video" else ""
        fields = {f"pixel_values{suffix}": self.patches, f"{self.modality}_grid_thw": self.grid_thw}
        if self.seconds is not None:
            # vLLM multiplies by it and rounds down; float32 would now and then end one position lower.
            fields["second_per_grid_ts"] = torch.tensor(self.seconds, dtype=torch.float64)
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to complete ``n`` times."""

    token_ids: list[int]
    """The prompt with its placeholders expanded: one per vision token."""
    items: list[VisionItem]
    sampling: dict[str, Any]
    """Arguments of vLLM's ``SamplingParams``."""
    cache_salt: str


def request(
    prompt: EncodedPrompt, encoder: ChatEncoder, sampling: Sampling, n: int, key: int, salt: str, dtype: torch.dtype
) -> Request:
    """What vLLM is asked so that it completes exactly ``prompt``.

    Args:
        key: with ``sampling.seed`` it determines the completions.
        salt: names the weights; nothing cached under another salt is used.
        dtype: of the patches sent: the policy's, whose vision tower rounds them to it in any case, or uint8, as they
            were before normalisation, for a vLLM that normalises.

    Raises:
        BlindInputError: placeholders and pixels do not match.
    """
    encoder.check_sighted(prompt)
    return Request(
        token_ids=prompt.input_ids.tolist(),
        items=_vision_items(prompt, encoder, salt, dtype),
        sampling={
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # vLLM adds the number of the completion to the seed, so seeds of prompts must lie far apart.
            "seed": zlib.crc32(f"{sampling.seed}/{key}".encode()) & 0x7FFFFFFF,
            "max_tokens": sampling.max_new_tokens,
            # End of turn and nothing else ends a completion: generation_config.json may name more tokens.
            "ignore_eos": True,
            "stop_token_ids": [encoder.eos_token_id],
            "logit_bias": dict.fromkeys(encoder.vision_token_ids, -100.0),
            "logprobs": 0,
            "detokenize": False,
        },
        cache_salt=salt,
    )


def _vision_items(prompt: EncodedPrompt, encoder: ChatEncoder, salt: str, dtype: torch.dtype) -> list[VisionItem]:
    vision = (prompt.mm_token_type_ids != TEXT).tolist()
    starts = [i for i, here in enumerate(vision) if here and not (i and vision[i - 1])]
    patches = prompt.pixel_values.to(dtype) if dtype != torch.uint8 else _bytes(prompt, encoder)
    t, h, w = (int(size) for size in prompt.grid_thw)
    if prompt.kind == "video" and not encoder.timestamps:
        runs, modality, seconds = [(t, h, w)], "video", prompt.second_per_grid_s
    else:
        runs, modality, seconds = [(1, h, w)] * t, "image", None
    items, first = [], 0
    for start, grid in zip(starts, runs, strict=True):
        count = grid[0] * grid[1] * grid[2]
        part = patches[first : first + count].contiguous()
        digest = hashlib.sha256(f"{modality}/{grid}/{seconds}/{dtype}/".encode())
        digest.update(part.view(torch.uint8).numpy().data)
        items.append(
            VisionItem(
                modality=modality,  # type: ignore[arg-type]
                offset=start,
                length=count // encoder.merge**2,
                patches=part,
                grid_thw=torch.tensor(grid),
                seconds=seconds,
                key=f"{salt}-{digest.hexdigest()}",
            )
        )
        first += count
    return items


def _bytes(prompt: EncodedPrompt, encoder: ChatEncoder) -> torch.Tensor:
    """(N, D) uint8: the patches before normalisation, which rounding recovers exactly."""
    if encoder.normalisation["video"] != encoder.normalisation["image"]:
        raise RolloutError(
            "vLLM normalises videos like images, but this model's processors differ; "
            "start vLLM with mm_device_do_normalize off"
        )
    mean, std = (torch.tensor(values).view(1, -1, 1) * 255 for values in encoder.normalisation[prompt.kind])
    channels = prompt.pixel_values.view(len(prompt.pixel_values), mean.shape[1], -1)
    return (channels * std + mean).round().clamp(0, 255).to(torch.uint8).view_as(prompt.pixel_values)


def _vllm_item(item: VisionItem) -> Any:
    """``item`` as vLLM's ``MultiModalKwargsItem``: patches are concatenated in a batch, the other fields stacked."""
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
    )

    flat = MultiModalFlatField(slices=[slice(0, len(item.patches))])
    stacked = MultiModalBatchedField(keep_on_cpu=True)
    return MultiModalKwargsItem(
        {
            name: MultiModalFieldElem(data=tensor, field=flat if name.startswith("pixel_values") else stacked)
            for name, tensor in item.fields().items()
        }
    )


def engine_request(asked: Request) -> tuple[Any, Any]:
    """``asked`` as ``vllm.inputs.MultiModalInput`` and ``vllm.SamplingParams``, for the engine in this process."""
    from vllm import SamplingParams
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
    from vllm.sampling_params import RequestOutputKind

    modality = asked.items[0].modality
    prompt = mm_input(
        asked.token_ids,
        MultiModalKwargsItems({modality: [_vllm_item(item) for item in asked.items]}),
        {modality: [item.key for item in asked.items]},
        {modality: [PlaceholderRange(offset=item.offset, length=item.length) for item in asked.items]},
        cache_salt=asked.cache_salt,
    )
    return prompt, SamplingParams(**asked.sampling, output_kind=RequestOutputKind(_FINAL_ONLY))


def server_payload(asked: Request) -> dict[str, Any]:
    """``asked`` as the JSON body of ``POST /inference/v1/generate``."""
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

    modality = asked.items[0].modality
    return {
        "token_ids": asked.token_ids,
        "features": {
            "mm_hashes": {modality: [item.key for item in asked.items]},
            "mm_placeholders": {modality: [{"offset": i.offset, "length": i.length} for i in asked.items]},
            "kwargs_data": {modality: [encode_mm_kwargs_item(_vllm_item(item)) for item in asked.items]},
        },
        "sampling_params": asked.sampling | {"output_kind": _FINAL_ONLY},
        "cache_salt": asked.cache_salt,
        "return_token_ids": True,
        "stream": False,
    }


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One completion as vLLM returned it, unchecked."""

    index: int
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What vLLM returned for one request, unchecked."""

    prompt_token_ids: list[int]
    choices: list[Choice]


def engine_answer(output: Any) -> Answer:
    """A ``vllm.RequestOutput`` as an answer."""
    choices = [
        Choice(
            index=choice.index,
            token_ids=list(choice.token_ids),
            log_probs=[
                entry[token].logprob for token, entry in zip(choice.token_ids, choice.logprobs or [], strict=True)
            ],
            finish_reason=choice.finish_reason,
        )
        for choice in output.outputs
    ]
    return Answer(prompt_token_ids=list(output.prompt_token_ids), choices=choices)


def server_answer(body: Mapping[str, Any]) -> Answer:
    """The JSON that ``/inference/v1/generate`` returned as an answer.

    Raises:
        KeyError, TypeError, ValueError: it has another form.
    """
    choices = []
    for choice in body["choices"]:
        entries = (choice["logprobs"] or {"content": []})["content"] or []
        named = [int(str(entry["token"]).removeprefix("token_id:")) for entry in entries]
        token_ids = [int(token) for token in choice["token_ids"] or []]
        if named != token_ids:
            raise ValueError("log-probabilities of other tokens than those of the completion")
        choices.append(
            Choice(
                index=int(choice["index"]),
                token_ids=token_ids,
                log_probs=[float(entry["logprob"]) for entry in entries],
                finish_reason=choice["finish_reason"],
            )
        )
    return Answer(prompt_token_ids=[int(token) for token in body["prompt_token_ids"]], choices=choices)


def checked(asked: Request, answer: Answer, encoder: ChatEncoder) -> list[SampledCompletion]:
    """The completions of an answer that fits its request, in the order of their numbers.

    Raises:
        PromptMismatchError: vLLM completed other token ids than it was asked to.
        RolloutError: completions are missing, unfinished, too long, hold vision tokens, or lack log-probabilities.
    """
    theirs, ours = answer.prompt_token_ids, asked.token_ids
    if theirs != ours:
        position = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        where = "where one of them ends" if position is None else f"from position {position} on"
        raise PromptMismatchError(
            f"vLLM completed a prompt of {len(theirs)} tokens, the trainer's has {len(ours)}, and they differ {where}"
        )
    n, longest = asked.sampling["n"], asked.sampling["max_tokens"]
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(n)):
        raise RolloutError(f"vLLM was asked for {n} completions and returned {[choice.index for choice in choices]}")
    completions = []
    for choice in choices:
        ids, name = choice.token_ids, f"completion {choice.index} of {n}"
        if choice.finish_reason not in ("stop", "length"):
            raise RolloutError(f"{name} was not finished: {choice.finish_reason}")
        if len(ids) > longest:
            raise RolloutError(f"{name} has {len(ids)} tokens; {longest} were allowed")
        if forbidden := sorted(set(ids) & set(encoder.vision_token_ids)):
            raise RolloutError(f"{name} holds vision tokens ({forbidden}), which only a prompt may")
        if len(choice.log_probs) != len(ids) or not all(_IMPOSSIBLE < value < 1e-3 for value in choice.log_probs):
            raise RolloutError(f"{name} has {len(ids)} tokens, but not a log-probability for each")
        completions.append(
            SampledCompletion(
                token_ids=ids,
                text=encoder.decode(ids),
                finish_reason="stop" if choice.finish_reason == "stop" else "length",
                log_probs=choice.log_probs,
            )
        )
    return completions


# -- the engine -------------------------------------------------------------------------------------------------------


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


# -- the correction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceWeights:
    """What token losses are multiplied by because the sampler is not quite the policy, and how far apart they are."""

    weights: torch.Tensor
    """Like the log-probabilities; 1 where the mask is 0. Without gradient."""
    truncated: float
    """Share of tokens whose ratio was above the cap."""
    mean_gap: float
    """Mean |log π_trainer − log π_sampler| over tokens; large when vLLM saw other pixels, positions or weights."""
    max_gap: float
    """Largest gap of a token."""


def importance_weights(
    trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, cap: float = 2.0
) -> ImportanceWeights:
    """Truncated importance sampling per token, min(π_trainer / π_sampler, C): TRL's ``token_truncate``.

    Rollouts come from vLLM's kernels and types, gradients from the trainer's; the same weights give other
    probabilities there. The ratio corrects for it, the cap keeps its variance finite. With a nucleus below 1 the
    sampler's probabilities are those within the nucleus, so ratios lie a little below 1 and the gap is never 0.

    Args:
        trainer: log-probabilities of the sampled tokens under the weights they were sampled with, at the same
            temperature.
        sampler: `SampledCompletion.log_probs`, in the same shape.
        mask: 1 for tokens of completions, 0 for padding.
        cap: C.

    Raises:
        ValueError: shapes differ, or the cap is below 1.
        RolloutError: a log-probability is not finite.
    """
    if trainer.shape != sampler.shape or trainer.shape != mask.shape:
        raise ValueError(f"shapes differ: {tuple(trainer.shape)}, {tuple(sampler.shape)}, {tuple(mask.shape)}")
    if not cap >= 1:
        raise ValueError(f"the cap must be at least 1, not {cap:g}: it would scale down tokens without a mismatch")
    counted = mask.bool()
    gap = torch.where(counted, trainer.detach().float() - sampler.float(), 0.0)
    if not bool(gap.isfinite().all()):
        row = int((~gap.isfinite()).nonzero()[0, 0])
        raise RolloutError(f"row {row}: a log-probability of the trainer or the sampler is not finite")
    ratio = gap.exp()
    total = max(int(counted.sum()), 1)
    return ImportanceWeights(
        weights=ratio.clamp(max=cap),
        truncated=int((ratio > cap).sum()) / total,
        mean_gap=float(gap.abs().sum()) / total,
        max_gap=float(gap.abs().max()) if gap.numel() else 0.0,
    )
