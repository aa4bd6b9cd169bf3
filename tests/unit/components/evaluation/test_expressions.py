import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vthink.components.common.config import ConfigError
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.expressions import BENCHMARKS as RULE_BENCHMARKS
from vthink.components.evaluation.expressions import (
    METRICS,
    SCORES,
    ExpressionError,
    MetricPath,
    check_asked,
    check_measured,
    judge,
    parse,
)
from vthink.components.evaluation.statistics import Difference, Estimate


def estimate(value: float, margin: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - margin, "high": value + margin, "n": 100}


MODELS = {
    "base": {
        "ordered": {"accuracy": estimate(0.25), "wer": estimate(1.2)},
        "shuffled": {"accuracy": estimate(0.24)},
    },
    "candidate": {
        "ordered": {
            "accuracy": estimate(0.75),
            "format_rate": estimate(0.98, 0.01),
            "by_kind": {"direction": {"accuracy": estimate(0.8)}},
        },
        "shuffled": {"accuracy": estimate(0.3)},
        "video_holmes": {
            "ordered": {"accuracy": estimate(0.5), "by_kind": {"TCI": {"accuracy": estimate(0.6)}}},
            "shuffled": {"accuracy": estimate(0.35)},
        },
        "vsi_bench": {"ordered": {"overall": estimate(0.4)}},
    },
}
MODELS["base"]["video_holmes"] = {"ordered": {"accuracy": estimate(0.3)}}
CHAMPION = {"champion": {"ordered": {"accuracy": estimate(0.7)}}}


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("candidate.ordered.accuracy.low > base.ordered.accuracy.value", True),
        ("candidate.accuracy.low > base.accuracy", True),  # frames and part left out
        ("candidate.ordered.by_kind.direction.accuracy.value >= 0.8", True),
        ("candidate.accuracy.value - candidate.shuffled.accuracy.value >= 0.25", True),
        ("candidate.accuracy > 0.9", False),
        ("not candidate.accuracy > 0.9", True),
        ("0.5 < candidate.accuracy < 0.9", True),
        ("0.5 < candidate.accuracy < 0.7", False),
        ("candidate.accuracy > 0.9 or candidate.format_rate.low > 0.9", True),
        ("candidate.accuracy > 0.9 and candidate.format_rate.low > 0.9", False),
        ("lower_bound(candidate.accuracy) > 0.69", True),
        ("lower_bound(candidate.accuracy) > 0.71", False),
        ("lower_bound(candidate.accuracy - base.accuracy) > 0.39", True),  # 0.70 - 0.30 without pairs
        ("lower_bound(candidate.accuracy - base.accuracy) > 0.41", False),
        ("lower_bound(candidate.accuracy * 2 - 1) > 0.39", True),
        ("lower_bound(-base.wer) > -1.26", True),
        ("lower_bound(abs(base.accuracy - 1)) > 0.69", True),
        ("min(candidate.accuracy, base.accuracy) < 0.3", True),
        ("max(candidate.accuracy, base.accuracy, 0.1) > 0.7", True),
        ("candidate.accuracy.value / base.accuracy.value == 3", True),
        ("candidate.accuracy.n != 3", True),
        ("(candidate.accuracy - 0.5) * 2 > 0.4", True),
        ("candidate.accuracy / 0 > 1", False),
        ("video_holmes.accuracy > 0.4", True),  # of the candidate
        ("candidate.video_holmes.accuracy - base.video_holmes.accuracy > 0.15", True),
        ("video_holmes.shuffled.accuracy < 0.4", True),
        ("video_holmes.by_kind.TCI.accuracy.low > 0.5", True),
        ("vsi_bench.overall > 0.3", True),
        ("upper_bound(candidate.accuracy) < 0.81", True),
        ("upper_bound(candidate.accuracy) < 0.79", False),
    ],
)
def test_rules_are_judged_by_the_numbers(rule, holds):
    assert judge(parse(rule), MODELS).passed is holds


@pytest.mark.parametrize(
    "rule",
    [
        "candidate.accuracy / (base.accuracy.n - 100) > 1",
        "not candidate.accuracy / (base.accuracy.n - 100) > 1",
        "not lower_bound(candidate.accuracy / (base.accuracy - 0.25) - 1e308 * 10) > 1",
        "candidate.accuracy > 0.5 and not 1e308 * 10 - 1e308 * 10 > 1",
    ],
)
def test_a_rule_that_cannot_be_computed_fails_even_negated(rule):
    finding = judge(parse(rule), MODELS)
    assert not finding.passed
    assert "cannot be computed" in finding.explanation


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('true') == 0",
        "().__class__.__bases__ == 1",
        "(lambda: 1)() > 0",
        "[x for x in (1,)] == 1",
        "open('/etc/passwd') > 0",
        "candidate.__class__ > 0",
        "candidate.accuracy.__class__ > 0",
        "candidate['accuracy'] > 0",
        "(x := 1) > 0",
        "f'{1}' > 0",
        "1 if 1 > 0 else 2 > 1",
        "max(*[1, 2]) > 0",
        "max(1, 2, key=abs) > 0",
        "abs.__call__(1) > 0",
        "2 ** 99999999 > 0",
        "1 << 99999 > 0",
        "'a' * 99999999 > 0",
        "1e999 > 0",
        "9" * 400 + " > 0",
        "1j > 0",
        "True > 0",
        "None > 0",
        "1 in 2",
        "1 is 1",
        "await x > 0",
        "-" * 490 + "1 > (",
        "(" * 300 + "1" + ")" * 300 + " > 0",
        "1 > 0; import os",
        "1 > 0\nimport os\n",
        "\x00 > 1",
    ],
)
def test_nothing_but_the_language_is_accepted(attack):
    with pytest.raises(ExpressionError) as failure:
        parse(attack)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("candidate.acuracy > 0.5", "did you mean 'accuracy'?"),
        ("gpro.accuracy > 0.5", "did you mean 'grpo'?"),
        ("grpo.ordred.accuracy > 0.5", "did you mean 'ordered'?"),
        ("grpo.accuracy.lwo > 0.5", "did you mean 'low'?"),
        ("lowerbound(grpo.accuracy) > 0.5", "did you mean 'lower_bound'?"),
        ("grpo.accuracy", "a rule compares something"),
        ("0.5", "a rule compares something"),
        ("grpo > 0.5", "names no metric"),
        ("grpo.by_kind > 0.5", "ends before"),
        ("grpo.accuracy.low.low > 0.5", "goes on after"),
        ("lower_bound(grpo.accuracy.value) > 0", "leave out .value"),
        ("lower_bound(0.5) > 0", "takes a metric"),
        ("abs(1, 2) > 0", "one argument"),
        ("min(1) > 0", "two arguments"),
        ("(grpo.accuracy > 0.5) + 1 > 1", "where a number is needed"),
        ("grpo.accuracy and 1 > 0", "join comparisons"),
        ("not grpo.accuracy", "negates a comparison"),
        ("grpo.accuracy >", "invalid syntax"),
        ("1 > " + "1" * 600, "longer than"),
        ("video_holme.accuracy > 0.5", "did you mean 'video_holmes'?"),
        ("grpo.video_holms.accuracy > 0.5", "did you mean 'video_holmes'?"),
        ("vsi_bench.overal > 0.3", "did you mean 'overall'?"),
        ("grpo.overall > 0.3", "unknown metric 'overall'"),  # a score of benchmarks only
        ("video_holmes > 0.3", "names no metric"),
        ("p_value(grpo.accuracy) < 0.05", "difference of one metric"),
        ("p_value(grpo.accuracy - base.miou) < 0.05", "difference of one metric"),
        ("p_value(grpo.accuracy - grpo.accuracy) < 0.05", "difference of one metric"),
        ("p_value(grpo.accuracy - mmvu.accuracy) < 0.05", "difference of one metric"),
        ("p_value(grpo.accuracy.low - base.accuracy.low) < 0.05", "difference of one metric"),
        ("upper_bound(0.5) > 0", "takes a metric"),
        ("grpo.accuracy > 50", "this can never hold: 'grpo.accuracy' is between 0 and 1 and '50' is 50"),
        ("grpo.accuracy > 50", "metrics are fractions: 0.5, not 50"),
        ("grpo.accuracy > 1", "this can never hold"),
        ("grpo.accuracy >= 0", "this can never fail"),
        (
            "grpo.accuracy - base.accuracy > 1",
            "this can never hold: 'grpo.accuracy - base.accuracy' is between -1 and 1",
        ),
        ("lower_bound(grpo.accuracy - base.accuracy) >= -1", "this can never fail"),
        ("grpo.accuracy != 2", "this can never fail"),
        ("grpo.accuracy == 1.5", "this can never hold"),
        ("abs(grpo.accuracy - 0.5) > 0.5", "this can never hold"),
        ("min(grpo.accuracy, 0.2) > 0.3", "this can never hold"),
        ("p_value(grpo.accuracy - base.accuracy) < 0", "this can never hold"),
        ("grpo.accuracy.n > 0", "this can never fail"),
        ("grpo.accuracy > base.accuracy.n", "this can never hold"),
        ("0.1 < grpo.accuracy < 1.5", "this can never fail"),
        ("grpo.accuracy > grpo.accuracy", "is compared with itself"),
        ("1 > 2", "this can never hold"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(rule, said):
    with pytest.raises(ExpressionError, match="rule '") as failure:
        parse(rule)
    assert said in str(failure.value)


def test_a_mistake_in_a_gate_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigError, match=r"run.yaml: 'gate': .*did you mean 'accuracy'"):
        EvaluationConfig.load({"gate": ["grpo.acuracy > 0.5"]}, "run.yaml")


def test_the_default_gate_has_floors_for_format_and_for_accuracy_above_base():
    rules = " ".join(EvaluationConfig().gate)
    assert "format_rate" in rules
    assert "candidate.ordered.accuracy.low > base.ordered.accuracy.value" in rules


@pytest.mark.parametrize(
    ("rule", "nearest"),
    [
        ("candidate.by_kind.directions.accuracy > 0.5", "candidate.ordered.by_kind.direction.accuracy"),
        ("candidate.other_video.accuracy < 0.4", "ordered.accuracy"),
        ("base.ordered.miou > 0.4", "base.ordered"),
    ],
)
def test_a_metric_that_was_not_measured_is_named_with_the_nearest_one(rule, nearest):
    with pytest.raises(ExpressionError, match="was not measured") as failure:
        check_measured(parse(rule), MODELS)
    assert nearest in str(failure.value)


def test_a_champion_that_was_not_measured_on_a_benchmark_is_an_error_that_says_what_to_do():
    with pytest.raises(ExpressionError, match="was not measured; evaluate the version in service with this benchmark"):
        check_measured(parse("video_holmes.accuracy > champion.video_holmes.accuracy"), MODELS | CHAMPION)


def test_a_model_that_was_not_evaluated_is_named():
    with pytest.raises(ExpressionError, match="no model 'sft' in this evaluation; it has: base, candidate"):
        check_measured(parse("sft.accuracy > 0.1"), MODELS)


def test_the_verdict_shows_the_rule_and_its_numbers():
    passed = judge(parse("candidate.ordered.accuracy.low > base.ordered.accuracy.value"), MODELS)
    assert str(passed) == ("pass  candidate.ordered.accuracy.low > base.ordered.accuracy.value  (0.7000 > 0.2500)")
    failed = judge(parse("lower_bound(candidate.accuracy - base.accuracy) > 0.45 and base.accuracy > 0.1"), MODELS)
    assert "FAIL" in str(failed)
    assert "(lower_bound(0.7500 - 0.2500) = 0.4000 > 0.45) and (0.2500 > 0.1)" in str(failed)


@pytest.mark.parametrize(
    ("rule", "without", "with_champion"),
    [
        ("candidate.accuracy >= champion.accuracy.low", True, True),
        ("candidate.accuracy > champion.accuracy + 0.1", True, False),
        ("not candidate.accuracy > champion.accuracy + 0.1", True, True),
        ("not candidate.accuracy > champion.accuracy", True, False),
        ("candidate.accuracy > 0.9 and candidate.accuracy > champion.accuracy", False, False),
        ("candidate.accuracy > 0.9 or candidate.accuracy > champion.accuracy + 0.1", True, False),
        ("candidate.accuracy > 0.5 and candidate.accuracy > champion.accuracy + 0.1", True, False),
        ("0.9 < candidate.accuracy < champion.accuracy", False, False),
        ("lower_bound(max(candidate.accuracy, 0) - champion.accuracy) > 0.5", True, False),
        ("abs(-champion.accuracy) > 0.9", True, False),
    ],
)
def test_a_rule_that_hangs_on_a_missing_champion_is_satisfied_and_says_so(rule, without, with_champion):
    check_measured(parse(rule), MODELS)
    first = judge(parse(rule), MODELS)
    assert first.passed is without
    if without:
        assert "there is no champion yet" in first.explanation
    later = judge(parse(rule), MODELS | CHAMPION)
    assert later.passed is with_champion
    assert "no champion" not in later.explanation


def test_a_difference_of_two_metrics_is_paired_where_items_are_shared():
    asked = []

    def pair(first: MetricPath, second: MetricPath) -> Estimate:
        asked.append((str(first), str(second)))
        return Estimate(0.5, 0.45, 0.55, 87)

    finding = judge(parse("lower_bound(candidate.accuracy - base.accuracy) > 0.44"), MODELS, pair)
    assert finding.passed
    assert "paired over 87 items" in finding.explanation
    assert asked == [("candidate.ordered.accuracy", "base.ordered.accuracy")]
    unpaired = judge(parse("lower_bound(candidate.accuracy - base.accuracy) > 0.44"), MODELS, lambda *_: None)
    assert not unpaired.passed


@pytest.mark.parametrize(
    "rule", ["grpo.wer < 3", "grpo.accuracy.n > 500", "grpo.accuracy / base.accuracy > 2", "grpo.accuracy * 2 > 1.5"]
)
def test_what_can_hold_and_can_fail_is_a_rule(rule):
    assert parse(rule).text == rule


def test_a_p_value_is_that_of_the_paired_test_and_fails_without_pairs():
    shown = Difference(0.5, 0.45, 0.55, 87, 0.012, None, 0.04, 30)
    rule = parse("p_value(candidate.accuracy - base.accuracy) < 0.05")
    finding = judge(rule, MODELS, lambda *_: shown)
    assert finding.passed
    assert "p_value(0.7500 - 0.2500 = 0.5000 paired over 87 items of 30 videos, higher) = 0.0120 < 0.05" in str(finding)
    alone = judge(rule, MODELS, lambda *_: None)
    assert not alone.passed
    assert "not measured on the same items" in alone.explanation


def test_no_significant_difference_is_said_in_words():
    shown = Difference(0.01, -0.02, 0.04, 87, 0.4, 0.5, 0.04, 30)
    finding = judge(parse("lower_bound(candidate.accuracy - base.accuracy) > -0.05"), MODELS, lambda *_: shown)
    assert finding.passed
    assert "no significant difference" in finding.explanation


def test_an_end_that_no_interval_has_bounds_nothing():
    models = {"candidate": {"ordered": {"wer": {"value": 0.5, "low": None, "high": None, "n": 3}}}}
    assert not judge(parse("lower_bound(candidate.wer) > 0.01"), models).passed
    assert not judge(parse("candidate.wer.high < 3"), models).passed


def test_a_rule_about_a_benchmark_that_is_not_asked_is_found_beforehand():
    rule = parse("video_holmes.accuracy > 0.4")
    with pytest.raises(ExpressionError, match="benchmark 'video_holmes' will not be evaluated; evaluated are: none"):
        check_asked(rule, ["base"], ["ordered"])
    check_asked(rule, ["base"], ["ordered"], ["video_holmes"])


def test_the_names_of_benchmarks_and_scores_are_those_that_are_evaluated():
    assert {name.replace("-", "_") for name in BENCHMARKS} == set(RULE_BENCHMARKS)
    scores = {score for benchmark in BENCHMARKS.values() for score in benchmark.scores}
    assert scores - set(METRICS) == set(SCORES)


def test_spaces_and_line_breaks_do_not_matter():
    assert parse(" candidate.accuracy\n   > 0.5 ").text == "candidate.accuracy > 0.5"


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_rule_or_a_one_line_error(text):
    try:
        rule = parse(text)
    except ExpressionError as error:
        message = str(error)
    else:
        message = ""
        with contextlib.suppress(ExpressionError):
            judge(rule, MODELS)
    assert "\n" not in message
