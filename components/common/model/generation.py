"""The generation engine: rollouts, validation, evaluation and the local server all decode here.

Each clip (vision tower included) is read once however many questions are asked about it, each prompt is prefilled
once, its cache is branched ``n`` times, and rows leave the batch when they finish. Sampling draws one uniform number
per (seed, row, step) and inverts the distribution, so that a completion depends on its own seed alone, not on which
other prompts share its batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import UserError
from .chat import ChatEncoder
from .load import LoadedModel
from .prompt import EncodedPrompt

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to pick the next token."""

    max_new_tokens: int = 256  # longest completion, the end-of-turn token included
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # nucleus: the smallest set of tokens with at least this probability
    seed: int = 0  # seed of the run's sampling

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be at least 1")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be ≥ 0 and top_p in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One completion."""

    token_ids: list[int]  # sampled tokens; the last is the end-of-turn token when ``finish_reason`` is ``stop``
    text: str  # decoded, without special tokens
    finish_reason: Literal["stop", "length"]


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients or checkpointing for a while; restores the mode of before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def uniforms(seed: int, key: int, n: int, length: int) -> torch.Tensor:
    """(n, length) uniform numbers that depend on (seed, key) alone; row i does not depend on n."""
    seeds = [zlib.crc32(f"{seed}/{key}/{index}".encode()) for index in range(n)]
    generators = [torch.Generator().manual_seed(row_seed) for row_seed in seeds]
    return torch.stack([torch.rand(length, generator=generator, dtype=torch.float64) for generator in generators])


def pick_tokens(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> torch.Tensor:
    """Next tokens (R,) from logits (R, V) and one uniform number per row (R,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= sampling.top_p
        probabilities = probabilities.masked_fill(outside.scatter(-1, order, outside), 0)
    # The distribution is inverted in the order of the vocabulary. By rank, two tokens of nearly the same probability
    # would change places with the last bit of a logit, and the draw with them.
    cumulative = probabilities.cumsum(-1)
    target = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def _clip_owners(prompts: Sequence[EncodedPrompt]) -> list[int]:
    """For each prompt the first one that starts with the same text and the same clip (often the prompt itself)."""
    if prompts[0].kind == "text":
        return list(range(len(prompts)))
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    starts = [(id(prompt.pixel_values), tuple(prompt.input_ids[: prompt.vision_end].tolist())) for prompt in prompts]
    return [first.setdefault(start, index) for index, start in enumerate(starts)]


def _prefill(
    model: Any, encoder: ChatEncoder, prompts: Sequence[EncodedPrompt], cache: DynamicCache, blind: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill ``cache`` with the prompts (a row each), reading what several questions on one clip share only once.

    Returns the last logits (B, V), the next position (B,), and the mask of the cache's columns (B, L): prompts of
    different lengths are padded on the left."""
    device = next(model.parameters()).device
    owners = _clip_owners(prompts)
    leaders = sorted(set(owners))
    shared = len(leaders) < len(prompts)
    heads = [_first_tokens(prompts[i], prompts[i].vision_end) if shared else prompts[i] for i in leaders]
    batch = {name: tensor.to(device) for name, tensor in encoder.collate(heads, blind=blind).items()}
    mask = batch.pop("attention_mask")
    next_position = torch.tensor([prompt.next_position for prompt in prompts], device=device)
    logits = _forward(model, cache, mask if bool((mask == 0).any()) else None, **batch)
    if not shared:
        return logits, next_position, mask
    rows = torch.tensor([leaders.index(owner) for owner in owners], device=device)
    cache.batch_select_indices(rows)
    tails = [len(prompt) - prompt.vision_end for prompt in prompts]
    ids = torch.full((len(prompts), max(tails)), encoder.pad_token_id)
    tail_mask, positions = torch.zeros_like(ids), torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, (prompt, length) in enumerate(zip(prompts, tails, strict=True)):
        ids[row, -length:] = prompt.input_ids[-length:]
        tail_mask[row, -length:] = 1
        positions[:, row, -length:] = prompt.position_ids[:, -length:]
    mask = torch.cat([mask[rows], tail_mask.to(device)], 1)
    tail = {"input_ids": ids.to(device), "position_ids": positions.to(device)}
    return _forward(model, cache, mask if bool((mask == 0).any()) else None, **tail), next_position, mask


def _forward(model: Any, cache: DynamicCache, mask: torch.Tensor | None, **inputs: torch.Tensor) -> torch.Tensor:
    """The last logits (R, V) of ``inputs`` behind what is in the cache; ``mask`` is of both, None where nothing is
    padded. Positions are the encoder's: the model's are module state, and differ from what it was trained with."""
    outputs = model(**inputs, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return outputs.logits[:, -1]


def _first_tokens(prompt: EncodedPrompt, length: int) -> EncodedPrompt:
    ids, types, positions = prompt.input_ids, prompt.mm_token_type_ids, prompt.position_ids
    positions = positions[:, :length]
    return replace(prompt, input_ids=ids[:length], mm_token_type_ids=types[:length], position_ids=positions)


def _decode(
    model: Any,
    encoder: ChatEncoder,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    n: int,
    keys: Sequence[int],
    blind: bool = False,
) -> Iterator[list[tuple[int, int]]]:
    """Prefill ``prompts`` once, branch each ``n`` times, and yield after each step the (row, token) pairs sampled; row
    ``i * n + j`` is completion j of prompt i."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    logits, next_position, mask = _prefill(model, encoder, prompts, cache, blind)
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model's logits are not finite numbers; are its weights, or the frames, damaged?")
    padded = bool((mask == 0).any())
    if n > 1:
        cache.batch_repeat_interleave(n)
        logits, next_position = logits.repeat_interleave(n, 0), next_position.repeat_interleave(n)
        mask = mask.repeat_interleave(n, 0)
    device = logits.device
    noise = torch.cat([uniforms(sampling.seed, key, n, sampling.max_new_tokens) for key in keys]).to(device)
    rows = torch.arange(logits.shape[0], device=device)
    for step in range(sampling.max_new_tokens):
        logits = logits.float()
        logits[:, encoder.vision_token_ids] = float("-inf")
        tokens = pick_tokens(logits, sampling, noise[rows, step])
        yield list(zip(rows.tolist(), tokens.tolist(), strict=True))
        alive = tokens != encoder.eos_token_id
        if step + 1 == sampling.max_new_tokens or not bool(alive.any()):
            return
        if not bool(alive.all()):
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, tokens, mask, next_position = rows[keep], tokens[keep], mask[keep], next_position[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = next_position.view(1, -1, 1).expand(3, -1, 1)
        logits = _forward(model, cache, mask if padded else None, input_ids=tokens[:, None], position_ids=positions)
        next_position = next_position + 1


def sample(
    model: Any,
    encoder: ChatEncoder,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    n: int = 1,
    batch_size: int = 64,
    keys: Sequence[int] | None = None,
    blind: bool = False,
) -> list[list[Completion]]:
    """Sample ``n`` completions for each prompt.

    Args:
        model: an unwrapped Qwen-VL model.
        prompts: any number, of any lengths; neighbours in length share a batch. Those made by
            `ChatEncoder.encode_many` are kept together, and their clip is read once.
        batch_size: rows (prompts × n) decoded at once.
        keys: a number per prompt that, with ``sampling.seed``, determines its completions; default: its index.
        blind: the prompts are those of `ChatEncoder.encode_blind`. Without it, a prompt without pixels is refused.

    Returns:
        For each prompt, in the order given, its ``n`` completions."""
    keys = list(keys) if keys is not None else list(range(len(prompts)))
    by_clip: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_clip.setdefault(id(prompt.pixel_values), []).append(index)
    clips = sorted(by_clip.values(), key=lambda indices: max(len(prompts[i]) for i in indices))
    order = [index for indices in clips for index in indices]
    results: list[list[Completion]] = [[] for _ in prompts]
    per_batch = max(1, batch_size // n)
    with inference(model):
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            token_ids: list[list[int]] = [[] for _ in range(len(chosen) * n)]
            steps = _decode(model, encoder, [prompts[i] for i in chosen], sampling, n, [keys[i] for i in chosen], blind)
            for sampled in steps:
                for row, token in sampled:
                    token_ids[row].append(token)
            for position, index in enumerate(chosen):
                ids = token_ids[position * n : (position + 1) * n]
                results[index] = [_completion(encoder, row) for row in ids]
    return results


def _completion(encoder: ChatEncoder, token_ids: list[int]) -> Completion:
    reason: Literal["stop", "length"] = "stop" if token_ids[-1:] == [encoder.eos_token_id] else "length"
    return Completion(token_ids=token_ids, text=encoder.decode(token_ids), finish_reason=reason)


def stream(model: LoadedModel, prompt: EncodedPrompt, sampling: Sampling) -> Iterator[str | Completion]:
    """Yield the text of one completion as it grows, then the whole `Completion`. The pieces, joined, are the
    completion's text: a piece is held back while its last character is incomplete."""
    token_ids: list[int] = []
    sent = ""
    with inference(model.model):
        for sampled in _decode(model.model, model.encoder, [prompt], sampling, 1, [0]):
            token_ids.append(sampled[0][1])
            text = model.encoder.decode(token_ids)
            if text.startswith(sent) and not text.endswith("\ufffd") and len(text) > len(sent):
                yield text[len(sent) :]
                sent = text
    completion = _completion(model.encoder, token_ids)
    if completion.text != sent and completion.text.startswith(sent):
        yield completion.text[len(sent) :]
    yield completion
