"""Greedy answers on the validation split while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..answers.formats import follows_format
from ..answers.grading import is_correct
from ..answers.responses import parse_response
from ..model.chat import ChatEncoder
from ..model.generation import Sampling, sample
from ..rows.prepared import Split
from .config import ValidationConfig


@dataclass(frozen=True, slots=True)
class ValidationScore:
    """Greedy answers on the validation split."""

    accuracy: float
    format_rate: float
    num_items: int


def pick_items(split: Split, kinds: Sequence[str], images: bool = True) -> list[int]:
    """Indices of the samples whose ``metadata.kind`` is wanted (all when ``kinds`` is empty)."""
    return [
        index
        for index, item in enumerate(split.samples)
        if (not kinds or item.metadata.get("kind") in kinds) and (images or item.media.kind == "video")
    ]


def validate(
    model: Any,
    encoder: ChatEncoder,
    split: Split,
    indices: Sequence[int],
    config: ValidationConfig,
    rank: int = 0,
    world_size: int = 1,
) -> ValidationScore:
    """Ask this rank's share of the questions greedily; the score is over all ranks."""
    mine = indices[rank::world_size]
    totals = torch.zeros(3)
    for start in range(0, len(mine), config.batch_size):
        items = [split[index] for index in mine[start : start + config.batch_size]]
        sampling = Sampling(max_new_tokens=config.max_new_tokens)
        completions = sample(model, encoder, [encoder.encode_sample(i) for i in items], sampling)
        for item, (completion,) in zip(items, completions, strict=True):
            totals[0] += is_correct(item.sample, parse_response(completion.text).answer)
            totals[1] += follows_format(item.sample, completion.text, encoder.template.answer_format)
            totals[2] += 1
    if world_size > 1:
        device = next(model.parameters()).device
        totals = totals.to(device)
        torch.distributed.all_reduce(totals)
    right, formed, count = totals.tolist()
    return ValidationScore(right / max(count, 1), formed / max(count, 1), int(count))
