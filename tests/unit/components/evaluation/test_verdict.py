import dataclasses
from typing import Any

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.item import Item
from vthink.components.evaluation.models.model import ModelIdentity
from vthink.components.evaluation.results import HELD_OUT, BenchmarkResult, Cell, Result, Settings
from vthink.components.evaluation.rules import GateRule
from vthink.components.evaluation.statistics import Estimate, cluster_mean, paired_difference
from vthink.components.evaluation.summary import compare, summarize
from vthink.components.evaluation.verdict import holds, judge, results_of

from .small_world import two_models

CONFIG = EvaluationConfig(bootstrap_resamples=500)


def rule(**fields: Any) -> GateRule:
    return GateRule.load({"metric": "accuracy", **fields})


def measured(
    model: str = "m", questions: str = "q", settings: dict | None = None, **conditions: Any
) -> BenchmarkResult:
    """A model on the held-out split: per condition the values of a metric, four questions to a video, of two kinds."""
    items, cells = {}, {}
    for condition, metrics in conditions.items():
        values = metrics if isinstance(metrics, dict) else {"accuracy": metrics}
        items[condition] = [
            Item(
                id=f"q{number}",
                video=f"v{number // 4}",
                condition=condition,
                problem_type="multiple_choice",
                kind=("direction", "count")[number % 2],
                metrics={name: float(column[number]) for name, column in values.items()},
            )
            for number in range(len(next(iter(values.values()))))
        ]
        cells[condition] = summarize(items[condition], {}, CONFIG.resampling)
    about = ModelIdentity(prompt=(settings or {}).get("prompt", ""))
    more = {name: value for name, value in (settings or {}).items() if name != "prompt"}
    made = Settings(questions=questions, model=about, **more)
    result = Result.model_construct(benchmark=HELD_OUT, settings=made, conditions=cells)
    return BenchmarkResult(model, f"s3://b/{model}/", result, items)


def share(right: int, of: int = 80) -> list[float]:
    """So many of the answers are right, those with the lowest numbers."""
    return [float(number < right) for number in range(of)]


GOOD = measured(
    "good", ordered={"accuracy": share(60), "format_rate": share(76), "wer": [0.5] * 80}, shuffled=share(24)
)
POOR = measured("poor", ordered={"accuracy": share(20), "format_rate": share(76), "wer": [1.5] * 80})
MODELS = {"candidate": {HELD_OUT: GOOD}, "base": {HELD_OUT: POOR}}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"metric": "format_rate", "at_least": 0.9}, "pass  format_rate at least 0.9: 0.9500 over 80 questions"),
        ({"at_least": 0.75}, "pass  accuracy at least 0.75: 0.7500 over 80 questions"),
        ({"at_least": 0.76}, "FAIL  accuracy at least 0.76: 0.7500 over 80 questions"),
        ({"at_most": 0.75}, "pass  accuracy at most 0.75: 0.7500 over 80 questions"),
        ({"at_most": 0.74}, "FAIL  accuracy at most 0.74: 0.7500 over 80 questions"),
        ({"condition": "shuffled", "at_most": 0.5}, "pass  accuracy (shuffled) at most 0.5: 0.3000 over 80 questions"),
        ({"by_kind": "direction", "at_least": 0.7}, "pass  accuracy (kind direction) at least 0.7: 0.7500 over 40 que"),
        ({"by_type": "multiple_choice", "at_least": 0.7}, "pass  accuracy (multiple_choice) at least 0.7: 0.7500 over"),
        ({"above": 0.4}, "pass  accuracy above 0.4: 0.7500 [0.5"),
        ({"above": 0.7}, "FAIL  accuracy above 0.7: 0.7500 [0.5"),
        ({"below": 0.99}, "pass  accuracy below 0.99: 0.7500 [0.5"),
        ({"below": 0.8}, "FAIL  accuracy below 0.8: 0.7500 [0.5"),
        ({"above": "base"}, "pass  accuracy above base: 0.7500; paired difference +0.5000 [+0."),
        ({"above": "base", "by": 0.7}, "FAIL  accuracy above base by 0.7: 0.7500; paired difference +0.5000 [+0."),
        ({"below": "base"}, "FAIL  accuracy below base: 0.7500; paired difference +0.5000"),
        ({"above": "shuffled", "by": 0.1}, "pass  accuracy above shuffled by 0.1: 0.7500; paired difference +0.4500"),
        ({"condition": "shuffled", "below": "ordered"}, "pass  accuracy (shuffled) below ordered: 0.3000; paired diff"),
        ({"not_worse_than": "base", "by": 0.01}, "pass  accuracy not worse than base by 0.01: 0.7500; paired differen"),
        # Of errors fewer are better.
        ({"metric": "wer", "at_most": 0.5}, "pass  wer at most 0.5: 0.5000 over 80 questions"),
        ({"metric": "wer", "not_worse_than": "base", "by": 0.1}, "pass  wer not worse than base by 0.1: 0.5000; paire"),
        ({"metric": "wer", "below": "base"}, "pass  wer below base: 0.5000; paired difference -1.0000 [-1.0000, -1."),
    ],
)
def test_a_rule_is_judged_by_the_items_and_its_line_shows_the_numbers(fields, line):
    verdict = judge([rule(**fields)], MODELS, CONFIG)
    assert verdict.lines[0].startswith(line)
    assert verdict.passed is line.startswith("pass")


def test_a_worse_model_is_worse_in_the_direction_of_the_metric():
    turned = {"candidate": {HELD_OUT: POOR}, "base": {HELD_OUT: GOOD}}
    for metric in ("accuracy", "wer"):
        assert not judge([rule(metric=metric, not_worse_than="base", by=0.1)], turned, CONFIG).passed


def test_a_comparison_shows_how_many_questions_and_videos_it_rests_on_and_what_it_could_have_shown():
    (line, last) = judge([rule(above="base")], MODELS, CONFIG).lines
    assert line.endswith(" over 80 questions of 20 videos, higher")
    assert last == "gate passed: 1 of 1 rules hold"
    rng = np.random.default_rng(0)
    first, second = (measured(ordered=rng.integers(0, 2, 80)) for _ in range(2))
    verdict = judge([rule(above="base")], {"candidate": {HELD_OUT: first}, "base": {HELD_OUT: second}}, CONFIG)
    assert "no significant difference (detectable: 0." in verdict.lines[0]
    assert verdict.lines[-1] == "gate failed: 0 of 1 rules hold"


def test_while_there_is_no_champion_a_rule_about_it_holds_and_says_so():
    verdict = judge([rule(not_worse_than="champion", by=0.02), rule(above="champion")], MODELS, CONFIG)
    assert verdict.passed
    assert verdict.lines[0] == (
        "pass  accuracy not worse than champion by 0.02: there is no champion yet, so this holds by rule"
    )


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (measured(questions="others", ordered=share(20)), "champion was asked other questions"),
        (measured(ordered=share(2, of=4)), "fewer than two videos were asked of both"),
        (measured(ordered={"score": share(20)}), "metric 'accuracy' of champion was not measured"),
        (measured(shuffled=share(20)), "condition 'ordered' of champion was not measured"),
    ],
)
def test_a_comparison_without_pairs_fails_and_says_what_to_do(champion, reason):
    """However much better the candidate is: that it is not worse was not shown."""
    verdict = judge([rule(not_worse_than="champion", by=0.02)], MODELS | {"champion": {HELD_OUT: champion}}, CONFIG)
    assert not verdict.passed
    assert "cannot be judged: " in verdict.lines[0]
    assert reason in verdict.lines[0]
    assert verdict.lines[0].endswith("; evaluate it as the candidate was, or leave the rule out")


def test_a_champion_that_was_not_measured_on_a_benchmark_fails_the_rule_about_it():
    models = {
        "candidate": {HELD_OUT: GOOD, "mmvu": GOOD},
        "champion": {HELD_OUT: POOR},
    }
    verdict = judge([rule(benchmark="mmvu", not_worse_than="champion", by=0.02)], models, CONFIG)
    assert not verdict.passed
    assert "benchmark 'mmvu' of champion was not measured" in verdict.lines[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"by_kind": "directions", "above": 0.1},
            "kind 'directions' of candidate was not measured; did you mean 'dire",
        ),
        (
            {"by_type": "numerical", "above": 0.1},
            "problem type 'numerical' of candidate was not measured; there are: m",
        ),
        (
            {"condition": "blind", "above": 0.1},
            "condition 'blind' of candidate was not measured; there are: ordered, sh",
        ),
        ({"above": "reversed"}, "condition 'reversed' of candidate was not measured"),
        ({"metric": "miou", "above": 0.1}, "metric 'miou' of candidate was not measured; there are: accuracy, "),
        ({"benchmark": "mmvu", "above": 0.1}, "benchmark 'mmvu' of candidate was not measured; there are: none"),
        ({"above": "sft"}, "there is no model 'sft' in this evaluation; it has: base, candidate"),
    ],
)
def test_a_rule_about_what_was_not_measured_is_a_mistake_and_no_verdict(fields, reason):
    with pytest.raises(UserError, match=reason) as failure:
        judge([rule(above=0.1), rule(**fields)], MODELS, CONFIG)
    assert str(failure.value).startswith(f"rule '{rule(**fields)}': ")


@pytest.mark.parametrize(
    ("stated", "items"),
    [
        (Estimate(50.0, 0.0, 1.0, 80), None),
        (Estimate(0.76, 0.0, 1.0, 80), None),
        (Estimate(0.75, 0.0, 1.0, 81), None),
        (None, GOOD.items["ordered"][:40]),
    ],
)
def test_files_that_contradict_each_other_are_judged_by_no_rule(stated, items):
    cells = {"ordered": Cell(accuracy=stated)} if stated else GOOD.result.conditions
    changed = dataclasses.replace(
        GOOD,
        result=GOOD.result.model_copy(update={"conditions": cells}),
        items={"ordered": items or GOOD.items["ordered"]},
    )
    with pytest.raises(UserError, match=r"s3://b/good/.*result.json.* accuracy .* evaluate again"):
        judge([rule(at_least=0.5)], {"candidate": {HELD_OUT: changed}}, CONFIG)


def test_items_that_were_emptied_are_no_reason_to_compare_without_pairs():
    empty = dataclasses.replace(GOOD, items={"ordered": []})
    models = {"candidate": {HELD_OUT: GOOD}, "base": {HELD_OUT: empty}}
    with pytest.raises(UserError, match="condition 'ordered' of base was not measured"):
        judge([rule(above="base")], models, CONFIG)


def test_a_value_that_no_metric_can_have_is_refused():
    with pytest.raises(UserError, match=r"result.json: accuracy is 50, outside of 0 to 1"):
        judge([rule(at_least=0.5)], {"candidate": {HELD_OUT: measured(ordered=[50.0] * 8)}}, CONFIG)


def test_what_a_model_was_asked_with_differently_is_noted_once():
    settings = {"prompt": "compact/1", "max_new_tokens": 64, "video": {"num_frames": 8}}
    mine = measured(ordered=share(60), settings=settings)
    theirs = measured(ordered=share(20), settings=settings | {"max_new_tokens": 1024, "video": {"num_frames": 16}})
    models = {"candidate": {HELD_OUT: mine}, "champion": {HELD_OUT: theirs}}
    verdict = judge([rule(above="champion"), rule(not_worse_than="champion", by=0.1)], models, CONFIG)
    assert verdict.lines[2:] == [
        "note  champion was asked differently: video {'num_frames': 16}, not {'num_frames': 8}; max_new_tokens 1024, "
        "not 64",
        "gate passed: 2 of 2 rules hold",
    ]
    assert not judge([rule(above="champion")], {**models, "champion": {HELD_OUT: mine}}, CONFIG).notes


# -- benchmarks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks():
    return two_models()


def test_candidate_and_champion_are_compared_on_a_benchmark_over_its_videos(benchmarks):
    ours, base = (results_of([benchmarks[name]]) for name in ("ours", "base"))
    about = rule(benchmark="video-holmes", not_worse_than="champion", by=0.01)
    verdict = judge([about, rule(benchmark="video-holmes", above=0.3)], {"candidate": ours, "champion": base}, CONFIG)
    assert verdict.passed
    low = compare(benchmarks["ours"], benchmarks["base"], "accuracy", CONFIG.resampling).low
    assert f" [{low:+.4f}, " in verdict.lines[0]
    assert verdict.lines[0].endswith("over 60 questions of 30 videos, higher")
    turned = judge([about], {"candidate": base, "champion": ours}, CONFIG)
    assert turned.lines[0].startswith("FAIL")
    assert turned.lines[0].endswith(", lower")
    same = judge([about], {"candidate": base, "champion": base}, CONFIG)
    assert same.passed
    assert "paired difference +0.0000 [+0.0000, +0.0000]" in same.lines[0]


def test_pairs_on_a_benchmark_by_kind_and_between_orders_of_frames(benchmarks):
    models = {"candidate": results_of([benchmarks["ours"]]), "base": results_of([benchmarks["base"]])}
    rules = [rule(benchmark="video-holmes", above="shuffled"), rule(by_kind="direction", above="base")]
    lines = judge(rules, models, CONFIG).lines
    assert "over 60 questions of 30 videos" in lines[0]
    assert "over 30 questions of 30 videos" in lines[1]


def test_a_rule_without_a_benchmark_is_about_the_only_one_and_of_several_names_one(benchmarks):
    ours = benchmarks["ours"]
    assert judge([rule(above=0.3)], {"candidate": results_of([ours])}, CONFIG).passed
    own = dataclasses.replace(ours, result=ours.result.model_copy(update={"benchmark": "my set"}))
    both = {"candidate": results_of([ours, own])}
    assert judge([rule(above=0.3, benchmark="my set")], both, CONFIG).passed
    with pytest.raises(
        UserError, match=r"benchmark 'held-out split' of candidate was not measured; .*video-holmes, my"
    ):
        judge([rule(above=0.3)], both, CONFIG)
    with pytest.raises(UserError, match="'ours' has two results of one benchmark; give one"):
        results_of([ours, ours])


def test_a_mean_of_means_is_judged_and_paired_as_it_is_measured():
    """MVBench's mean over tasks: a task of few questions counts as much as one of many."""
    models, results = two_models(benchmark="mvbench"), []
    for name in ("ours", "base"):
        items = models[name].items["ordered"]
        kept = [item for item in items if item.kind == "direction" or item.video < "videos/008"]
        results.append(dataclasses.replace(models[name], items={"ordered": kept}))

    def mean(one, kind: str | None) -> float:
        right = [item.correct for item in one.items["ordered"] if kind in (None, item.kind)]
        return sum(right) / len(right)

    ours, base = results
    tasks = [mean(ours, kind) - mean(base, kind) for kind in ("direction", "how_bright")]
    found = compare(ours, base, "accuracy_by_task", CONFIG.resampling)
    assert found.value == pytest.approx(sum(tasks) / 2)
    assert found.value != pytest.approx(mean(ours, None) - mean(base, None))
    assert compare(ours, base, "accuracy", CONFIG.resampling).value == pytest.approx(
        mean(ours, None) - mean(base, None)
    )
    whole = models["ours"]
    lines = judge(
        [rule(metric="accuracy_by_task", benchmark="mvbench", above=0.1)], {"candidate": {"mvbench": whole}}, CONFIG
    ).lines
    assert f"{(mean(whole, 'direction') + mean(whole, 'how_bright')) / 2:.4f} [" in lines[0]


# -- how often the default rule about the champion is wrong ---------------------------------------------------

VIDEOS, QUESTIONS = 500, 8
CLUSTERS = np.repeat(np.arange(VIDEOS), QUESTIONS).tolist()


def answers(rng: np.random.Generator, worse_by: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Of a candidate and a champion, right in about 0.6 of the cases, which agree but for three answers in ten."""
    ability = rng.beta(2.4, 1.6, size=(VIDEOS, 1))
    champion, again, anew = rng.random((3, VIDEOS, QUESTIONS))
    candidate = np.where(anew < 0.3, again < ability - worse_by / 0.3, champion < ability)
    return candidate.ravel().astype(float), (champion < ability).ravel().astype(float)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_equal_models_are_rarely_refused_and_significantly_worse_ones_rarely_pass(seed):
    rng = np.random.default_rng(seed)
    default = rule(not_worse_than="champion", by=0.02)
    equal = [paired_difference(*answers(rng), CLUSTERS, resamples=400) for _ in range(100)]
    assert sum(not holds(default, difference) for difference in equal) / 100 < 0.1
    passed = unpaired = worse = 0
    for loss in (0.02, 0.025, 0.03):
        for _ in range(60):
            candidate, champion = answers(rng, loss)
            difference = paired_difference(candidate, champion, CLUSTERS, resamples=400)
            if difference.verdict == "lower":
                worse += 1
                passed += holds(default, difference)
                # The twin: what the default gate once compared, the mean with the lower end of the champion's.
                unpaired += candidate.mean() >= cluster_mean(champion, CLUSTERS, resamples=400).low
    assert worse > 150
    assert passed / worse < 0.05
    assert unpaired / worse > 0.2
