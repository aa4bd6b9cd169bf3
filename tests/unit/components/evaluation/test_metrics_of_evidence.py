import math

import pytest
from vthink.components.common.answers.responses import Segment
from vthink.components.common.rows.sample import Evidence
from vthink.components.evaluation.metrics import baseline_items, captioning, left_out_metrics, mean_span, union_iou

from .small_world import SEGMENT, World, graded, make_world


def captions(world: World, described: list[tuple[float, float, str]], truth: str = "a red dog runs fast"):
    evidence = (Evidence(start_s=1, end_s=3, caption=truth),)
    sample = world.samples[0].model_copy(update={"evidence": evidence})
    return captioning([Segment(start, end, caption, "") for start, end, caption in described], sample)


@pytest.mark.parametrize(
    ("described", "expected"),
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
def test_captions_are_compared_with_those_of_the_same_time(world, described, expected):
    measured = captions(world, described)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in measured.values())


def test_captions_in_other_scripts_are_compared_too(world):
    measured = captions(world, [(1, 3, "红 狗 跑")], "红 狗 跑")
    assert measured["caption_bleu_1"] == measured["caption_rouge_l"] == 1


def test_captions_that_say_nothing_are_not_compared(world):
    plain = world.samples[0]
    clues = plain.model_copy(update={"metadata": {**plain.metadata, "captioned": False}})
    assert "caption_rouge_l" in graded(plain, SEGMENT).metrics
    assert "caption_rouge_l" not in graded(clues, SEGMENT).metrics
    assert "miou" in graded(clues, SEGMENT).metrics


def test_meteor_is_measured_or_said_to_be_left_out(world):
    measured = captions(world, [(1, 3, "a red dog runs fast")])
    left_out = left_out_metrics(world.samples)
    assert ("caption_meteor" in measured) != ("caption_meteor" in left_out)
    assert all("nltk" in why for why in left_out.values())
    assert left_out_metrics(make_world(videos=0).samples) == {}


def test_baselines_are_the_whole_clip_and_the_mean_span_of_the_training_data(world):
    assert mean_span(world.samples) == (1.0, 3.0)
    assert mean_span(world.samples[-1:]) is None
    durations_s = {sample.id: 4.0 for sample in world.samples}
    baselines = baseline_items(world.samples, durations_s, (0.0, 2.0))
    assert {item.metrics["miou"] for item in baselines["whole_clip"]} == {0.5}  # 2 of 4 seconds
    assert {round(item.metrics["miou"], 6) for item in baselines["mean_training_span"]} == {0.333333}
    assert not baseline_items(world.samples[-1:], {world.samples[-1].id: 0.0}, None)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], 0),
        ([(0, 4)], [], 0),
        ([(0, 4)], [(0, 4)], 1),
        ([(0, 4), (2, 6)], [(3, 9)], 3 / 9),
        ([(1, 1)], [(1, 1)], 0),
        ([(5, 3)], [(3, 5)], 0),
        ([(0, float("nan"))], [(0, 1)], 0),
        ([(0, float("inf"))], [(0, 1)], 1),  # what has no end is cut at the last one known
    ],
)
def test_iou_of_unions(first, second, expected):
    assert union_iou(first, second) == pytest.approx(expected)
