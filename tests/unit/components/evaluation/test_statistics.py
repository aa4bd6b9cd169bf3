import itertools
import json
import math
import time

import numpy as np
import pytest
from pydantic import TypeAdapter
from vthink.components.evaluation.statistics import (
    NO_DIFFERENCE,
    Difference,
    Estimate,
    cluster_mean,
    mcnemar_mid_p,
    over_runs,
    paired_difference,
)

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


def two_models(rng: np.random.Generator, better_by: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two models that do the same on 30 % of the videos, the first better by so much on average."""
    a, b = simulate(rng, 0.6 + better_by).reshape(VIDEOS, -1), simulate(rng).reshape(VIDEOS, -1)
    shared = rng.random(VIDEOS) < 0.3
    b[shared] = a[shared]
    return a.ravel(), b.ravel()


def test_equal_models_are_called_different_5_percent_of_the_time():
    rng, false_alarms, unclustered = np.random.default_rng(2), 0, 0
    for _ in range(REPEATS):
        difference = paired_difference(*two_models(rng), CLUSTERS, resamples=1000)
        false_alarms += difference.verdict != NO_DIFFERENCE
        unclustered += difference.mcnemar_p <= 0.05
        assert (difference.p_value <= 0.05) == (difference.verdict != NO_DIFFERENCE)  # test and interval agree
    assert abs(false_alarms / REPEATS - 0.05) <= 0.015
    assert unclustered / REPEATS > 0.1  # the twin: a test that ignores the videos alarms too often


def test_intervals_of_a_difference_cover_the_truth_95_percent_of_the_time():
    rng, hits = np.random.default_rng(5), 0
    for _ in range(REPEATS):
        a, b = simulate(rng, 0.7), simulate(rng, 0.6)
        difference = paired_difference(a, b, CLUSTERS, resamples=1000)
        hits += difference.low <= 0.1 <= difference.high
    assert abs(hits / REPEATS - 0.95) <= 0.015


def test_the_detectable_difference_is_found_in_four_of_five_cases():
    rng = np.random.default_rng(6)
    sizes = [paired_difference(simulate(rng), simulate(rng), CLUSTERS).detectable for _ in range(50)]
    truth = float(np.mean(sizes))
    assert 0.1 < truth < 0.2
    found = 0
    for _ in range(400):
        a, b = simulate(rng, 0.6 + truth / 2), simulate(rng, 0.6 - truth / 2)
        found += paired_difference(a, b, CLUSTERS).verdict == "higher"
    assert abs(found / 400 - 0.8) <= 0.06
    small = sum(
        paired_difference(simulate(rng, 0.6 + truth / 8), simulate(rng, 0.6 - truth / 8), CLUSTERS).verdict == "higher"
        for _ in range(200)
    )
    assert small / 200 < 0.3


def test_few_videos_are_tried_in_every_pattern_of_signs():
    # Differences 1, 2 and 3 thirds in three videos of one item: 2 of 8 patterns reach the observed sum.
    three = paired_difference([1, 1, 1], [2 / 3, 1 / 3, 0], list("abc"))
    assert three.p_value == 0.25
    assert (three.low, three.high) == (-1.0, 1.0)
    assert three.verdict == NO_DIFFERENCE
    six = paired_difference([1.0] * 6, [0.0, 0.5, 0.4, 0.3, 0.2, 0.1], list("abcdef"))
    assert six.p_value == 2 / 64
    assert six.low > 0
    assert six.verdict == "higher"


def test_the_sign_flip_test_equals_its_definition():
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 5, size=9)
    clusters = np.repeat(np.arange(9), sizes).tolist()
    a, b = rng.integers(0, 2, size=(2, len(clusters)))
    totals = np.bincount(clusters, (a - b).astype(float))
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    expected = np.mean(np.abs(signs @ totals) >= abs(totals.sum()) - 1e-9)
    found = paired_difference(a, b, clusters)
    assert found.p_value == pytest.approx(expected)
    # The interval is the test turned round: shifting the difference to just inside its ends is not rejected.
    for shift, rejected in ((found.low + 1e-6, False), (found.low - 1e-6, True)):
        shifted = paired_difference(a - shift, b.astype(float), clusters)
        assert (shifted.p_value <= 0.05) == rejected


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 * 0.5 * 0.5**5), (8, 2, 2 * (1 + 10 + 45 / 2) / 1024), (1, 9, 12 / 1024)],
)
def test_mcnemars_mid_p_equals_the_binomial_by_hand(gained, lost, expected):
    first = [1] * gained + [0] * lost + [1, 0]
    second = [0] * gained + [1] * lost + [1, 0]
    assert mcnemar_mid_p(first, second) == pytest.approx(expected)
    assert mcnemar_mid_p([0.5], [0.0]) is None


def test_runs_have_a_mean_a_spread_and_students_interval():
    runs = over_runs([0.5, 0.6, 0.7])
    assert (runs.mean, runs.spread, runs.runs) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    margin = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees, from the table
    assert (runs.low, runs.high) == (pytest.approx(0.6 - margin), pytest.approx(0.6 + margin))
    assert over_runs([0.5]).spread is None
    with pytest.raises(ValueError, match="at least one run"):
        over_runs([])


def test_five_thousand_items_take_less_than_a_second():
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 2, size=(2, 5000)).astype(float)
    for videos in (280, 5000):
        clusters = (np.arange(5000) % videos).tolist()
        started = time.process_time()
        cluster_mean(a, clusters)
        paired_difference(a, b, clusters)
        assert time.process_time() - started < 2.0


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
    one = paired_difference([1.0, 0.0], [0.0, 0.0], ["a", "a"])
    assert (one.low, one.high, one.detectable) == (-1.0, 1.0, None)
    unbounded = paired_difference([3.0, 0.0], [0.0, 0.0], ["a", "a"])  # word error rates have no upper end
    assert math.isinf(unbounded.low)
    assert TypeAdapter(Difference).dump_python(unbounded, mode="json")["low"] is None


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1.0], []), ([float("nan")], ["a"]), ([float("inf"), 0.0], ["a", "b"])]
)
def test_nothing_to_average_and_values_that_are_not_numbers_are_refused(values, clusters):
    with pytest.raises(ValueError):
        cluster_mean(values, clusters)


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="same length"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


def test_estimates_are_rounded_for_the_result_file():
    written = TypeAdapter(Estimate).dump_python(Estimate(1 / 3, 0.1, math.inf, 7), mode="json")
    assert written == {"value": 0.333333, "low": 0.1, "high": None, "n": 7}
    assert TypeAdapter(Estimate).validate_json(json.dumps(written)) == Estimate(0.333333, 0.1, math.inf, 7)
