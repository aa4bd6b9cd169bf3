import dataclasses
from typing import Any

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.gate import holds, judge
from vthink.components.evaluation.item import Item
from vthink.components.evaluation.results import HELD_OUT, BenchmarkResult, ModelIdentity, Result, Settings
from vthink.components.evaluation.rules import GateRule
from vthink.components.evaluation.scores import Score, metric_score
from vthink.components.evaluation.statistics import Resampling, cluster_mean, paired_difference
from vthink.components.evaluation.summary import summarize

RESAMPLING = Resampling(resamples=500)
QUICK = Resampling(resamples=100)


def rule(**fields: Any) -> GateRule:
    return GateRule.load({"metric": "accuracy", **fields})


def measured(
    model: str = "m",
    questions: str = "q",
    benchmark: str = HELD_OUT,
    scores: dict[str, Score] | None = None,
    settings: dict[str, Any] | None = None,
    **conditions: Any,
) -> BenchmarkResult:
    """A model on a benchmark: per condition the values of metrics, four questions to a video, of two kinds."""
    items = {}
    for condition, metrics in conditions.items():
        values = metrics if isinstance(metrics, dict) else {"accuracy": metrics}
        items[condition] = [
            Item(
                id=f"q{number}",
                video=f"v{number // 4}",
                model=model,
                condition=condition,
                problem_type="multiple_choice",
                kind=("direction", "count")[number % 2],
                metrics={name: float(column[number]) for name, column in values.items()},
            )
            for number in range(len(next(iter(values.values()))))
        ]
    if scores is None:
        scores = {name: metric_score(name) for name in items["ordered"][0].metrics}
    about = {"prompt": "compact/1"} | (settings or {})
    result = Result(
        benchmark=benchmark,
        title="",
        source="",
        model=ModelIdentity(),
        headline=next(iter(scores)),
        conditions={name: summarize(cell, scores, QUICK) for name, cell in items.items()},
        items=len(items["ordered"]),
        videos=len({item.video for item in items["ordered"]}),
        settings=Settings(questions=questions, model=ModelIdentity(prompt=about.pop("prompt")), **about),
    )
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
    verdict = judge([rule(**fields)], MODELS, RESAMPLING)
    assert verdict.lines[0].startswith(line)
    assert verdict.passed is line.startswith("pass")


def test_a_worse_model_is_worse_in_the_direction_of_the_metric():
    turned = {"candidate": {HELD_OUT: POOR}, "base": {HELD_OUT: GOOD}}
    for metric in ("accuracy", "wer"):
        assert not judge([rule(metric=metric, not_worse_than="base", by=0.1)], turned, RESAMPLING).passed


def test_a_comparison_shows_how_many_questions_and_videos_it_rests_on_and_what_it_could_have_shown():
    (line, last) = judge([rule(above="base")], MODELS, RESAMPLING).lines
    assert line.endswith(" over 80 questions of 20 videos, higher")
    assert last == "gate passed: 1 of 1 rules hold"
    rng = np.random.default_rng(0)
    first, second = (measured(ordered=rng.integers(0, 2, 80)) for _ in range(2))
    verdict = judge([rule(above="base")], {"candidate": {HELD_OUT: first}, "base": {HELD_OUT: second}}, RESAMPLING)
    assert "no significant difference (detectable: 0." in verdict.lines[0]
    assert verdict.lines[-1] == "gate failed: 0 of 1 rules hold"


def test_while_there_is_no_champion_a_rule_about_it_holds_and_says_so():
    verdict = judge([rule(not_worse_than="champion", by=0.02), rule(above="champion")], MODELS, RESAMPLING)
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
    ],
)
def test_a_comparison_without_pairs_fails_and_says_what_to_do(champion, reason):
    """However much better the candidate is: that it is not worse was not shown."""
    verdict = judge([rule(not_worse_than="champion", by=0.02)], MODELS | {"champion": {HELD_OUT: champion}}, RESAMPLING)
    assert not verdict.passed
    assert "cannot be judged: " in verdict.lines[0]
    assert reason in verdict.lines[0]
    assert verdict.lines[0].endswith("; evaluate champion as the candidate, or leave the rule out")


def test_a_champion_that_was_not_measured_on_a_benchmark_fails_the_rule_about_it():
    models = {
        "candidate": {HELD_OUT: GOOD, "mmvu": GOOD},
        "champion": {HELD_OUT: POOR},
    }
    verdict = judge([rule(benchmark="mmvu", not_worse_than="champion", by=0.02)], models, RESAMPLING)
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
        ({"benchmark": "mmvu", "above": 0.1}, "benchmark 'mmvu' of candidate was not measured; there are: held-out"),
        ({"above": "sft"}, "there is no model 'sft' in this evaluation; it has: candidate, base"),
    ],
)
def test_a_rule_about_what_was_not_measured_is_a_mistake_and_no_verdict(fields, reason):
    with pytest.raises(UserError, match=reason) as failure:
        judge([rule(above=0.1), rule(**fields)], MODELS, RESAMPLING)
    assert str(failure.value).startswith(f"rule '{rule(**fields)}': ")


def with_stated(result: BenchmarkResult, **changes: Any) -> BenchmarkResult:
    """The same with other numbers in ``result.json``."""
    cell = result.result.conditions["ordered"]
    stated = dataclasses.replace(cell.scores["accuracy"], **changes)
    cells = {"ordered": cell.model_copy(update={"scores": {"accuracy": stated}})}
    return dataclasses.replace(result, result=result.result.model_copy(update={"conditions": cells}))


@pytest.mark.parametrize(
    "changed",
    [
        with_stated(GOOD, value=50.0),
        with_stated(GOOD, value=0.76),
        with_stated(GOOD, n=81),
        dataclasses.replace(GOOD, items={"ordered": GOOD.items["ordered"][:40]}),
    ],
)
def test_files_that_contradict_each_other_are_judged_by_no_rule(changed):
    with pytest.raises(UserError, match=r"s3://b/good/: for accuracy \(ordered\) result.json says .*; evaluate again"):
        judge([rule(at_least=0.5)], {"candidate": {HELD_OUT: changed}}, RESAMPLING)


def test_items_that_were_emptied_are_no_reason_to_compare_without_pairs():
    empty = dataclasses.replace(GOOD, items={"ordered": []})
    models = {"candidate": {HELD_OUT: GOOD}, "base": {HELD_OUT: empty}}
    with pytest.raises(UserError, match="condition 'ordered' of base was not measured"):
        judge([rule(above="base")], models, RESAMPLING)


def test_a_value_that_no_metric_can_have_is_refused():
    with pytest.raises(UserError, match=r"accuracy \(ordered\) is 50, outside of 0 to 1"):
        judge([rule(at_least=0.5)], {"candidate": {HELD_OUT: measured(ordered=[50.0] * 8)}}, RESAMPLING)


def test_what_a_model_was_asked_with_differently_is_noted_once():
    settings = {"prompt": "compact/1", "max_new_tokens": 64, "video": {"num_frames": 8}}
    mine = measured(ordered=share(60), settings=settings)
    theirs = measured(
        ordered=share(20), settings={"prompt": "video_r1/1", "max_new_tokens": 1024, "video": {"num_frames": 16}}
    )
    models = {"candidate": {HELD_OUT: mine}, "champion": {HELD_OUT: theirs}}
    verdict = judge([rule(above="champion"), rule(not_worse_than="champion", by=0.1)], models, RESAMPLING)
    assert verdict.lines[2:] == [
        "note  champion was asked differently: video {'num_frames': 16}, not {'num_frames': 8}; max_new_tokens 1024, "
        "not 64; prompt video_r1/1, not compact/1",
        "gate passed: 2 of 2 rules hold",
    ]
    assert not judge([rule(above="champion")], {**models, "champion": {HELD_OUT: mine}}, RESAMPLING).notes


def test_a_mean_of_means_is_judged_and_paired_as_it_is_measured():
    """MVBench's mean over tasks: a task of few questions counts as much as one of many."""
    rng = np.random.default_rng(1)

    def result(name: str, chance: dict[str, float]) -> BenchmarkResult:
        values = [rng.random() < chance[("direction", "count")[number % 2]] for number in range(80)]
        whole = measured(name, benchmark="mvbench", scores=dict(BENCHMARKS.get("mvbench").scores), ordered=values)
        kept = [item for item in whole.items["ordered"] if item.kind == "direction" or item.video in ("v0", "v1")]
        cells = {"ordered": summarize(kept, BENCHMARKS.get("mvbench").scores, QUICK)}
        return dataclasses.replace(
            whole, items={"ordered": kept}, result=whole.result.model_copy(update={"conditions": cells})
        )

    def mean(result: BenchmarkResult, *kinds: str) -> float:
        return float(np.mean([item.correct for item in result.items["ordered"] if item.kind in kinds]))

    ours, base = result("ours", {"direction": 0.9, "count": 0.5}), result("base", {"direction": 0.3, "count": 0.5})
    by_task, plain = (rule(metric=name, benchmark="mvbench", above="base") for name in ("accuracy_by_task", "accuracy"))
    lines = judge([by_task, plain], {"candidate": {"mvbench": ours}, "base": {"mvbench": base}}, RESAMPLING).lines
    tasks = [(mean(ours, kind), mean(base, kind)) for kind in ("direction", "count")]
    difference = sum(first - second for first, second in tasks) / 2
    assert f": {sum(first for first, _ in tasks) / 2:.4f}; paired difference {difference:+.4f} [" in lines[0]
    both = ("direction", "count")
    assert f": {mean(ours, *both):.4f}; paired difference {mean(ours, *both) - mean(base, *both):+.4f} [" in lines[1]
    assert abs(difference - (mean(ours, *both) - mean(base, *both))) > 0.05


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
