import math

import numpy as np
import pytest
from vthink.components.evaluation.statistics import Estimate, cluster_mean, paired_difference, t_quantile

VIDEOS, QUESTIONS, REPEATS = 50, 18, 2000
CLUSTERS = np.repeat(np.arange(VIDEOS), QUESTIONS).tolist()


def simulate(rng: np.random.Generator, mean: float = 0.6, correlation: float = 0.2) -> np.ndarray:
    """Right or wrong for 50 videos × 18 questions with the given correlation inside a video (beta-
    binomial)."""
    total = 1 / correlation - 1
    ability = rng.beta(mean * total, (1 - mean) * total, size=VIDEOS)
    return (rng.random((VIDEOS, QUESTIONS)) < ability[:, None]).astype(float).ravel()


def coverage(clusters: list[int]) -> float:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(REPEATS):
        estimate = cluster_mean(simulate(rng), clusters, resamples=1000)
        hits += estimate.low <= 0.6 <= estimate.high
    return hits / REPEATS


def test_intervals_clustered_by_video_cover_the_truth_95_percent_of_the_time():
    assert abs(coverage(CLUSTERS) - 0.95) <= 0.015


def test_intervals_that_ignore_the_videos_cover_too_rarely():
    rng, hits = np.random.default_rng(1), 0
    unclustered = list(range(VIDEOS * QUESTIONS))
    for _ in range(300):
        estimate = cluster_mean(simulate(rng), unclustered, resamples=500)
        hits += estimate.low <= 0.6 <= estimate.high
    assert hits / 300 < 0.8


def test_a_paired_difference_of_equal_models_excludes_zero_5_percent_of_the_time():
    rng, false_alarms = np.random.default_rng(2), 0
    for _ in range(REPEATS):
        shared = rng.random(VIDEOS) < 0.3  # videos on which both models do the same
        a, b = simulate(rng).reshape(VIDEOS, -1), simulate(rng).reshape(VIDEOS, -1)
        b[shared] = a[shared]
        estimate = paired_difference(a.ravel(), b.ravel(), CLUSTERS, resamples=1000)
        false_alarms += not estimate.low <= 0 <= estimate.high
    assert abs(false_alarms / REPEATS - 0.05) <= 0.015


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(3)
    a = simulate(rng)
    b = np.where(rng.random(len(a)) < 0.1, 0.0, a)  # the same answers, a tenth of them spoiled
    paired = paired_difference(a, b, CLUSTERS)
    alone = cluster_mean(a, CLUSTERS)
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_a_mean_is_over_items_not_over_videos():
    estimate = cluster_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert estimate.value == 0.75
    assert estimate.n == 4


def test_the_same_input_gives_the_same_interval_and_another_seed_another():
    values = simulate(np.random.default_rng(4))
    assert cluster_mean(values, CLUSTERS) == cluster_mean(values, CLUSTERS)
    assert cluster_mean(values, CLUSTERS) != cluster_mean(values, CLUSTERS, seed=1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certainty(value):
    few = cluster_mean([value] * 5, list("abcde"))
    many = cluster_mean([value] * 500, list(range(500)))
    assert few.value == many.value == value
    assert few.high - few.low > 0.4
    assert 0.005 < many.high - many.low < 0.01


def test_one_video_says_nothing_about_others():
    estimate = cluster_mean([1.0, 0.0, 1.0], ["a", "a", "a"])
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    unbounded = paired_difference([1.0, 0.0], [0.0, 0.0], ["a", "a"])
    assert math.isinf(unbounded.low)


@pytest.mark.parametrize(
    ("values", "clusters"),
    [([], []), ([1.0], []), ([float("nan")], ["a"]), ([float("inf"), 0.0], ["a", "b"])],
)
def test_nothing_to_average_and_values_that_are_not_numbers_are_refused(values, clusters):
    with pytest.raises(ValueError):
        cluster_mean(values, clusters)


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="same length"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


@pytest.mark.parametrize(("degrees", "expected"), [(8, 2.3060), (17, 2.1098), (49, 2.0096), (511, 1.9646)])
def test_the_t_quantile_equals_the_table(degrees, expected):
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=2e-3)


def test_estimates_are_rounded_for_the_result_file():
    assert Estimate(1 / 3, 0.1, 0.9, 7).to_dict() == {"value": 0.333333, "low": 0.1, "high": 0.9, "n": 7}
