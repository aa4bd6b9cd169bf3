"""How sure the numbers are: questions about one video are not independent, so whole videos are drawn and flipped.

- `cluster_mean`: a mean with the expanded percentile bootstrap over videos (Hesterberg 2015, "What Teachers Should
  Know About the Bootstrap", §5.3): percentiles are widened by sqrt(C / (C - 1)) and by t over z, without which C = 50
  videos give intervals that are about 4 % too narrow.
- `paired_difference`: two models on the same items by a sign-flip permutation test: were they equal, each video's
  difference could as well have had the other sign. The interval is that test turned round, the differences that it
  does not reject, so that test and interval never disagree (Hartigan 1969, "Using Subsample Values as Typical
  Values": its ends are quantiles of the means over random halves of the videos).
- `mcnemar_mid_p`, which ignores the videos, is for information only.

`tests/unit/components/evaluation/test_statistics.py` measures coverage and false positives by simulation."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo, computed_field
from pydantic.dataclasses import dataclass as checked

NO_DIFFERENCE = "no significant difference"
MAX_DRAWS = 2**25  # largest number of draws (resamples × videos) that is kept for the next metric: 32 MiB


def _rounded(value: float | None) -> float | None:
    """Six decimals; null for what is not bounded."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _end(unbounded: float) -> BeforeValidator:
    def read(value: Any, info: ValidationInfo) -> Any:
        if info.mode == "json" and isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be finite, or null")
        return unbounded if value is None else value

    return BeforeValidator(read)


_Finite = Annotated[float, Field(allow_inf_nan=False), PlainSerializer(_rounded)]
_Optional = Annotated[float | None, Field(allow_inf_nan=False), PlainSerializer(_rounded)]
_Low = Annotated[float, _end(-math.inf), PlainSerializer(_rounded)]
_High = Annotated[float, _end(math.inf), PlainSerializer(_rounded)]


@dataclass(frozen=True, slots=True)
class Resampling:
    """How sure numbers are to be, and the draws that say so."""

    confidence: float = 0.95  # coverage of the intervals
    resamples: int = 2000
    seed: int = 0


@checked(frozen=True, config=ConfigDict(strict=True))
class Estimate:
    """A mean over items with its interval; ``result.json`` holds it to six decimals, an end without bound as null."""

    value: _Finite
    low: _Low
    high: _High
    n: int
    """Items averaged."""


@checked(frozen=True, config=ConfigDict(strict=True))
class Difference(Estimate):
    """The mean of first − second over the items of both."""

    p_value: _Finite
    """Of the sign-flip test over videos, two-sided."""
    mcnemar_p: _Optional
    """McNemar's mid-p over items, two-sided, as if they were independent; null where scores are not 0 or 1."""
    detectable: _Optional
    """The smallest true difference that such a comparison shows in four of five cases (power 0.8)."""
    clusters: int
    """Videos."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """``higher``, ``lower`` or ``no significant difference``, at the confidence of the interval."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else NO_DIFFERENCE


def cluster_mean(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Estimate:
    """The mean of ``values`` with a bootstrap interval that resamples whole clusters.

    Args:
        values: (N,) one number per item.
        clusters: (N,) what each item belongs to (its video).
        seed: of the resampling; equal seeds and cluster counts share their draws.
        bounds: the range a value can have. Where every value lies at one end of it the bootstrap would claim
            certainty; then the interval is Wilson's for that many videos. None: no such range.

    Raises `ValueError`: no values, lengths that differ, or a value that is not finite."""
    numbers, groups, num_clusters = _grouped(values, clusters)
    mean = float(numbers.mean())
    least, most = bounds if bounds is not None else (-math.inf, math.inf)
    if mean in (least, most) and float(np.ptp(numbers)) == 0:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        margin = (most - least) * z**2 / (num_clusters + z**2)
        low, high = (mean, least + margin) if mean == least else (most - margin, mean)
        return Estimate(mean, low, high, len(numbers))
    if num_clusters < 2:
        return Estimate(mean, least, most, len(numbers))
    sums = np.bincount(groups, numbers - mean, minlength=num_clusters)
    counts = np.bincount(groups, minlength=num_clusters)
    drawn = _product(_bootstrap_draws, num_clusters, resamples, seed, np.stack([sums, counts], axis=1))
    means = (mean + drawn[:, 0] / drawn[:, 1]).clip(least, most)  # sums can leave them by a rounding error
    low, high = widened(means, num_clusters, confidence)
    return Estimate(mean, min(low, mean), max(high, mean), len(numbers))


def widened(means: np.ndarray, num_clusters: int, confidence: float) -> tuple[float, float]:
    """Ends of the expanded percentile interval of resampled means (Hesterberg 2015, §5.3)."""
    wide = t_quantile((1 + confidence) / 2, num_clusters - 1) * math.sqrt(num_clusters / (num_clusters - 1))
    tail = NormalDist().cdf(-wide)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _grouped(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray, int]:
    """Values (N,), the number of each one's cluster (N,), and how many clusters there are."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers) or len(numbers) != len(clusters):
        raise ValueError(f"expected as many values as clusters and at least one, got {numbers.shape}, {len(clusters)}")
    if not np.isfinite(numbers).all():
        raise ValueError("every value must be finite")
    index = {cluster: position for position, cluster in enumerate(dict.fromkeys(clusters))}
    groups = np.fromiter((index[cluster] for cluster in clusters), dtype=np.int64, count=len(numbers))
    return numbers, groups, len(index)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # only here, so that reading a gate's rules does not load scipy

    return float(stdtrit(degrees, probability))


Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # (generator, rows, clusters) → (rows, clusters) uint8


def _bootstrap_draws(rng: np.random.Generator, rows: int, num_clusters: int) -> np.ndarray:
    """How often each cluster was drawn: (rows, clusters)."""
    draws = rng.integers(num_clusters, size=(rows, num_clusters))
    draws += np.arange(rows)[:, None] * num_clusters
    return np.bincount(draws.ravel(), minlength=rows * num_clusters).reshape(rows, num_clusters).astype(np.uint8)


def _half_draws(rng: np.random.Generator, rows: int, num_clusters: int) -> np.ndarray:
    """Which clusters keep their sign: (rows, clusters) of 0 and 1."""
    return rng.integers(2, size=(rows, num_clusters), dtype=np.uint8)


def _blocks(draw: Draw, num_clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([seed, num_clusters])
    rows = max(1, 2**20 // num_clusters)
    for start in range(0, resamples, rows):
        yield draw(rng, min(rows, resamples - start), num_clusters)


@lru_cache(maxsize=8)
def _kept(draw: Draw, num_clusters: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(_blocks(draw, num_clusters, resamples, seed))


def _product(draw: Draw, num_clusters: int, resamples: int, seed: int, totals: np.ndarray) -> np.ndarray:
    """(resamples, K) sums of ``totals`` (clusters, K) as drawn; block by block, so that memory stays bounded."""
    keep = num_clusters * resamples <= MAX_DRAWS
    blocks = (_kept if keep else _blocks)(draw, num_clusters, resamples, seed)
    return np.concatenate([block.astype(np.float64) @ totals for block in blocks])


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Difference:
    """The mean of ``first - second`` over the same items, with a sign-flip test over clusters and its interval.

    Up to 12 clusters every pattern of signs is tried; fewer than 6 cannot show a difference at 95 %, and then the
    interval has no ends (±1 where no difference exceeds that).

    Args:
        first, second: (N,) each model's number per item.
        clusters: (N,) what each item belongs to (its video).
        resamples: patterns of signs, where there are too many to try all.
        weights: (N,) what each item counts, for scores that are means of means; None: all alike.

    Raises `ValueError`: lengths that differ, no items, or a value that is not finite."""
    if len(first) != len(second) or (weights is not None and len(weights) != len(first)):
        raise ValueError(f"paired values must have the same length, got {len(first)} and {len(second)}")
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    difference, groups, num_clusters = _grouped(one - two, clusters)
    share = np.ones(len(difference)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = float(share.sum())
    mean = float(difference @ share) / total
    sums = np.bincount(groups, (difference - mean) * share, minlength=num_clusters)
    shares = np.bincount(groups, share, minlength=num_clusters)
    if 2**num_clusters <= 4096:
        patterns = (np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters)) & 1
        kept = patterns.astype(np.float64) @ np.stack([sums, shares], axis=1)
    else:  # the pattern that was observed is one of all
        kept = _product(_half_draws, num_clusters, resamples, seed, np.stack([sums, shares], axis=1))
        kept = np.concatenate([[[0.0, 0.0]], kept])
    # Flipping the signs of one half of the videos gives at least the observed difference just where the true
    # difference lies between the means of the two halves. An empty half: everywhere.
    with np.errstate(divide="ignore", invalid="ignore"):
        halves = np.stack([kept[:, 0] / kept[:, 1], -kept[:, 0] / (total - kept[:, 1])])
    empty = (kept[:, 1] < 1e-9 * total) | (kept[:, 1] > (1 - 1e-9) * total)
    # Rounded, since ties are common (many videos differ in nothing) and must stay ties.
    lows = np.where(empty, -np.inf, np.round(mean + halves.min(axis=0), 12))
    highs = np.where(empty, np.inf, np.round(mean + halves.max(axis=0), 12))
    p_value = float(np.mean((lows <= 0) & (highs >= 0)))
    rejected = math.floor((1 - confidence) * len(lows) + 1e-9)
    widest = 1.0 if float(np.abs(difference).max()) <= 1 else math.inf
    low = max(-widest, min(mean, float(np.partition(lows, rejected)[rejected])))
    high = min(widest, max(mean, float(-np.partition(-highs, rejected)[rejected])))
    detectable = _detectable(sums / total, num_clusters, confidence)
    return Difference(mean, low, high, len(difference), p_value, mcnemar_mid_p(one, two), detectable, num_clusters)


def _detectable(sums: np.ndarray, num_clusters: int, confidence: float, power: float = 0.8) -> float | None:
    """Smallest true difference shown with this power: (t of the test + t of the power) standard errors."""
    if num_clusters < 2:
        return None
    error = math.sqrt(float(sums @ sums) * num_clusters / (num_clusters - 1))
    degrees = num_clusters - 1
    return (t_quantile((1 + confidence) / 2, degrees) + t_quantile(power, degrees)) * error


def mcnemar_mid_p(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """McNemar's mid-p for paired right-or-wrong answers (Fagerland, Lydersen, Laake 2013), two-sided. None where a
    score is neither 0 nor 1."""
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.isin(one, (0, 1)).all() and np.isin(two, (0, 1)).all()):
        return None
    gained, lost = int(((one == 1) & (two == 0)).sum()), int(((one == 0) & (two == 1)).sum())
    if gained == lost:
        return 1.0
    from scipy.special import bdtr

    changed, fewer = gained + lost, min(gained, lost)
    below = float(bdtr(fewer - 1, changed, 0.5)) if fewer else 0.0
    return 2 * below + float(bdtr(fewer, changed, 0.5)) - below


@dataclass(frozen=True, slots=True)
class Runs:
    """One metric over repeated runs: trainings with other seeds, or evaluations with a temperature."""

    mean: float
    spread: float | None  # standard deviation over the runs (unbiased variance); null for one run
    low: float | None
    high: float | None  # ends of Student's interval for the mean over runs
    runs: int


def over_runs(values: Sequence[float], confidence: float = 0.95) -> Runs:
    """Mean and spread of one metric over runs; a `ValueError` without runs, or for a value that is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError("expected one finite number per run and at least one run")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Runs(mean, None, None, None, 1)
    spread = float(numbers.std(ddof=1))
    margin = t_quantile((1 + confidence) / 2, len(numbers) - 1) * spread / math.sqrt(len(numbers))
    return Runs(mean, spread, mean - margin, mean + margin, len(numbers))
