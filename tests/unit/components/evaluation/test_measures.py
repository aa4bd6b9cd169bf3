import math
import random
from collections import defaultdict

import pytest
from vthink.components.common.answers.grading import grade
from vthink.components.common.answers.responses import Segment
from vthink.components.common.rows.sample import Evidence
from vthink.components.evaluation.answers import Answer
from vthink.components.evaluation.captions import captioning, left_out_metrics
from vthink.components.evaluation.conditions import other_videos
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.grade import grade_answer
from vthink.components.evaluation.grounding import baseline_items, mean_span
from vthink.components.evaluation.summary import compare, conclude, flat_metrics, items_table, result_table, summarize

from .conftest import World, look, make_world

SEGMENT = "<time>00:01-00:03</time><caption>it changes</caption><think>so</think>"


def row(sample, text, model="grpo", frames="ordered", error=None):
    return grade_answer(sample, Answer(sample.id, text, error=error), model, frames, "video_thinker")


def rows_of(world: World, texts, model="grpo", frames="ordered"):
    return [row(sample, text, model, frames) for sample, text in zip(world.samples, texts, strict=True)]


def by_id(world: World):
    return {sample.id: sample for sample in world.samples}


@pytest.mark.parametrize(
    ("item", "text", "expected"),
    [
        (
            "v000-direction",
            f"{SEGMENT}<answer>A</answer>",
            {
                "accuracy": 1,
                "accuracy_paper": 1,
                "score": 1,
                "format_rate": 1,
                "format_video_r1": 0,
                "miou": 1,
                "recall_at_70": 1,
            },
        ),
        (
            "v000-direction",
            "<think>hm</think><answer>B</answer>",
            {"accuracy": 0, "format_rate": 0, "format_video_r1": 1, "format_video_thinker": 0, "miou": 0},
        ),
        (
            "v000-direction",
            "<time>00:02-00:03</time><caption>late</caption><think>so</think><answer>(A)</answer>",
            {"accuracy": 1, "accuracy_paper": 0, "miou": 0.5, "recall_at_30": 1, "recall_at_50": 1, "recall_at_70": 0},
        ),
        ("v000-start", "<answer>20</answer>", {"accuracy": 1, "score": 1, "mra": 1}),
        ("v000-start", "<answer>16</answer>", {"accuracy": 0, "score": 0.8, "mra": 0.6}),  # relative error 0.2
        ("v000-start", "I cannot tell", {"accuracy": 0, "score": 0, "mra": 0}),
        ("i000", "<answer>seven up</answer>", {"accuracy": 1, "wer": 0}),
        ("i000", "<answer>seven down</answer>", {"accuracy": 0, "score": 0.5, "wer": 0.5}),
        ("i000", "", {"accuracy": 0, "wer": 1}),
    ],
)
def test_an_item_has_the_metrics_computed_by_hand(world, item, text, expected):
    metrics = row(by_id(world)[item], text)["metrics"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_an_item_has_only_the_metrics_of_its_type(world):
    assert "mra" not in row(by_id(world)["i000"], "")["metrics"]
    assert "miou" not in row(by_id(world)["v000-start"], "")["metrics"]


def test_a_failed_item_counts_as_wrong_in_every_metric(world):
    failed = row(by_id(world)["v000-direction"], "", error="OSError: damaged")
    assert not failed["correct"]
    assert set(failed["metrics"].values()) == {0.0}
    assert failed["error"] == "OSError: damaged"
    config = EvaluationConfig()
    cell = rows_of(world, [look(s, c) for s, c in zip(world.samples, world.clips, strict=True)])
    before, after = summarize(cell, config), summarize([failed, *cell[1:]], config)
    assert after["accuracy"]["n"] == before["accuracy"]["n"] == len(world)
    assert after["accuracy"]["value"] == pytest.approx(before["accuracy"]["value"] - 1 / len(world), abs=1e-6)
    assert after["failed"] == 1


@pytest.mark.parametrize(
    "text", ["\x00" * 10, "<answer>" * 5000, "9" * 100_000, "a " * 100_000, "<time>9:99-0:0</time>"]
)
def test_a_hostile_response_is_graded_and_not_fatal(world, text):
    for sample in world.samples[:2] + world.samples[-1:]:
        graded = row(sample, f"<answer>{text}</answer>")
        assert not graded["correct"]
        assert all(value == value for value in graded["metrics"].values())


def test_accuracy_equals_an_independent_count_over_many_answers():
    world, rng = make_world(videos=120, images=20), random.Random(0)
    answers = [rng.choice(["A", "B", "20", "200", "seven up", "seven", ""]) for _ in world.samples]
    cell = rows_of(world, [f"<answer>{answer}</answer>" for answer in answers])
    summary = summarize(cell, EvaluationConfig(bootstrap_resamples=100))
    right = defaultdict(list)
    for sample, answer in zip(world.samples, answers, strict=True):
        right[sample.problem_type].append(answer == sample.answer)
        right["all"].append(answer == sample.answer)
    assert len(answers) > 200
    assert summary["accuracy"]["value"] == pytest.approx(sum(right["all"]) / len(answers), abs=1e-6)
    for kind in ("multiple_choice", "regression", "ocr"):
        found = summary["by_type"][kind]["accuracy"]
        assert found["value"] == pytest.approx(sum(right[kind]) / len(right[kind]), abs=1e-6)
        assert found["n"] == len(right[kind])
    scores = [grade(sample, answer) for sample, answer in zip(world.samples, answers, strict=True)]
    assert summary["score"]["value"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_kinds_get_names_that_a_gate_rule_can_hold(world):
    cell = rows_of(world, [""] * len(world))
    assert set(summarize(cell, EvaluationConfig())["by_kind"]) == {"direction", "how_bright"}


def test_baselines_are_the_whole_clip_and_the_mean_span_of_the_training_data(world):
    assert mean_span(world.samples) == (1.0, 3.0)
    assert mean_span(world.samples[-1:]) is None
    found = baseline_items(world.samples, [4.0] * len(world), (0.0, 2.0))
    assert {item["metrics"]["miou"] for item in found["whole_clip"]} == {0.5}  # 2 of 4 seconds
    assert {round(item["metrics"]["miou"], 6) for item in found["mean_training_span"]} == {0.333333}
    assert not baseline_items(world.samples[-1:], [0.0], None)


def test_a_comparison_is_paired_by_item(world):
    config = EvaluationConfig()
    good = rows_of(world, [f"<answer>{s.answer}</answer>" for s in world.samples])
    bad = rows_of(world, ["<answer>no</answer>"] * len(world), model="base")
    assert compare(good, bad[::-1], "accuracy", config).value == 1.0
    only = compare(good, bad[:8], "accuracy", config)
    assert only.n == 8
    assert compare(good, bad[:2], "accuracy", config) is None  # one video
    assert compare(good, bad, "rouge", config) is None


def outcome(world: World, say, model, frames):
    others = other_videos(world.samples, 0)
    texts = []
    for index, sample in enumerate(world.samples):
        shown = index if frames == "ordered" else others.get(sample.media.uri, index)
        texts.append(say(sample, world.clips[shown]))
    return rows_of(world, texts, model, frames)


def test_conclusions_hold_models_comparisons_candidate_and_failures(world):
    config = EvaluationConfig(bootstrap_resamples=200)
    blind = lambda sample, clip: "<answer>A</answer>"  # noqa: E731
    rows = {
        ("base", "ordered"): outcome(world, blind, "base", "ordered"),
        ("base", "other_video"): outcome(world, blind, "base", "other_video"),
        ("grpo", "ordered"): outcome(world, look, "grpo", "ordered"),
        ("grpo", "other_video"): outcome(world, look, "grpo", "other_video"),
    }
    rows["grpo", "ordered"][0]["error"] = "broken"
    about = {name: {"uri": f"s3://b/{name}/", "fingerprint": name} for name in ("base", "grpo")}
    result = conclude(rows, about, {}, config)
    assert result["candidate"] == "grpo"
    assert result["failed"] == [{"id": "v000-direction", "model": "grpo", "frames": "ordered", "error": "broken"}]
    assert result["models"]["grpo"]["uri"] == "s3://b/grpo/"
    direction = {(c["first"], c["second"]): c for c in result["comparisons"] if c["kind"] == "direction"}
    assert direction["grpo.ordered", "base.ordered"]["low"] > 0
    # The control: a model that looks falls with another video's pixels, one that guesses does not.
    assert direction["grpo.ordered", "grpo.other_video"]["low"] > 0
    assert direction["base.ordered", "base.other_video"]["value"] == 0

    metrics = flat_metrics(result)
    assert metrics["evaluation/grpo/ordered/accuracy"] == result["models"]["grpo"]["ordered"]["accuracy"]["value"]
    assert "evaluation/grpo/ordered/accuracy/multiple_choice" in metrics
    assert "evaluation/grpo/other_video/accuracy/kind_direction" in metrics
    table = result_table(result)
    assert len(set(map(len, table.values()))) == 1
    assert len(table["model"]) == len(metrics)
    assert len(items_table(rows)["id"]) == 4 * len(world)


# -- captions --------------------------------------------------------------------------------------------------


def captions(world: World, said: list[tuple[float, float, str]], truth: str = "a red dog runs fast"):
    evidence = (Evidence(start_s=1, end_s=3, caption=truth),)
    sample = world.samples[0].model_copy(update={"evidence": evidence})
    return captioning([Segment(start, end, caption, "") for start, end, caption in said], sample)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(1, 3, "A red dog runs fast.")], {"caption_rouge_l": 1, "caption_bleu_1": 1, "caption_bleu_4": 1}),
        # 3 of 5 words, 3 of 3: F = 2·1·0.6/1.6; BLEU with the brevity penalty exp(1 − 5/3)
        ([(1, 3, "a red dog")], {"caption_rouge_l": 0.75, "caption_bleu_1": math.exp(1 - 5 / 3)}),
        ([(1, 3, "fast runs dog red a")], {"caption_rouge_l": 0.2, "caption_bleu_1": 1}),  # the order counts
        ([(1, 3, "")], {"caption_rouge_l": 0, "caption_bleu_1": 0, "caption_bleu_4": 0}),
        ([], {"caption_rouge_l": 0, "caption_bleu_1": 0, "caption_bleu_4": 0}),
        ([(5, 9, "a red dog runs fast")], {"caption_rouge_l": 0, "caption_bleu_1": 0}),  # of another time
        ([(0, 9, "a cat"), (1, 2, "a red dog runs fast")], {"caption_rouge_l": 1}),  # the nearest in time
        ([(1, 3, "a " * 100_000)], {"caption_rouge_l": pytest.approx(0.002, abs=0.01)}),
    ],
)
def test_captions_are_compared_with_those_of_the_same_time(world, said, expected):
    found = captions(world, said)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in found.values())


def test_captions_in_other_scripts_are_compared_too(world):
    found = captions(world, [(1, 3, "红 狗 跑")], "红 狗 跑")
    assert found["caption_bleu_1"] == found["caption_rouge_l"] == 1


def test_captions_that_say_nothing_are_not_compared(world):
    plain = world.samples[0]
    clues = plain.model_copy(update={"metadata": {**plain.metadata, "captioned": False}})
    assert "caption_rouge_l" in row(plain, SEGMENT)["metrics"]
    assert "caption_rouge_l" not in row(clues, SEGMENT)["metrics"]
    assert "miou" in row(clues, SEGMENT)["metrics"]


def test_meteor_is_measured_or_said_to_be_left_out(world):
    found = captions(world, [(1, 3, "a red dog runs fast")])
    said = left_out_metrics(world.samples)
    assert ("caption_meteor" in found) != ("caption_meteor" in said)
    assert all("nltk" in why for why in said.values())
    assert left_out_metrics(make_world(videos=0).samples) == {}
