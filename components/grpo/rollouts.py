"""What one generation step produced."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset

from ..common.model.generation import Completion
from ..common.model.prompt import EncodedPrompt
from ..common.rows.prepared import PreparedSample
from ..common.video.clip import Clip
from .rewards import GroupRewards

_NO_SIGNAL = 1e-6
"""A group whose rewards' standard deviation is below this teaches nothing."""


@dataclass(slots=True)
class Rollouts:
    """What one generation step produced on this rank; P prompts of G completions."""

    items: list[PreparedSample]
    prompts: list[EncodedPrompt]
    completions: list[Sequence[Completion]]
    shuffled_clips: list[Clip | None]
    shuffled: list[Sequence[Completion]]
    """Completions on the shuffled clips; empty where there is none."""
    earned: list[GroupRewards] = field(default_factory=list)
    """Rewards per prompt."""
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(P, G)"""

    @property
    def rewards(self) -> torch.Tensor:
        """(P, G, K) components in the order of `RewardConfig.names`."""
        return torch.stack([group.components for group in self.earned])

    @property
    def without_signal(self) -> list[int]:
        """The prompts whose completions all earned the same."""
        return (self.rewards.sum(-1).std(-1) < _NO_SIGNAL).nonzero()[:, 0].tolist()

    def replace(self, position: int, other: Rollouts, source: int) -> None:
        """Put group ``source`` of ``other`` in the place of group ``position``."""
        for name in ("items", "prompts", "completions", "shuffled_clips", "shuffled", "earned"):
            getattr(self, name)[position] = getattr(other, name)[source]


def prompt_rows(indices: Sequence[int]) -> Dataset:
    """Row numbers in the form that TRL's sampler repeats G times; pixels are looked up when they are needed."""
    return Dataset.from_dict({"prompt": [""] * len(indices), "row": list(indices)})


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
