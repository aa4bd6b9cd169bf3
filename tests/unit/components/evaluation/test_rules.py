from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vthink.components.common.config import ConfigError
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.metrics import METRICS
from vthink.components.evaluation.rules import GateRule, check_evaluated, read_rule


def rule(**fields: Any) -> GateRule:
    return GateRule.load({"metric": "accuracy", **fields})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"metric": "format_rate", "at_least": 0.9}, "format_rate at least 0.9"),
        ({"at_least": 1}, "accuracy at least 1"),
        ({"at_most": 0.5, "condition": "shuffled"}, "accuracy (shuffled) at most 0.5"),
        ({"above": 0}, "accuracy above 0"),
        ({"below": 0.3, "condition": "other_video"}, "accuracy (other_video) below 0.3"),
        ({"metric": "wer", "at_most": 3}, "wer at most 3"),
        ({"above": "base"}, "accuracy above base"),
        ({"above": "sft", "by_kind": "direction"}, "accuracy (kind direction) above sft"),
        ({"above": "blind", "by": 0.05}, "accuracy above blind by 0.05"),
        ({"below": "ordered", "condition": "shuffled"}, "accuracy (shuffled) below ordered"),
        ({"not_worse_than": "champion", "by": 0.02}, "accuracy not worse than champion by 0.02"),
        (
            {"not_worse_than": "base", "by": 0.01, "benchmark": "video-holmes", "by_type": "multiple_choice"},
            "accuracy (video-holmes, multiple_choice) not worse than base by 0.01",
        ),
        ({"metric": "overall", "benchmark": "vsi-bench", "above": 0.3}, "overall (vsi-bench) above 0.3"),
        ({"metric": "anything", "benchmark": "my-own", "above": 0.3}, "anything (my-own) above 0.3"),
    ],
)
def test_a_rule_reads_as_a_sentence_and_is_written_as_it_was(fields, text):
    read = rule(**fields)
    assert str(read) == text
    assert read.model_dump(mode="json") == {"metric": "accuracy", **fields}
    assert read_rule(read.model_dump(mode="json"), "again") == read


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": "acuracy", "above": 0.5}, "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ({"metric": "zzz", "above": 0.5}, "unknown metric 'zzz'; there are: accuracy, "),
        ({"metric": "overall", "above": 0.3}, "unknown metric 'overall'"),  # a score of benchmarks only
        ({"metric": "overal", "benchmark": "vsi-bench", "above": 0.3}, "did you mean 'overall'?"),
        ({"condition": "ordred", "above": 0.3}, "unknown condition 'ordred'; did you mean 'ordered'?"),
        ({"above": "sfd"}, "unknown model or condition 'sfd'; did you mean 'sft'?"),
        ({"above": "champoin"}, "did you mean 'champion'?"),
        ({"not_worse_than": "blind", "by": 0.1}, "unknown model or condition 'blind'; there are: base, sft, champion"),
        ({"metrc": "accuracy", "above": 0.5}, "unknown key 'metrc'; did you mean 'metric'?"),
        ({"abvoe": 0.5}, "unknown key 'abvoe'; did you mean 'above'?"),
        ({}, "exactly one of at_least, at_most, above, below, not_worse_than; it has none"),
        ({"above": 0.5, "at_least": 0.4}, "it has at_least, above"),
        ({"above": 0.5, "by_kind": "a", "by_type": "b"}, "leave one out"),
        (
            {"at_least": 50},
            "at_least 50 holds or fails whatever is measured, since accuracy is between 0 and 1; metrics are fr",
        ),
        ({"at_least": 0}, "holds or fails whatever is measured"),
        ({"at_least": -1}, "holds or fails whatever is measured"),
        ({"at_most": 1}, "holds or fails whatever is measured"),
        ({"at_most": -0.1}, "holds or fails whatever is measured"),
        ({"above": 1}, "holds or fails whatever is measured"),
        ({"above": -0.1}, "holds or fails whatever is measured"),
        ({"below": 0}, "holds or fails whatever is measured"),
        ({"below": 1.5}, "holds or fails whatever is measured"),
        ({"metric": "wer", "at_least": 0}, "holds or fails whatever is measured, since wer is 0 or more"),
        ({"above": True}, "'above': expected a number, a model or a condition"),
        ({"above": [0.5]}, "'above': expected a number, a model or a condition"),
        ({"above": float("nan")}, "finite"),
        ({"at_least": float("inf")}, "finite"),
        ({"at_least": "0.5"}, "valid number"),
        ({"at_least": True}, "valid number"),
        ({"above": "base", "by": 1}, "'by'"),
        ({"above": "base", "by": -0.1}, "'by'"),
        ({"above": 0.5, "by": 0.1}, "'by' belongs to a comparison with a model or condition"),
        ({"not_worse_than": "champion"}, "needs a margin, such as by: 0.02"),
        ({"above": "ordered"}, "accuracy under 'ordered' is compared with itself"),
        ({"above": "shuffled", "condition": "shuffled"}, "compared with itself"),
    ],
)
def test_a_mistake_in_a_rule_is_one_line_that_names_it(fields, reason):
    data = fields if "metrc" in fields else {"metric": "accuracy", **fields}
    with pytest.raises(ConfigError) as failure:
        read_rule(data, "rules.yaml")
    assert reason in str(failure.value)
    assert str(failure.value).startswith("rules.yaml: ")
    assert "\n" not in str(failure.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["base", "blind", "accuracy", ""]),
    lambda inner: st.lists(inner, max_size=2),
)
fields_of_rules = st.sampled_from([*GateRule.model_fields, "other"])


@given(st.dictionaries(fields_of_rules, json_values, max_size=5) | json_values | st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_for_a_rule_is_one_or_a_one_line_error(data):
    message = ""
    try:
        read = read_rule(data, "x")
        assert read_rule(read.model_dump(mode="json"), "x") == read
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_every_metric_and_every_score_of_a_benchmark_can_be_named():
    for name in METRICS:
        assert rule(metric=name, above=0.5).metric == name
    for benchmark, about in BENCHMARKS.items():
        for score in about.scores:
            assert rule(metric=score, benchmark=benchmark, above=0.5).benchmark == benchmark


@pytest.mark.parametrize(
    ("fields", "evaluated", "reason"),
    [
        (
            {"above": "sft"},
            {"models": ["base", "grpo"]},
            "model 'sft' will not be evaluated; evaluated are: base, grpo",
        ),
        ({"above": "sft"}, {"models": ["base", "sft"]}, "sft is the candidate itself; leave the rule out"),
        ({"above": "sft"}, {"models": ["base", "sft", "grpo"]}, None),
        ({"above": "champion"}, {"models": ["base", "sft"]}, None),
        (
            {"above": "blind"},
            {"conditions": ["ordered"]},
            "condition 'blind' will not be evaluated; evaluated are: ord",
        ),
        ({"condition": "blind", "above": 0.3}, {"conditions": ["ordered"]}, "condition 'blind' will not be evaluated"),
        ({"benchmark": "mmvu", "above": 0.3}, {"benchmarks": ["mvbench"]}, "benchmark 'mmvu' will not be evaluated"),
        ({"benchmark": "mmvu", "above": 0.3}, {"benchmarks": []}, "evaluated are: none"),
        ({"benchmark": "mmvu", "above": 0.3}, {"benchmarks": ["mmvu"]}, None),
        # Benchmarks are asked with frames in order, whatever the held-out split is asked with.
        (
            {"benchmark": "mmvu", "above": "shuffled"},
            {"benchmarks": ["mmvu"], "conditions": ["ordered", "shuffled"]},
            "condition 'shuffled' will not be evaluated; evaluated are: ordered",
        ),
    ],
)
def test_what_will_not_be_evaluated_is_found_before_anything_runs(fields, evaluated, reason):
    if reason is None:
        check_evaluated([rule(**fields)], **evaluated)
        return
    with pytest.raises(ValueError, match=reason) as failure:
        check_evaluated([rule(**fields)], **evaluated)
    assert str(failure.value).startswith(f"rule '{rule(**fields)}': ")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gate": [{"metric": "acuracy", "above": 0.5}]}, "'gate.0': unknown metric 'acuracy'; did you mean"),
        ({"gate": [{"metrc": "accuracy", "above": 0.5}]}, "unknown key 'gate.0.metrc'; did you mean 'metric'?"),
        ({"gate": [{"metric": "accuracy", "above": "blind"}]}, "condition 'blind' will not be evaluated"),
        ({"gate": [{"metric": "accuracy", "benchmark": "mmvu", "above": 0.3}]}, "benchmark 'mmvu' will not be evalu"),
        ({"gate": [{"metric": "accuracy", "benchmark": "mmvuu", "above": 0.3}]}, "benchmark 'mmvuu' will not be eval"),
        ({"gate": ["candidate.accuracy > 0.1"]}, "write {metric: accuracy, above: base} or"),
        ({"gate": "candidate.accuracy > 0.1"}, "write {metric: accuracy, above: base} or"),
        ({"gate": 3}, "'gate'"),
    ],
)
def test_a_mistake_in_a_gate_is_a_mistake_in_the_configuration(settings, reason):
    with pytest.raises(ConfigError) as failure:
        EvaluationConfig.load(settings, "run.yaml")
    assert reason in str(failure.value)


def test_a_gate_travels_as_json_and_may_name_what_the_configuration_evaluates():
    gate = [{"metric": "accuracy", "above": "blind"}, {"metric": "accuracy", "benchmark": "mmvu", "at_least": 0.3}]
    config = EvaluationConfig.load({"conditions": ["blind"], "benchmarks": {"mmvu": "sets/mmvu"}, "gate": gate})
    assert EvaluationConfig.load(config.to_json()) == config
    assert config.model_dump(mode="json")["gate"] == gate


def test_the_default_gate_asks_for_format_a_gain_over_base_and_no_loss_against_the_champion():
    assert list(map(str, EvaluationConfig().gate)) == [
        "format_rate at least 0.9",
        "accuracy above base",
        "accuracy not worse than champion by 0.02",
    ]


@pytest.mark.parametrize("expression", ["candidate.accuracy > sft.accuracy", "-" * 400 + "1 > 0", ""])
def test_an_expression_as_rules_once_were_is_answered_with_the_form_of_rules(expression):
    with pytest.raises(ConfigError, match=r"write \{metric: accuracy, above: base\} or"):
        read_rule(expression, "rules.yaml")
    with pytest.raises(ConfigError, match=r"write \{metric: accuracy, above: base\} or") as failure:
        EvaluationConfig.load({"gate": [expression]})
    assert "\n" not in str(failure.value)
