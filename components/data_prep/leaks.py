"""What training and evaluation share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..common.rows.sample import Sample
from .outcomes import Reason
from .task import LISTED


def kept_split(splits: Iterable[str]) -> str:
    """Of the splits that a video is in, the one whose rows stay: what measures is worth more than what
    trains."""
    order = ["test", "validation"]
    return min(splits, key=lambda split: (order.index(split) if split in order else len(order), split))


@dataclass
class _Leaks:
    """What training and evaluation were found to share."""

    pairs: int = 0
    """Pairs of files that look the same, in whatever splits."""
    listed: list[tuple[int, int, float]] = field(default_factory=list)
    """The first of them."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows whose video is also in a split that measures, by reason."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """The first of them."""

    def add(self, reason: Reason, sample: Sample, kept: str, sha256: str, like: str) -> None:
        """Note a row whose video is in the split ``kept``."""
        self.rows[reason] += 1
        if len(self.examples) < LISTED:
            row = {"id": sample.id, "uri": sample.media.uri, "split": sample.split, "kept_in": kept}
            self.examples.append({"reason": reason, **row, "sha256": sha256, "same_as": like})
