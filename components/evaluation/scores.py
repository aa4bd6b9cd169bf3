"""Figures that a benchmark reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from .grade import Row
from .statistics import Estimate, cluster_mean, t_quantile

if TYPE_CHECKING:
    from .config import EvaluationConfig


@dataclass(frozen=True, slots=True)
class Score:
    """A figure that a benchmark reports: a mean over items, or a mean of means."""

    definition: str
    """In words, with the source where there are several."""
    value: Callable[[Row], float | None]
    """The item's value in [0, 1]; None: it does not count here."""
    cell: Callable[[Row], tuple[str, str]] | None = None
    """(group, part): items are averaged per part, parts per group, then groups. None: all items alike."""

    def estimate(self, rows: Sequence[Row], config: EvaluationConfig) -> Estimate | None:
        """The score with its interval, by bootstrap over videos; None where no item counts."""
        counted = [(row, value) for row in rows if (value := self.value(row)) is not None]
        if not counted:
            return None
        values = np.array([value for _, value in counted], np.float64)
        videos = [row["video"] for row, _ in counted]
        cells = [self.cell(row) if self.cell else ("", "") for row, _ in counted]
        if len(set(cells)) == 1 or len(set(videos)) < 2 or np.ptp(values) == 0:
            return cluster_mean(
                values,
                videos,
                confidence=config.confidence,
                resamples=config.bootstrap_resamples,
                seed=config.seed,
            )
        return _mean_of_means(values, cells, videos, config)


def _mean_of_means(
    values: np.ndarray, cells: Sequence[tuple[str, str]], videos: Sequence[str], config: EvaluationConfig
) -> Estimate:
    """`cluster_mean` for a mean of group means: whole videos are drawn, and every mean is taken anew."""
    parts = list(dict.fromkeys(cells))
    groups = list(dict.fromkeys(group for group, _ in parts))
    weights = np.array([1 / len(groups) / sum(other == group for other, _ in parts) for group, _ in parts])
    names = list(dict.fromkeys(videos))
    where = {video: place for place, video in enumerate(names)}, {part: place for place, part in enumerate(parts)}
    index = ([where[0][video] for video in videos], [where[1][cell] for cell in cells])
    sums, counts = np.zeros((2, len(names), len(parts)))
    np.add.at(sums, index, values)
    np.add.at(counts, index, 1)
    rng = np.random.default_rng([config.seed, len(names)])
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), config.bootstrap_resamples)
    with np.errstate(invalid="ignore"):
        means = draws @ sums / (draws @ counts)  # (resamples, parts); nan where a draw has nothing of a part
    present = np.isfinite(means) * weights
    drawn = (np.nan_to_num(means) * present).sum(1) / present.sum(1)
    mean = float(sums.sum(0) / counts.sum(0) @ weights)
    # Widened as in `cluster_mean` (Hesterberg 2015, §5.3).
    wide = t_quantile((1 + config.confidence) / 2, len(names) - 1) * math.sqrt(len(names) / (len(names) - 1))
    tail = NormalDist().cdf(-wide)
    low, high = (float(q) for q in np.quantile(drawn, [tail, 1 - tail]))
    return Estimate(mean, min(low, mean), max(high, mean), len(values))


def score_all(
    scores: Mapping[str, Score], rows: Sequence[Row], config: EvaluationConfig
) -> dict[str, dict[str, float]]:
    """Every score of a benchmark that some item counts for, as ``result.json`` holds it."""
    estimates = {name: score.estimate(rows, config) for name, score in scores.items()}
    return {name: estimate.to_dict() for name, estimate in estimates.items() if estimate is not None}
