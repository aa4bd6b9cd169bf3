"""Rollouts of a generation step: completions of each prompt, on shuffled frames too for T-GRPO, and their rewards."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from datasets import Dataset

from ..common.model.chat import ChatEncoder
from ..common.model.generation import Completion, Sampling
from ..common.model.prompt import EncodedPrompt
from ..common.rows.prepared import PreparedSample
from ..common.video.clip import Clip
from .clock import Clock
from .config import GRPOConfig
from .engine import RolloutEngine
from .prefetch import Prefetcher
from .rewards.group import Group
from .rewards.score import GroupRewards, reward_functions, score_group

_NO_SIGNAL = 1e-6
"""A group whose rewards' standard deviation is below this teaches nothing."""


@dataclass(slots=True)
class Rollouts:
    """What one generation step produced on this rank; P prompts of G completions."""

    items: list[PreparedSample]
    prompts: list[EncodedPrompt]
    completions: list[Sequence[Completion]]
    shuffled_clips: list[Clip | None]
    shuffled_completions: list[Sequence[Completion]]
    """Completions on the shuffled clips; empty where there is none."""
    rewards: list[GroupRewards]
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(P, G)"""

    @property
    def components(self) -> torch.Tensor:
        """(P, G, K) parts of the rewards, in the order of `RewardConfig.names`."""
        return torch.stack([group.components for group in self.rewards])

    @property
    def totals(self) -> torch.Tensor:
        """(P, G) rewards."""
        return self.components.sum(-1)

    @property
    def without_signal(self) -> list[int]:
        """The prompts whose completions all earned the same."""
        return (self.totals.std(-1) < _NO_SIGNAL).nonzero()[:, 0].tolist()

    def replace(self, position: int, other: Rollouts, source: int) -> None:
        """Put group ``source`` of ``other`` in the place of group ``position``."""
        for name in {entry.name for entry in fields(self)} - {"advantages"}:
            getattr(self, name)[position] = getattr(other, name)[source]


class RolloutGenerator:
    """Makes rewarded rollouts of a rank's rows; what they are depends on (seed, step, row) and the weights alone."""

    def __init__(
        self,
        config: GRPOConfig,
        encoder: ChatEncoder,
        engine: RolloutEngine,
        prefetcher: Prefetcher,
        clock: Clock,
        train_rows: Sequence[int],
    ) -> None:
        """Args: ``train_rows``: where dynamic sampling takes other prompts from."""
        self.config, self.encoder, self.engine = config, encoder, engine
        self.prefetcher, self.clock, self.train_rows = prefetcher, clock, train_rows
        self.reward_functions = reward_functions(config.reward_config)

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
                others = [self._substitute(rows[position], step, attempt) for position in positions]
                retried = self._complete(others, step)
                for source in set(range(len(positions))) - set(retried.without_signal):
                    rollouts.replace(positions[source], retried, source)
        return rollouts

    def _substitute(self, row: int, step: int, attempt: int) -> int:
        """Another training row, drawn by (seed, step, row, attempt) alone."""
        draw = zlib.crc32(f"substitute/{self.config.seed}/{step}/{row}/{attempt}".encode())
        return int(self.train_rows[draw % len(self.train_rows)])

    def _complete(self, rows: Sequence[int], step: int) -> Rollouts:
        """Complete each row's prompt G times on its frames in order and, for T-GRPO, some times on them shuffled."""
        config = self.config
        self.clock.lap("other")
        items = self.prefetcher.take(rows)
        self.clock.lap("wait")
        prompts = [self.encoder.encode_sample(item) for item in items]
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        )
        keys = [zlib.crc32(f"{step}/{row}".encode()) for row in rows]
        clips: list[Clip | None] = [None] * len(items)
        videos = [i for i, item in enumerate(items) if item.clip.kind == "video" and len(item.clip.frames) > 1]
        videos = videos if config.shuffled_rollouts else []
        shuffled_prompts = []
        for i in videos:
            order = frame_order(config.seed, step, rows[i], len(items[i].clip.frames))
            clips[i] = clip = items[i].clip.permuted(order.tolist())
            shuffled_prompts.append(self.encoder.with_clip(prompts[i], clip))
        counts = [config.num_generations] * len(prompts) + [config.shuffled_rollouts] * len(videos)
        keys += [keys[i] ^ 1 for i in videos]
        groups = self.engine.generate([*prompts, *shuffled_prompts], sampling, counts, keys)
        completions = list(groups[: len(prompts)])
        shuffled: list[Sequence[Completion]] = [[] for _ in items]
        for i, group in zip(videos, groups[len(prompts) :], strict=True):
            shuffled[i] = group
        self.clock.lap("rollout")
        rewards = [self._score(*group) for group in zip(items, completions, shuffled, strict=True)]
        self.clock.lap("reward")
        return Rollouts(items, prompts, completions, clips, shuffled, rewards)

    def _score(
        self, item: PreparedSample, completions: Sequence[Completion], shuffled: Sequence[Completion]
    ) -> GroupRewards:
        group = Group(
            sample=item.sample,
            texts=[completion.text for completion in completions],
            token_counts=[len(completion.token_ids) for completion in completions],
            shuffled_texts=[completion.text for completion in shuffled],
            answer_format=self.encoder.template.answer_format,
            correct_above=self.config.reward_config.correct_above,
        )
        return score_group(group, self.reward_functions)


def prompt_rows(rows: Sequence[int]) -> Dataset:
    """Row numbers in the form that TRL's sampler repeats G times; pixels are looked up when they are needed."""
    return Dataset.from_dict({"prompt": [""] * len(rows), "row": list(rows)})


def frame_order(seed: int, step: int, row: int, num_frames: int) -> np.ndarray:
    """A permutation of the frames, never the identity, that depends on (seed, step, row) alone.

    Frames are permuted before temporal patches are made, so a patch of the shuffled clip joins frames that are not
    neighbours.
    """
    generator = np.random.default_rng(zlib.crc32(f"shuffle/{seed}/{step}/{row}".encode()))
    while True:
        order = generator.permutation(num_frames)
        if num_frames < 2 or not np.array_equal(order, np.arange(num_frames)):
            return order
