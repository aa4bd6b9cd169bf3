import pytest
from vthink.components.evaluation.measure import answer_of
from vthink.components.evaluation.scores import ACCURACY
from vthink.components.evaluation.statistics import Resampling
from vthink.components.evaluation.summary import summarize

from .small_world import SEGMENT, World, graded, items_of, look


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
    metrics = graded(by_id(world)[item], text).metrics
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_an_item_has_only_the_metrics_of_its_type(world):
    assert "mra" not in graded(by_id(world)["i000"], "").metrics
    assert "miou" not in graded(by_id(world)["v000-start"], "").metrics


def test_a_failed_item_counts_as_wrong_in_every_metric(world):
    failed = graded(by_id(world)["v000-direction"], "", error="OSError: damaged")
    assert not failed.correct
    assert set(failed.metrics.values()) == {0.0}
    assert failed.error == "OSError: damaged"
    items = items_of(world, [look(s, c) for s, c in zip(world.samples, world.clips, strict=True)])
    scores, resampling = {"accuracy": ACCURACY}, Resampling(resamples=200)
    before, after = summarize(items, scores, resampling), summarize([failed, *items[1:]], scores, resampling)
    assert after.metrics["accuracy"].n == before.metrics["accuracy"].n == len(world)
    lost = before.metrics["accuracy"].value - after.metrics["accuracy"].value
    assert lost == pytest.approx(1 / len(world), abs=1e-6)
    assert after.failed == 1


@pytest.mark.parametrize(
    "text", ["\x00" * 10, "<answer>" * 5000, "9" * 100_000, "a " * 100_000, "<time>9:99-0:0</time>"]
)
def test_a_hostile_response_is_graded_and_not_fatal(world, text):
    for sample in world.samples[:2] + world.samples[-1:]:
        item = graded(sample, f"<answer>{text}</answer>")
        assert not item.correct
        assert all(value == value for value in item.metrics.values())


def test_an_item_holds_the_answer_from_which_it_is_graded_again(world):
    item = graded(world.samples[0], f"{SEGMENT}<answer>A</answer>")
    assert graded(world.samples[0], answer_of(item).text) == item
    assert (item.value, item.score, item.correct, item.format, item.outcome) == (1.0, 1.0, True, True, "right")
