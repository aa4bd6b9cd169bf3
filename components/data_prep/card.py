"""What is in a prepared data set, in numbers: ``card.json`` beside its manifest.

Counted while the rows are written, so that it costs no memory per row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.rows.sample import Sample

CARD = "card.json"
DURATION_EDGES_S = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
CHARACTER_EDGES = (0, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
RATE_EDGES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_MOST = 100
"""Longest list of names in the card (sources, resolutions); what is beyond counts as ``other``."""


class Histogram:
    """Counts between edges; the last bin has no upper edge."""

    def __init__(self, edges: Sequence[float]):
        self._edges = list(edges)
        self._counts = [0] * len(edges)
        self._low: float | None = None
        self._high: float | None = None
        self._total = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value (below the first edge: as if on it)."""
        self._counts[max(0, bisect_right(self._edges, value) - 1)] += count
        self._low = value if self._low is None else min(self._low, value)
        self._high = value if self._high is None else max(self._high, value)
        self._total += value * count

    def to_json(self) -> dict[str, Any]:
        """Edges, counts, and least, greatest and mean value (null where there is none)."""
        count = sum(self._counts)
        mean = round(self._total / count, 3) if count else None
        return {"edges": self._edges, "counts": self._counts, "min": self._low, "max": self._high, "mean": mean}


@dataclass
class SplitCard:
    """One split in numbers."""

    rows: int = 0
    by_type: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    """Rows by ``metadata.kind``."""
    letters: dict[int, Counter[str]] = field(default_factory=dict)
    """Right letters of multiple-choice questions, by number of options."""
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """Most frequent answers of the other types; a bounded sample."""
    with_reasoning: int = 0
    with_evidence: int = 0
    media: Counter[str] = field(default_factory=Counter)
    """Videos and images."""
    duration_s: Histogram = field(default_factory=lambda: Histogram(DURATION_EDGES_S))
    """Of what is shown, each video once."""
    question_characters: Histogram = field(default_factory=lambda: Histogram(CHARACTER_EDGES))
    reasoning_characters: Histogram = field(default_factory=lambda: Histogram(CHARACTER_EDGES))
    pass_rate: Histogram = field(default_factory=lambda: Histogram(RATE_EDGES))

    def add(self, sample: Sample) -> None:
        """Count a row."""
        self.rows += 1
        self.by_type[sample.problem_type] += 1
        self.by_source[sample.source] += 1
        if isinstance(kind := sample.metadata.get("kind"), str):
            self.by_kind[kind] += 1
        if sample.problem_type == "multiple_choice":
            self.letters.setdefault(len(sample.options), Counter())[sample.answer] += 1
        else:
            answers = self.answers.setdefault(sample.problem_type, Counter())
            if len(answers) < 10_000 or sample.answer in answers:
                answers[sample.answer[:80]] += 1
        self.with_reasoning += sample.reasoning is not None
        self.with_evidence += bool(sample.evidence)
        self.question_characters.add(len(sample.question))
        if sample.reasoning is not None:
            self.reasoning_characters.add(len(sample.reasoning))
        if (rate := pass_rate(sample)) is not None:
            self.pass_rate.add(rate)

    def add_media(self, kind: str, duration_s: float) -> None:
        """Count a video or image that rows of this split are about."""
        self.media[kind] += 1
        if kind == "video":
            self.duration_s.add(duration_s)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the card."""
        return {
            "rows": self.rows,
            "videos": self.media["video"],
            "images": self.media["image"],
            "by_type": dict(self.by_type.most_common()),
            "by_source": most(self.by_source),
            "by_kind": most(self.by_kind),
            "letters": {str(n): dict(sorted(counts.items())) for n, counts in sorted(self.letters.items())},
            "answers": {kind: dict(counts.most_common(10)) for kind, counts in sorted(self.answers.items())},
            "with_reasoning": self.with_reasoning,
            "with_evidence": self.with_evidence,
            "duration_s": self.duration_s.to_json(),
            "question_characters": self.question_characters.to_json(),
            "reasoning_characters": self.reasoning_characters.to_json(),
            "pass_rate": self.pass_rate.to_json(),
        }


def pass_rate(sample: Sample) -> float | None:
    """``metadata.pass_rate``: share of right answers among rollouts of some policy, in [0, 1]; None where the row
    says none."""
    rate = sample.metadata.get("pass_rate")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1 else None


def most(counts: Counter[str]) -> dict[str, int]:
    """The most frequent names and, as ``other``, all the rest."""
    shown = dict(counts.most_common(_MOST))
    rest = counts.total() - sum(shown.values())
    return {**shown, **({"other": rest} if rest else {})}


def quarantine_summary(examples: Iterable[Mapping[str, Any]], counts: Counter[str]) -> dict[str, Any]:
    """Number and first examples by reason."""
    summary: dict[str, Any] = {reason: {"rows": n, "examples": []} for reason, n in counts.most_common()}
    for example in examples:
        shown = summary[example["reason"]]["examples"]
        if len(shown) < 5:
            shown.append({key: example.get(key) for key in ("line", "id", "uri", "detail")})
    return summary
