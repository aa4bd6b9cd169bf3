import dataclasses
import json

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import registry_client
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.expressions import ExpressionError
from vthink.components.evaluation.gate import GateError, find_champion, gate, gate_uri, judge_benchmarks, read_gate
from vthink.components.evaluation.results import compare, read_benchmark
from vthink.components.evaluation.summary import conclude

from .conftest import make_world
from .test_measures import SEGMENT, rows_of
from .test_report_page import benchmark_folders

WORLD = make_world(videos=40)
NAME = "vthink"


def write_evaluation(storage: Storage, name: str, right: float, data: str = "data-1") -> str:
    """An evaluation of base and grpo in which grpo answers this share of the items rightly; its manifest's URI."""
    config = EvaluationConfig(bootstrap_resamples=200)

    def texts(share: float) -> list[str]:
        wrong = round(share * 10)
        return [
            f"{SEGMENT}<answer>{sample.answer if number % 10 < wrong else '?'}</answer>"
            for number, sample in enumerate(WORLD.samples)
        ]

    rows = {
        ("base", "ordered"): rows_of(WORLD, texts(0.2), "base"),
        ("grpo", "ordered"): rows_of(WORLD, texts(right), "grpo"),
        ("grpo", "shuffled"): rows_of(WORLD, texts(0.3), "grpo", "shuffled"),
    }
    about = {model: {"uri": f"s3://b/{model}/", "fingerprint": model} for model in ("base", "grpo")}
    result = conclude(rows, about, {}, config)
    result |= {"data": {"uri": "s3://b/d/", "fingerprint": data}, "split": "test", "settings": {"max_items": None}}
    prefix = join(storage.config.root_uri, "evaluate", name + "/")
    files = {"result": join(prefix, "result.json"), "items": join(prefix, "items.jsonl")}
    storage.write_json(files["result"], result)
    items = [json.dumps(row) for cell in rows.values() for row in cell]
    storage.write_bytes(files["items"], "\n".join(items).encode())
    return Manifest(stage="evaluate", fingerprint=name, uri=prefix, files=files).write(storage)


def put_into_service(context: RunContext, evaluation: str | None) -> str:
    client = registry_client(context.tracking, context.storage)
    if not client.search_registered_models():
        client.create_registered_model(NAME)
    tags = {"vthink.evaluation_uri": evaluation} if evaluation else {}
    version = client.create_model_version(NAME, "s3://b/model/", tags=tags).version
    client.set_registered_model_alias(NAME, "champion", version)
    return str(version)


def judged(context: RunContext, evaluation: str, *rules: str) -> tuple[str, list[str]]:
    config = EvaluationConfig(gate=rules) if rules else EvaluationConfig()
    said = gate(context.to_json(), config.to_json(), evaluation)
    return said, read_gate(Storage(context.storage), context, evaluation).details["lines"]


def test_without_a_champion_the_floors_decide(context, storage):
    said, lines = judged(context, write_evaluation(storage, "good", 0.8))
    assert said == "pass"
    assert lines[-1] == "gate passed: 3 of 3 rules hold"
    assert "there is no champion yet" in lines[2]
    said, lines = judged(context, write_evaluation(storage, "poor", 0.2))
    assert said == "fail"
    assert lines[1].startswith("FAIL  candidate.ordered.accuracy.low > base.ordered.accuracy.value  (0.")


def test_a_candidate_worse_than_the_champion_fails_and_an_equal_one_passes(context, storage):
    good, poor = write_evaluation(storage, "good", 0.8), write_evaluation(storage, "poor", 0.5)
    put_into_service(context, good)
    assert judged(context, poor)[0] == "fail"
    assert judged(context, good)[0] == "pass"


def test_a_new_champion_is_a_new_judgement(context, storage):
    good, poor = write_evaluation(storage, "good", 0.8), write_evaluation(storage, "poor", 0.5)
    assert judged(context, poor)[0] == "pass"
    first = read_gate(storage, context, poor)
    version = put_into_service(context, good)
    assert judged(context, poor)[0] == "fail"
    second = read_gate(storage, context, poor)
    assert first.fingerprint != second.fingerprint
    assert (first.details["champion"], second.details["champion"]) == (None, version)


def test_the_same_question_is_judged_once(context, storage):
    good = write_evaluation(storage, "good", 0.8)
    judged(context, good)
    first = read_gate(storage, context, good)
    judged(context, good)
    assert read_gate(storage, context, good) == first
    again = context.model_copy(update={"redo": {"gate": 1}})
    judged(again, good)
    assert read_gate(storage, again, good).fingerprint != first.fingerprint


def test_a_difference_to_the_champion_is_paired_over_the_same_items(context, storage):
    put_into_service(context, write_evaluation(storage, "before", 0.7))
    rule = "lower_bound(candidate.accuracy - champion.accuracy) > 0.02"
    said, lines = judged(context, write_evaluation(storage, "good", 0.8), rule)
    assert said == "pass"
    assert f"paired over {len(WORLD)} items" in lines[0]
    # On other data there are no pairs; the intervals overlap, so the same rule fails, and a note says why.
    said, lines = judged(context, write_evaluation(storage, "elsewhere", 0.8, data="data-2"), rule)
    assert said == "fail"
    assert "paired" not in lines[0]
    assert "note  champion version 1 was measured on other questions than this candidate" in lines


def test_pairs_by_kind_and_between_orders_of_frames(context, storage):
    good = write_evaluation(storage, "good", 0.8)
    said, lines = judged(
        context,
        good,
        "lower_bound(grpo.by_kind.direction.accuracy - base.by_kind.direction.accuracy) > 0.3",
        "lower_bound(grpo.accuracy - grpo.shuffled.accuracy) > 0.3",
        "lower_bound(grpo.accuracy - grpo.format_rate) < 0.3",
    )
    assert said == "pass"
    assert "paired over 40 items" in lines[0]
    assert f"paired over {len(WORLD)} items" in lines[1]
    assert "paired" not in lines[2]  # different metrics are no pair


def test_a_rule_about_what_was_not_measured_is_a_mistake_and_no_verdict(context, storage):
    good = write_evaluation(storage, "good", 0.8)
    with pytest.raises(ExpressionError, match=r"'grpo.ordered.by_kind.directions.accuracy' was not measured; nearest"):
        judged(context, good, "grpo.by_kind.directions.accuracy > 0.5")
    with pytest.raises(ExpressionError, match="no model 'sft' in this evaluation; it has: base, grpo, candidate"):
        judged(context, good, "grpo.accuracy > sft.accuracy")
    assert not storage.exists(gate_uri(context, good))


def test_a_champion_without_its_evaluation_is_an_error_and_not_a_pass(context, storage):
    put_into_service(context, None)
    with pytest.raises(GateError, match=r"champion version 1 of 'vthink' has no tag vthink.evaluation_uri"):
        judged(context, write_evaluation(storage, "good", 0.8))


def test_the_champion_is_found_by_its_alias(context, storage):
    assert find_champion(context) is None
    good = write_evaluation(storage, "good", 0.8)
    version = put_into_service(context, good)
    client = registry_client(context.tracking, context.storage)
    client.create_model_version(NAME, "s3://b/newer/")  # registered later, not in service
    champion = find_champion(context)
    assert (champion.version, champion.evaluation_uri) == (version, good)


def test_the_verdict_is_recorded_in_mlflow(context, storage):
    good = write_evaluation(storage, "good", 0.8)
    judged(context, good)
    run_id = read_gate(storage, context, good).mlflow_run_id
    run = registry_client(context.tracking, context.storage).get_run(run_id)
    assert run.data.tags["vthink.gate"] == "pass"
    assert run.data.tags["vthink.stage"] == "gate"
    assert run.info.status == "FINISHED"


# -- benchmarks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folders = benchmark_folders(tmp_path_factory.mktemp("results"))
    return {name: read_benchmark(folder, name) for name, folder in folders.items()}


CONFIG = EvaluationConfig(bootstrap_resamples=500)


def test_a_rule_compares_candidate_and_champion_on_a_benchmark_paired_over_its_videos(benchmarks):
    rule = "lower_bound(video_holmes.accuracy - champion.video_holmes.accuracy) > -0.01"
    models = {"candidate": [benchmarks["ours"]], "champion": [benchmarks["base"]]}
    verdict = judge_benchmarks([rule, "video_holmes.accuracy > 0.3"], models, CONFIG)
    assert verdict.passed
    low = compare(benchmarks["ours"], benchmarks["base"], "accuracy", CONFIG).low
    assert f"paired over 60 items of 30 videos, higher) = {low:.4f} > -0.01" in verdict.lines[0]
    assert verdict.lines[-1] == "gate passed: 2 of 2 rules hold"
    turned = judge_benchmarks([rule], {"candidate": [benchmarks["base"]], "champion": [benchmarks["ours"]]}, CONFIG)
    assert not turned.passed
    assert turned.lines[0].startswith("FAIL")
    assert ", lower)" in turned.lines[0]
    same = judge_benchmarks([rule], {"candidate": [benchmarks["base"]], "champion": [benchmarks["base"]]}, CONFIG)
    assert same.passed
    assert "no significant difference" in same.lines[0]
    assert "no champion yet" in judge_benchmarks([rule], {"candidate": [benchmarks["ours"]]}, CONFIG).lines[0]


def test_pairs_on_a_benchmark_by_kind_and_between_orders_of_frames(benchmarks):
    models = {"candidate": [benchmarks["ours"]], "base": [benchmarks["base"]]}
    rules = [
        "p_value(video_holmes.accuracy - video_holmes.shuffled.accuracy) < 0.05",
        "lower_bound(video_holmes.by_kind.direction.accuracy - base.video_holmes.by_kind.direction.accuracy) > 0",
    ]
    lines = judge_benchmarks(rules, models, CONFIG).lines
    assert "paired over 60 items of 30 videos" in lines[0]
    assert "paired over 30 items of 30 videos" in lines[1]


def test_answers_to_other_questions_are_not_paired_and_a_note_says_so(benchmarks):
    other = dataclasses.replace(
        benchmarks["base"], result=benchmarks["base"].result | {"settings": {"questions": "others"}}
    )
    models = {"candidate": [benchmarks["ours"]], "champion": [other]}
    rules = ["p_value(video_holmes.accuracy - champion.video_holmes.accuracy) < 0.05"]
    verdict = judge_benchmarks(rules, models, CONFIG)
    assert not verdict.passed
    assert "not measured on the same items" in verdict.lines[0]
    assert (
        "note  champion was asked other questions of video_holmes than the candidate: nothing is paired"
        in verdict.lines
    )


def test_mistakes_in_rules_about_benchmarks_are_found_before_any_is_judged(benchmarks):
    models = {"candidate": [benchmarks["ours"]]}
    for rules, said in (
        (["video_holmes.accuracy > 0.1", "mmvu.accuracy > 0.1"], "'candidate.mmvu.ordered.accuracy' was not measured"),
        (
            ["video_holmes.by_kind.directions.accuracy > 0.1"],
            "nearest: 'candidate.video_holmes.ordered.by_kind.direction",
        ),
        (["base.video_holmes.accuracy > 0.1"], "no model 'base' in this evaluation; it has: candidate"),
    ):
        with pytest.raises(ExpressionError) as failure:
            judge_benchmarks(rules, models, CONFIG)
        assert said in str(failure.value)
    with pytest.raises(GateError, match="two results of one benchmark"):
        judge_benchmarks(["video_holmes.accuracy > 0.1"], {"candidate": [benchmarks["ours"]] * 2}, CONFIG)


def test_the_set_of_ones_own_can_be_named_in_rules(benchmarks):
    own = dataclasses.replace(benchmarks["ours"], result=benchmarks["ours"].result | {"benchmark": "my set"})
    assert judge_benchmarks(["my_set.accuracy > 0.3"], {"candidate": [own]}, CONFIG).passed


def test_a_mean_of_means_is_paired_as_it_is_measured(tmp_path):
    """MVBench's mean over tasks: a task of few questions counts as much as one of many."""
    folders = benchmark_folders(tmp_path, benchmark="mvbench")
    results = []
    for name in ("ours", "base"):
        result = read_benchmark(folders[name], name)
        kept = [row for row in result.rows["ordered"] if row["kind"] == "direction" or row["video"] < "videos/008"]
        results.append(dataclasses.replace(result, rows={"ordered": kept}))

    def mean(one, kind: str | None) -> float:
        rows = [row["correct"] for row in one.rows["ordered"] if kind in (None, row["kind"])]
        return sum(rows) / len(rows)

    ours, base = results
    tasks = [mean(ours, kind) - mean(base, kind) for kind in ("direction", "how_bright")]
    found = compare(ours, base, "accuracy_by_task", CONFIG)
    assert found.value == pytest.approx(sum(tasks) / 2)
    assert found.value != pytest.approx(mean(ours, None) - mean(base, None))
    assert compare(ours, base, "accuracy", CONFIG).value == pytest.approx(mean(ours, None) - mean(base, None))
