import pytest
from vthink.components.evaluation.grounding import baseline_items, mean_span, union_iou


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
