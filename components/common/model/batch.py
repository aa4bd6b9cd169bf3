"""Continuous batching: prompts join a running batch, get a token at each step, and leave when they are finished.

The tokens are those of `generation.sample` for each prompt alone: greedy, or drawn by numbers that depend on the
prompt's own seed. What a prompt has in common with one that was read before (a clip, the turns of a conversation) is
taken from a `PrefixCache`.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from ..video.clip import Clip
from .chat import ChatEncoder
from .generation import Sampling, forward, pick_tokens
from .prefixes import KeysValues, Prefix, PrefixCache
from .prompt import EncodedPrompt

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(eq=False, kw_only=True, slots=True)
class Generation:
    """A prompt that is being answered."""

    prompt: EncodedPrompt
    """Without its pixels (`ChatEncoder.encode_chat`), which are laid out if they turn out to be needed."""
    clip: Clip | None  # what it is about; None: a prompt of words alone
    clip_key: Hashable = None  # identifies the clip's content, and who may share what is known of it
    sampling: Sampling
    n: int = 1  # answers to generate
    top_logprobs: int | None = None
    """Log-probabilities of so many tokens at each step, and of the one chosen; None: none."""
    cached_tokens: int = 0  # tokens of the prompt that were known already; set when it joins


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token of one of a generation's answers; ``error`` instead where the model's logits are no numbers."""

    generation: Generation
    index: int
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finished: bool = False
    error: str | None = None


@dataclass(eq=False, slots=True)
class _Row:
    generation: Generation
    index: int
    noise: torch.Tensor | None
    head: Prefix | None
    token_ids: list[int] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Read:
    """A prompt that was read: its state, and the logits (V,) of what comes next."""

    layers: KeysValues
    logits: torch.Tensor
    head: Prefix | None


class ContinuousBatch:
    """The running batch. Not thread-safe; call it in `generation.inference`. Of each round: `admit` new prompts,
    `sample` a token for every row, `advance` the model by those tokens."""

    def __init__(
        self, model: Any, encoder: ChatEncoder, prefixes: PrefixCache, max_rows: int, max_prefill_tokens: int = 16384
    ) -> None:
        """Args: ``max_prefill_tokens``: padded tokens read in one pass; a longer prompt is read alone."""
        self._model, self._encoder, self._prefixes = model, encoder, prefixes
        self._max_rows, self._max_prefill_tokens = max_rows, max_prefill_tokens
        self._device = next(model.parameters()).device
        self.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self.rows: list[_Row] = []
        self._layers: KeysValues = []
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        self._positions = torch.zeros(0, dtype=torch.long, device=self._device)
        self._logits = torch.zeros(0, 0, device=self._device)
        self._tokens = torch.zeros(0, dtype=torch.long, device=self._device)

    # -- joining ------------------------------------------------------------------------------------------------------

    def admit(self, waiting: Sequence[Generation]) -> list[Generation]:
        """Read as many of the first waiting prompts as there is room for, and let them join; returns those that did."""
        free, chosen, longest = self._max_rows - len(self.rows), list[Generation](), 0
        for generation in waiting:
            longest = max(longest, len(generation.prompt))
            too_much = (len(chosen) + 1) * longest > self._max_prefill_tokens
            if generation.n > free or (chosen and too_much):
                break
            free -= generation.n
            chosen.append(generation)
        leaders, followers, heads = list[Generation](), list[Generation](), set[Hashable]()
        for generation in chosen:
            prompt = generation.prompt
            head = (generation.clip_key, tuple(prompt.input_ids[: prompt.vision_end].tolist()))
            known = generation.clip is not None and (head in heads or self._known(generation) is not None)
            (followers if known else leaders).append(generation)
            if generation.clip is not None:
                heads.add(head)
        read: dict[int, _Read] = {}
        for blind in (False, True):
            group = [generation for generation in leaders if (generation.clip is None) is blind]
            read |= self._read_whole(group, blind) if group else {}
        # A head may have been too large for the cache.
        lost = [generation for generation in followers if self._known(generation) is None]
        read |= self._read_whole(lost, blind=False) if lost else {}
        rest = [generation for generation in followers if generation not in lost]
        read |= self._read_rest(rest) if rest else {}
        self._join([(generation, read[id(generation)]) for generation in chosen])
        return chosen

    def _known(self, generation: Generation) -> tuple[Prefix, int] | None:
        prompt = generation.prompt
        return self._prefixes.longest(generation.clip_key, prompt.input_ids, prompt.vision_end)

    def _new_cache(self, layers: KeysValues = ()) -> DynamicCache:  # type: ignore[assignment]
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config.get_text_config())
        for layer, (keys, values) in zip(cache.layers, layers, strict=False):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # `update` would copy them
        return cache

    def _read_whole(self, group: list[Generation], blind: bool) -> dict[int, _Read]:
        """Read prompts from their beginning, and keep what leads up to the end of each clip."""
        encoder, prompts = self._encoder, [generation.prompt for generation in group]
        if not blind:
            clips = [(generation.prompt, generation.clip) for generation in group]
            prompts = [encoder.with_clip(prompt, clip) for prompt, clip in clips if clip is not None]
        batch = {name: tensor.to(self._device) for name, tensor in encoder.collate(prompts, blind=blind).items()}
        mask, cache = batch.pop("attention_mask"), self._new_cache()
        padded = bool((mask == 0).any())
        logits = forward(self._model, cache, mask if padded else None, **batch)
        read = {}
        for row, generation in enumerate(group):
            layers, head, end = _row(cache, row, mask[row]), None, generation.prompt.vision_end
            if not blind:
                own = [(keys[:, :, :end].clone(), values[:, :, :end].clone()) for keys, values in layers]
                head = self._prefixes.add(generation.clip_key, generation.prompt.input_ids[:end], own)
            read[id(generation)] = _Read(layers, logits[row], head)
        return read

    def _read_rest(self, group: list[Generation]) -> dict[int, _Read]:
        """Read what comes behind the known part of prompts."""
        prefixes = [known for generation in group if (known := self._known(generation)) is not None]
        counts = [count for _, count in prefixes]
        tails = [len(generation.prompt) - count for generation, count in zip(group, counts, strict=True)]
        ids = torch.full((len(group), max(tails)), self._encoder.pad_token_id)
        mask, positions = torch.zeros_like(ids), torch.zeros(3, *ids.shape, dtype=torch.long)
        for row, (generation, length) in enumerate(zip(group, tails, strict=True)):
            ids[row, -length:] = generation.prompt.input_ids[-length:]
            mask[row, -length:] = 1
            positions[:, row, -length:] = generation.prompt.position_ids[:, -length:]
            generation.cached_tokens = counts[row]
        layers, before = _stack([prefix.layers(count) for prefix, count in prefixes])
        mask, cache = torch.cat([before, mask.to(self._device)], 1), self._new_cache(layers)
        tail = {"input_ids": ids.to(self._device), "position_ids": positions.to(self._device)}
        logits = forward(self._model, cache, mask if bool((mask == 0).any()) else None, **tail)
        return {
            id(generation): _Read(_row(cache, row, mask[row]), logits[row], prefix.parent or prefix)
            for row, (generation, (prefix, _)) in enumerate(zip(group, prefixes, strict=True))
        }

    def _join(self, joining: list[tuple[Generation, _Read]]) -> None:
        if not joining:
            return
        rows, states, logits, positions = list[_Row](), list[KeysValues](), list[torch.Tensor](), list[int]()
        for generation, read in joining:
            for index in range(generation.n):
                rows.append(_Row(generation, index, _noise(generation.sampling, index), read.head))
                states.append(read.layers)
                logits.append(read.logits)
                positions.append(generation.prompt.next_position)
        if self.rows:
            width = self._mask.shape[1]
            running = [(self._layers[i][0], self._layers[i][1]) for i in range(len(self._layers))]
            self._layers, mask = _stack(states, running)
            self._mask = torch.cat([pad(self._mask, (mask.shape[1] - width, 0)), mask])
        else:
            self._layers, self._mask = _stack(states)
        self._logits = (
            torch.cat([self._logits.to(logits[0]), torch.stack(logits)]) if self.rows else torch.stack(logits)
        )
        new = torch.tensor(positions, device=self._device)
        self._positions = torch.cat([self._positions, new])
        self.rows += rows

    # -- running ------------------------------------------------------------------------------------------------------

    def sample(self) -> list[Sampled]:
        """The next token of every row; the finished rows leave."""
        logits = self._logits.float()
        bad = ~torch.isfinite(logits).all(-1)
        logits[:, self._encoder.vision_token_ids] = float("-inf")
        tokens = logits.argmax(-1)
        for number, row in enumerate(self.rows):
            if row.noise is not None:
                uniform = row.noise[len(row.token_ids)][None].to(logits.device)
                tokens[number] = pick_tokens(logits[number][None], row.generation.sampling, uniform)[0]
        sampled, keep = list[Sampled](), list[int]()
        for number, (row, token_id, broken) in enumerate(zip(self.rows, tokens.tolist(), bad.tolist(), strict=True)):
            error = "the model's logits are not finite numbers; are its weights, or the frames, damaged?"
            row.token_ids.append(token_id)
            length = len(row.token_ids) >= row.generation.sampling.max_new_tokens
            finished = broken or length or token_id == self._encoder.eos_token_id
            logprob, top = _logprobs(logits[number], token_id, row.generation.top_logprobs)
            sampled.append(
                Sampled(row.generation, row.index, token_id, logprob, top, finished, error if broken else None)
            )
            if not finished:
                keep.append(number)
            elif not broken:
                self._remember(number)
        self._tokens = tokens
        self._keep(keep)
        return sampled

    def advance(self) -> None:
        """Feed every row its last token."""
        if not self.rows:
            return
        self._mask = pad(self._mask, (0, 1), value=1)
        cache = self._new_cache(self._layers)
        mask = self._mask if bool((self._mask == 0).any()) else None
        positions = self._positions.view(1, -1, 1).expand(3, -1, 1)
        self._logits = forward(self._model, cache, mask, input_ids=self._tokens[:, None], position_ids=positions)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        self._positions = self._positions + 1

    def drop(self, generation: Generation, index: int | None = None) -> None:
        """Take a generation, or one of its answers, out of the batch (before `advance`)."""
        gone = [row for row in self.rows if row.generation is generation and index in (None, row.index)]
        if gone:
            self._keep([number for number, row in enumerate(self.rows) if row not in gone])

    def _remember(self, number: int) -> None:
        """Keep a finished answer's state: a follow-up question begins with it."""
        row = self.rows[number]
        prompt, head = row.generation.prompt, row.head
        if row.index or head is None:
            return
        ids = torch.cat([prompt.input_ids, torch.tensor(row.token_ids[:-1], dtype=torch.long)])
        start, width = len(head.input_ids), self._mask.shape[1]
        chosen = slice(width - len(ids) + start, width)
        one = slice(number, number + 1)
        own = [(keys[one, :, chosen].clone(), values[one, :, chosen].clone()) for keys, values in self._layers]
        self._prefixes.add(row.generation.clip_key, ids, own, head)

    def _keep(self, keep: list[int]) -> None:
        if len(keep) == len(self.rows):
            return
        if not keep:
            self.clear()
            return
        index = torch.tensor(keep, device=self._device)
        if len(self._tokens) == len(self.rows):
            self._tokens = self._tokens[index]
        mask = self._mask[index]
        first = int(mask.any(0).nonzero()[0])  # columns in which only rows that have left had something
        self.rows = [self.rows[number] for number in keep]
        self._layers = [(keys[index, :, first:], values[index, :, first:]) for keys, values in self._layers]
        self._mask, self._positions = mask[:, first:], self._positions[index]
        self._logits = self._logits[index]


def _noise(sampling: Sampling, index: int) -> torch.Tensor | None:
    """Row ``index`` of `generation.uniforms` for key 0."""
    if sampling.temperature == 0:
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(f"{sampling.seed}/0/{index}".encode()))
    return torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def _row(cache: DynamicCache, row: int, mask: torch.Tensor) -> KeysValues:
    """A row's state, without its padding."""
    columns = mask.nonzero()[:, 0]
    first, last = int(columns[0]), int(columns[-1]) + 1
    chosen: Any = slice(first, last) if last - first == len(columns) else columns
    one = slice(row, row + 1)
    return [(layer.keys[one, :, chosen], layer.values[one, :, chosen]) for layer in cache.layers]


def _stack(states: list[KeysValues], running: KeysValues | None = None) -> tuple[KeysValues, torch.Tensor]:
    """States of different lengths as a batch, padded on the left, below the running one; mask (B, L) of the states."""
    lengths = [state[0][0].shape[2] for state in states]
    width = max([*lengths, running[0][0].shape[2] if running else 0])
    layers = []
    for index in range(len(states[0])):
        both = []
        for part in (0, 1):
            tensors = [running[index][part]] if running else []
            tensors += [state[index][part] for state in states]
            both.append(torch.cat([pad(tensor, (0, 0, width - tensor.shape[2], 0)) for tensor in tensors]))
        layers.append((both[0], both[1]))
    mask = torch.zeros(len(states), width, dtype=torch.long, device=layers[0][0].device)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1
    return layers, mask


def _logprobs(
    logits: torch.Tensor, token_id: int, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    if count is None:
        return None, ()
    logprobs = torch.log_softmax(logits, -1)
    values, ids = logprobs.topk(count) if count else (logprobs[:0], logprobs[:0])
    return float(logprobs[token_id]), tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True))
