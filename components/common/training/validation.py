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


def pick_rows(split: Split, kinds: Sequence[str], images: bool = True) -> list[int]:
    """Indices of the samples whose ``metadata.kind`` is wanted (all when ``kinds`` is empty)."""
    return [
        row
        for row, sample in enumerate(split.samples)
        if (not kinds or sample.metadata.get("kind") in kinds) and (images or sample.media.kind == "video")
    ]


@dataclass(frozen=True)
class Validation:
    """Questions of the validation split that are put to the model while it trains."""

    encoder: ChatEncoder
    split: Split
    config: ValidationConfig

    @property
    def rows(self) -> list[int]:
        """The rows of the split that are asked."""
        return pick_rows(self.split, self.config.kinds)[: self.config.num_items]

    def score(self, model: Any, rank: int = 0, world_size: int = 1) -> ValidationScore:
        """Ask this rank's share of the questions greedily; the score is over all ranks."""
        rows = self.rows[rank::world_size]
        sampling = Sampling(max_new_tokens=self.config.max_new_tokens)
        totals = torch.zeros(3)  # right, well formed, asked
        for start in range(0, len(rows), self.config.batch_size):
            items = [self.split[row] for row in rows[start : start + self.config.batch_size]]
            completions = sample(model, self.encoder, [self.encoder.encode_sample(item) for item in items], sampling)
            for item, (completion,) in zip(items, completions, strict=True):
                totals[0] += is_correct(item.sample, parse_response(completion.text).answer)
                totals[1] += follows_format(item.sample, completion.text, self.encoder.template.answer_format)
                totals[2] += 1
        if world_size > 1:
            totals = totals.to(next(model.parameters()).device)
            torch.distributed.all_reduce(totals)
        right, formed, count = totals.tolist()
        return ValidationScore(right / max(count, 1), formed / max(count, 1), int(count))
