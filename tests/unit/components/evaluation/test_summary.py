import json
import random
from collections import defaultdict

import pytest
from vthink.components.common.answers.grading import grade
from vthink.components.evaluation.conditions import other_videos
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.scores import ACCURACY, metric_score
from vthink.components.evaluation.statistics import Resampling
from vthink.components.evaluation.summary import (
    difference_of_items,
    flat_metrics,
    grounding_sentence,
    item_traces,
    items_table,
    result_table,
    summarize,
)

from .small_world import SEGMENT, World, items_of, look, make_world, result_of, stage_result

RESAMPLING = Resampling(resamples=200)


def test_accuracy_equals_an_independent_count_over_many_answers():
    world, rng = make_world(videos=120, images=20), random.Random(0)
    answers = [rng.choice(["A", "B", "20", "200", "seven up", "seven", ""]) for _ in world.samples]
    cell = items_of(world, [f"<answer>{answer}</answer>" for answer in answers])
    summary = summarize(cell, {}, Resampling(resamples=100))
    right = defaultdict(list)
    for sample, answer in zip(world.samples, answers, strict=True):
        right[sample.problem_type].append(answer == sample.answer)
        right["all"].append(answer == sample.answer)
    assert len(answers) > 200
    assert summary.metrics["accuracy"].value == pytest.approx(sum(right["all"]) / len(answers), abs=1e-6)
    for kind in ("multiple_choice", "regression", "ocr"):
        estimate = summary.by_type[kind]["accuracy"]
        assert estimate.value == pytest.approx(sum(right[kind]) / len(right[kind]), abs=1e-6)
        assert estimate.n == len(right[kind])
    words = {("regression", text): "7" for text in ("seven", "seven up")}  # numbers are read in words, too
    scores = [
        grade(sample, words.get((sample.problem_type, answer), answer))
        for sample, answer in zip(world.samples, answers, strict=True)
    ]
    assert summary.metrics["score"].value == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_kinds_get_names_that_a_gate_rule_can_hold(world):
    cell = items_of(world, [""] * len(world))
    assert set(summarize(cell, {}, Resampling(resamples=100)).by_kind) == {"direction", "how_bright"}


def test_a_comparison_is_paired_by_item(world):
    good = items_of(world, [f"<answer>{s.answer}</answer>" for s in world.samples])
    bad = items_of(world, ["<answer>no</answer>"] * len(world), model="base")
    assert difference_of_items(good, bad[::-1], ACCURACY, RESAMPLING).value == 1.0
    assert difference_of_items(good, bad[:8], ACCURACY, RESAMPLING).n == 8
    assert difference_of_items(good, bad[:2], ACCURACY, RESAMPLING) is None  # one video
    assert difference_of_items(good, bad, metric_score("rouge"), RESAMPLING) is None


def outcome(world: World, answer, model, condition):
    others = other_videos(world.samples, 0)
    texts = []
    for sample, clip in zip(world.samples, world.clips, strict=True):
        other = others.get(sample.media.uri)
        shown = clip if condition == "ordered" or other is None else world.clips[world.samples.index(other)]
        texts.append(answer(sample, shown))
    return items_of(world, texts, model, condition)


def test_conclusions_hold_models_comparisons_candidate_and_failures(world, config):
    items = {
        model: {name: outcome(world, answer, model, name) for name in ("ordered", "other_video")}
        for model, answer in (("base", lambda sample, clip: "<answer>A</answer>"), ("grpo", look))
    }
    items["grpo"]["ordered"][0] = items["grpo"]["ordered"][0].model_copy(update={"error": "broken"})
    results = [result_of(world, items[model], model, config) for model in items]
    result = stage_result(results, config)
    assert result.candidate == "grpo"
    (failed,) = result.failed
    assert (failed.id, failed.model, failed.condition, failed.error) == ("v000-direction", "grpo", "ordered", "broken")
    assert result.models["grpo"].uri == "s3://b/grpo/"
    direction = {(c.first, c.second): c for c in result.comparisons if c.kind == "direction"}
    assert direction["grpo.ordered", "base.ordered"].low > 0
    # The control: a model that looks falls with another video's pixels, one that guesses does not.
    assert direction["grpo.ordered", "grpo.other_video"].low > 0
    assert direction["base.ordered", "base.other_video"].value == 0
    reliance = results[1].result.reliance["other_video"]
    assert reliance == difference_of_items(
        items["grpo"]["ordered"], items["grpo"]["other_video"], ACCURACY, config.resampling
    )


def test_spans_that_are_as_good_with_another_videos_pixels_show_as_nothing(world, config):
    items = {
        name: items_of(world, [f"{SEGMENT}<answer>A</answer>"] * len(world), "grpo", name)
        for name in ("ordered", "other_video")
    }
    result = stage_result([result_of(world, items, "grpo", config)], config)
    assert result.models["grpo"].conditions["other_video"].metrics["miou"].value == 1.0
    (grounding,) = (c for c in result.comparisons if c.metric == "miou")
    assert (grounding.second, grounding.value, grounding.verdict) == (
        "grpo.other_video",
        0.0,
        "no significant difference",
    )


def test_metrics_tables_and_traces_hold_every_number_and_item(world, config):
    items = {
        model: {name: items_of(world, [text] * len(world), model, name) for name in ("ordered", "other_video")}
        for model, text in (("base", "<answer>A</answer>"), ("grpo", "<answer>B</answer>"))
    }
    result = stage_result([result_of(world, cells, model, config) for model, cells in items.items()], config)
    metrics = flat_metrics(result)
    stated = result.models["grpo"].conditions["ordered"]
    assert metrics["evaluation/grpo/ordered/accuracy"] == stated.metrics["accuracy"].value
    assert (
        metrics["evaluation/grpo/ordered/accuracy/multiple_choice"]
        == stated.by_type["multiple_choice"]["accuracy"].value
    )
    assert "evaluation/grpo/other_video/accuracy/kind_direction" in metrics
    table = result_table(result)
    assert len(set(map(len, table.values()))) == 1
    assert len(table["model"]) == len(metrics)
    everything = [item for cells in items.values() for cell in cells.values() for item in cell]
    assert len(items_table(everything)["id"]) == 4 * len(world)
    assert set(items_table(everything)["frames"]) == {"ordered", "other_video"}
    traces = item_traces(items["grpo"]["ordered"], 3, 0)
    assert [trace.tags["vthink.outcome"] for trace in traces].count("failed") == 0
    assert len(traces) == 3
    json.dumps([[dict(trace.inputs), dict(trace.outputs)] for trace in traces])


def test_spans_that_are_as_good_with_another_videos_pixels_were_not_found_in_the_video():
    """An mIoU of 1 shows as nothing where it is 1 without the video, too."""
    world, config = make_world(videos=20, images=0), EvaluationConfig(bootstrap_resamples=200)
    seen = [SEGMENT + "<answer>A</answer>"] * len(world)
    unseen = ["<answer>A</answer>"] * len(world)
    same, found = (
        result_of(world, {name: items_of(world, texts, "grpo", name) for name, texts in cells.items()}, "grpo", config)
        for cells in ({"ordered": seen, "other_video": seen}, {"ordered": seen, "blind": unseen})
    )
    assert grounding_sentence(same, RESAMPLING) == (
        "Spans of grpo: +0.00 [+0.00, +0.00] mIoU beyond what it has with another video's pixels (mIoU 1.00): "
        "nothing shows that they were found in the video."
    )
    sentence = grounding_sentence(found, RESAMPLING)
    assert sentence.startswith("Spans of grpo: +1.00 [")
    assert sentence.endswith("mIoU beyond what it has without the video (mIoU 1.00).")
    alone = result_of(world, {"ordered": items_of(world, seen)}, "grpo", config)
    assert grounding_sentence(alone, RESAMPLING) is None
