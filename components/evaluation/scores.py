"""Figures over items: plain means, and the means of means that some benchmarks report."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .item import Item
from .metrics import metric_named
from .statistics import Estimate, Resampling, cluster_mean, widened

Part = tuple[str, str]  # a group, and a part of it


@dataclass(frozen=True, slots=True)
class Score:
    """A figure over items: a mean, or a mean of means."""

    definition: str  # in words, with the source where there are several
    value: Callable[[Item], float | None]  # what an item counts; None: it does not count here
    part: Callable[[Item], Part] | None = None
    """Items are averaged per part, parts per group, then groups. None: all items alike."""
    bounded: bool = True  # whether values are in [0, 1]

    def estimate(self, items: Sequence[Item], resampling: Resampling) -> Estimate | None:
        """The score with its interval, by bootstrap over videos; None where no item counts."""
        counted = [(item, value) for item in items if (value := self.value(item)) is not None]
        if not counted:
            return None
        values = np.array([value for _, value in counted], np.float64)
        videos = [item.video for item, _ in counted]
        parts = [self.part(item) if self.part else ("", "") for item, _ in counted]
        if len(set(parts)) == 1 or len(set(videos)) < 2 or np.ptp(values) == 0:
            return cluster_mean(values, videos, **asdict(resampling), bounds=(0.0, 1.0) if self.bounded else None)
        return _mean_of_means(values, parts, videos, resampling)

    def weights(self, items: Sequence[Item]) -> np.ndarray | None:
        """What each item counts in a mean of means, (N,); None where all count alike."""
        if self.part is None or not items:
            return None
        parts = [self.part(item) for item in items]
        counts, shares = Counter(parts), _shares(set(parts))
        return np.array([shares[part] / counts[part] for part in parts])


def _shares(parts: Iterable[Part]) -> dict[Part, float]:
    """What each part counts: all groups alike, and the parts of a group alike."""
    parts = list(parts)
    sizes = Counter(group for group, _ in parts)
    return {part: 1 / len(sizes) / sizes[part[0]] for part in parts}


def _mean_of_means(
    values: np.ndarray, items_parts: Sequence[Part], videos: Sequence[str], resampling: Resampling
) -> Estimate:
    """`cluster_mean` for a mean of group means: whole videos are drawn, and every mean is taken anew."""
    shares = _shares(dict.fromkeys(items_parts))
    parts, weights = list(shares), np.array(list(shares.values()))
    names = list(dict.fromkeys(videos))
    video_place, part_place = ({key: place for place, key in enumerate(keys)} for keys in (names, parts))
    index = ([video_place[video] for video in videos], [part_place[part] for part in items_parts])
    sums, counts = np.zeros((2, len(names), len(parts)))
    np.add.at(sums, index, values)
    np.add.at(counts, index, 1)
    rng = np.random.default_rng([resampling.seed, len(names)])
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resampling.resamples)
    with np.errstate(invalid="ignore"):
        means = draws @ sums / (draws @ counts)  # (resamples, parts); nan where a draw has nothing of a part
    present = np.isfinite(means) * weights
    drawn = (np.nan_to_num(means) * present).sum(1) / present.sum(1)
    mean = float(sums.sum(0) / counts.sum(0) @ weights)
    low, high = widened(drawn, len(names), resampling.confidence)
    return Estimate(mean, min(low, mean), max(high, mean), len(values))


def estimates(scores: Mapping[str, Score], items: Sequence[Item], resampling: Resampling) -> dict[str, Estimate]:
    """Every score that some item counts for."""
    made = {name: score.estimate(items, resampling) for name, score in scores.items()}
    return {name: estimate for name, estimate in made.items() if estimate is not None}


def metric_score(name: str) -> Score:
    """The mean of a metric over the items that have it."""
    metric = metric_named(name)
    return Score(metric.description, metric_value(name), bounded=metric.bounded)


def metric_value(name: str) -> Callable[[Item], float | None]:
    """An item's value of a metric."""
    return lambda item: item.metrics.get(name)


def accuracy(item: Item) -> float | None:
    """1 for a right answer."""
    return item.metrics.get("accuracy")


def accuracy_of_choices(item: Item) -> float | None:
    """`accuracy` of questions with options."""
    return accuracy(item) if item.problem_type == "multiple_choice" else None


def accuracy_of_open(item: Item) -> float | None:
    """`accuracy` of questions without options."""
    return None if item.problem_type == "multiple_choice" else accuracy(item)


def kind_part(item: Item) -> Part:
    """Averaged per kind of question."""
    return str(item.kind), ""


ACCURACY = Score("share of questions answered right; a failed one is wrong", accuracy)
