"""Prompts and their completions in one row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...common.model.chat import ChatEncoder
from ...common.model.prompt import EncodedPrompt

AttentionForm = Literal["two_call", "mask"]


@dataclass(frozen=True)
class Layout:
    """Where prompts and completions lie in the packed row. It travels with the forward pass as a keyword argument."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """For each prompt its length P and its completions' lengths."""

    @property
    def num_tokens(self) -> int:
        """L: tokens of the packed row."""
        return sum(prefix + sum(suffixes) for prefix, suffixes in self.groups)

    def predicting(self) -> list[int]:
        """The positions in the row whose hidden states predict the completions' tokens, in their order."""
        positions: list[int] = []
        start = 0
        for prefix, suffixes in self.groups:
            offset = start + prefix
            for length in suffixes:
                if length:
                    positions += [start + prefix - 1, *range(offset, offset + length - 1)]
                offset += length
            start = offset
        return positions

    def mask(self, device: torch.device) -> torch.Tensor:
        """(1, 1, L, L), True where the token of a row may look: its prompt and its own completion, up to itself."""
        group_of, completion_of = [], []
        for group, (prefix, suffixes) in enumerate(self.groups):
            group_of += [group] * (prefix + sum(suffixes))
            completion_of += [-1] * prefix
            completion_of += itertools.chain.from_iterable([i] * length for i, length in enumerate(suffixes))
        groups = torch.tensor(group_of, device=device)
        completions = torch.tensor(completion_of, device=device)
        same_group = groups[:, None] == groups[None]
        visible = (completions[None] == -1) | (completions[:, None] == completions[None])
        return (same_group & visible).tril()[None, None]


@dataclass(frozen=True)
class Packed:
    """A micro-batch as the model takes it."""

    layout: Layout
    input_ids: torch.Tensor
    """(1, L)"""
    position_ids: torch.Tensor
    """(3, 1, L)"""
    targets: torch.Tensor
    """(1, ΣC): the completions' tokens, one after the other."""
    media: dict[str, torch.Tensor]
    """Pixels and grids of the prompts' clips, each once."""


def pack(
    encoder: ChatEncoder, prompts: Sequence[EncodedPrompt], completions: Sequence[Sequence[Sequence[int]]]
) -> Packed:
    """Lay out prompts and their completions in one row.

    Args:
        prompts: one per group.
        completions: for each prompt the token ids of its completions; lengths may differ, and may be 0.

    Raises:
        BlindInputError: a prompt without its pixels.
    """
    ids, positions, targets = [], [], []
    groups = []
    for prompt, group in zip(prompts, completions, strict=True):
        encoder.check_sighted(prompt)
        ids.append(encoder.model_ids(prompt))
        positions.append(prompt.position_ids)
        for completion in group:
            tokens = torch.tensor(completion, dtype=torch.long)
            ids.append(tokens)
            targets.append(tokens)
            positions.append((prompt.next_position + torch.arange(len(completion))).expand(3, -1))
        groups.append((len(prompt), tuple(len(completion) for completion in group)))
    return Packed(
        layout=Layout(tuple(groups)),
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions, 1)[:, None],
        targets=torch.cat(targets)[None],
        media=encoder.media(prompts),
    )
