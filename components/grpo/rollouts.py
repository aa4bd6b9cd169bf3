"""Rollouts of a generation step: completions of each prompt, on shuffled frames too for T-GRPO, and their rewards."""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl.models import unwrap_model_for_generation

from ..common.errors import UserError
from ..common.model.chat import ChatEncoder
from ..common.model.generation import Completion, Sampling, sample
from ..common.model.prompt import EncodedPrompt
from ..common.rows.prepared import PreparedSample, Split
from ..common.video.clip import Clip
from .config import GRPOConfig
from .rewards import Group, RewardFunction, reward_functions
from .vllm.engine import VLLMEngine

_NO_SIGNAL = 1e-6  # a group whose rewards' standard deviation is below this teaches nothing


class Prefetcher:
    """Decodes the clips of rows that will be needed soon, in threads (decoding lets go of the interpreter lock)."""

    def __init__(self, split: Split, workers: int, timeout_s: float) -> None:
        self.split, self.timeout_s = split, timeout_s
        self._pool = ThreadPoolExecutor(workers, "prefetch") if workers else None
        self._coming: OrderedDict[int, Future[PreparedSample]] = OrderedDict()

    def announce(self, rows: Sequence[int]) -> None:
        """Start decoding; rows that were announced and never taken are forgotten after a while."""
        if self._pool is None:
            return
        for row in rows:
            if row not in self._coming:
                self._coming[row] = self._pool.submit(self.split.__getitem__, row)
            self._coming.move_to_end(row)  # one that was announced long ago and is needed now is not old
        while len(self._coming) > 4 * len(set(rows)) + 64:
            self._coming.popitem(last=False)[1].cancel()

    def announce_batch(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`announce`, as a data collator: hands on what it gets."""
        self.announce([example["row"] for example in examples])
        return examples

    def take(self, rows: Sequence[int]) -> list[PreparedSample]:
        """The rows, decoded; a `UserError` where one does not arrive within ``timeout_s``."""
        if self._pool is None:
            return [self.split[row] for row in rows]
        self.announce(rows)
        items: dict[int, PreparedSample] = {}
        for row in dict.fromkeys(rows):
            try:
                items[row] = self._coming.pop(row).result(self.timeout_s)
            except TimeoutError:
                where = f"row {row} ({self.split.samples[row].media.uri})"
                hint = "is its storage reachable? (grpo.data_timeout_s)"
                raise UserError(f"{where} was not decoded within {self.timeout_s:g} s; {hint}") from None
        return [items[row] for row in rows]


class TrainingModelEngine:
    """Our own engine (`common.model.generation`), which prefills each prompt once, on the training model itself."""

    is_policy = True
    """Whether completions are sampled with the trainer's own probabilities; if not, they are `SampledCompletion`s."""

    def __init__(self, trainer: Any, encoder: ChatEncoder, rows_at_once: int) -> None:
        self.trainer, self.encoder, self.rows_at_once = trainer, encoder, rows_at_once
        self._model: Any = None

    @contextmanager
    def policy(self, step: int) -> Iterator[None]:
        """The engine with the policy's weights of this step, for as long as the block lasts; all processes enter it.
        Under ZeRO-3 the weights are gathered for the block, so ranks need not make the same number of passes."""
        with unwrap_model_for_generation(self.trainer.model_wrapped, self.trainer.accelerator) as self._model:
            yield
        self._model = None

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, n: Sequence[int], keys: Sequence[int]
    ) -> Sequence[Sequence[Completion]]:
        """So many completions of each prompt, determined by ``sampling.seed`` and the prompt's key."""
        return sample(self._model, self.encoder, prompts, sampling, n, self.rows_at_once, keys)


RolloutEngine = TrainingModelEngine | VLLMEngine
"""What samples completions from the policy; both have `TrainingModelEngine`'s methods."""


def score_group(group: Group, functions: Mapping[str, RewardFunction]) -> torch.Tensor:
    """(G, K) parts of the rewards of a prompt's completions, by the functions of `reward_functions`.

    Raises: `UserError`: a function raised, or did not return one finite number per completion."""
    columns = []
    for name, function in functions.items():
        try:
            values = [float(value) for value in function(group)]
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"reward {name} failed on sample {group.sample.id}: {reason}") from error
        count = len(group.texts)
        if len(values) != count or not all(map(math.isfinite, values)):
            raise UserError(f"reward {name} returned {values} for the {count} completions of sample {group.sample.id}")
        columns.append(values)
    return torch.tensor(columns, dtype=torch.float32).T.contiguous()


@dataclass(slots=True)
class Rollouts:
    """What one generation step produced on this rank; P prompts of G completions."""

    items: list[PreparedSample]
    prompts: list[EncodedPrompt]
    completions: list[Sequence[Completion]]
    shuffled_clips: list[Clip | None]
    groups: list[Group]  # what their rewards were made of
    rewards: list[torch.Tensor]  # (G, K) each, of `score_group`
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # (P, G)

    @property
    def components(self) -> torch.Tensor:
        """(P, G, K) parts of the rewards, in the order of `RewardConfig.names`; a reward is the sum of its parts."""
        return torch.stack(self.rewards)

    @property
    def without_signal(self) -> list[int]:
        """The prompts whose completions all earned the same."""
        return (self.components.sum(-1).std(-1) < _NO_SIGNAL).nonzero()[:, 0].tolist()

    def replace(self, position: int, other: Rollouts, source: int) -> None:
        """Put group ``source`` of ``other`` in the place of group ``position``."""
        for name in {entry.name for entry in fields(self)} - {"advantages"}:
            getattr(self, name)[position] = getattr(other, name)[source]


@dataclass
class RolloutGenerator:
    """Makes rewarded rollouts of a rank's rows; what they are depends on (seed, step, row) and the weights alone."""

    config: GRPOConfig
    encoder: ChatEncoder
    engine: RolloutEngine
    prefetcher: Prefetcher
    lap: Callable[[str], None]  # `Clock.lap`
    train_rows: Sequence[int]  # where dynamic sampling takes other prompts from

    def __post_init__(self) -> None:
        self.reward_functions = reward_functions(self.config.reward_config)

    def roll_out(self, rows: Sequence[int], step: int) -> Rollouts:
        """Rewarded rollouts; groups without signal are tried again with other prompts if so configured."""
        # Within this block one rank may make more passes than another: it may have pictures only, and no shuffled
        # rollouts, or more groups to try again.
        with self.engine.policy(step):
            rollouts = self._complete(rows, step)
            for attempt in range(self.config.dynamic_sampling):
                positions = rollouts.without_signal
                if not positions:
                    break
                # Other training rows, drawn by (seed, step, row, attempt) alone.
                keys = [f"substitute/{self.config.seed}/{step}/{rows[i]}/{attempt}" for i in positions]
                others = [int(self.train_rows[zlib.crc32(key.encode()) % len(self.train_rows)]) for key in keys]
                retried = self._complete(others, step)
                for source in set(range(len(positions))) - set(retried.without_signal):
                    rollouts.replace(positions[source], retried, source)
        return rollouts

    def _complete(self, rows: Sequence[int], step: int) -> Rollouts:
        """Complete each row's prompt G times on its frames in order and, for T-GRPO, some times on them shuffled."""
        config = self.config
        self.lap("other")
        items = self.prefetcher.take(rows)
        self.lap("wait")
        prompts = [self.encoder.encode_sample(item) for item in items]
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
        )
        keys = [zlib.crc32(f"{step}/{row}".encode()) for row in rows]
        clips: list[Clip | None] = [None] * len(items)
        videos = [i for i, item in enumerate(items) if item.clip.kind == "video" and len(item.clip.frames) > 1]
        videos = videos if config.num_shuffled else []
        shuffled_prompts = []
        for i in videos:
            order = frame_order(config.seed, step, rows[i], len(items[i].clip.frames))
            clips[i] = clip = items[i].clip.permuted(order.tolist())
            shuffled_prompts.append(self.encoder.with_clip(prompts[i], clip))
        # In one call: a step of decoding takes hardly longer for half as many rows more.
        counts = [config.num_generations] * len(prompts) + [config.num_shuffled] * len(videos)
        completed = self.engine.generate(
            [*prompts, *shuffled_prompts], sampling, counts, [*keys, *(keys[i] ^ 1 for i in videos)]
        )
        completions = list(completed[: len(prompts)])
        shuffled = dict(zip(videos, completed[len(prompts) :], strict=True))
        self.lap("rollout")
        groups = [
            Group(
                sample=item.sample,
                texts=[completion.text for completion in completions[i]],
                token_counts=[len(completion.token_ids) for completion in completions[i]],
                shuffled_texts=[completion.text for completion in shuffled.get(i, [])],
                answer_format=self.encoder.template.answer_format,
                correct_above=config.reward_config.correct_above,
                grading=config.reward_config.grading,
            )
            for i, item in enumerate(items)
        ]
        rewards = [score_group(group, self.reward_functions) for group in groups]
        self.lap("reward")
        return Rollouts(items, prompts, completions, clips, groups, rewards)


def prompt_rows(rows: Sequence[int]) -> Dataset:
    """Row numbers in the form that TRL's sampler repeats G times; pixels are looked up when they are needed."""
    return Dataset.from_dict({"prompt": [""] * len(rows), "row": list(rows)})


def frame_order(seed: int, step: int, row: int, num_frames: int) -> np.ndarray:
    """A permutation of the frames, never the identity, that depends on (seed, step, row) alone. Temporal patches are
    made after it: a patch of the shuffled clip joins frames that are not neighbours."""
    generator = np.random.default_rng(zlib.crc32(f"shuffle/{seed}/{step}/{row}".encode()))
    while True:
        order = generator.permutation(num_frames)
        if num_frames < 2 or not np.array_equal(order, np.arange(num_frames)):
            return order
