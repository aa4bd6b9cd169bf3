import sys
from types import ModuleType

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.conditions import (
    CONDITIONS,
    NO_VIDEO,
    Condition,
    add_entries,
    choose_items,
    frame_order,
    other_videos,
    video_of,
    which_conditions,
)
from vthink.components.evaluation.config import EvaluationConfig

from .small_world import World, make_world


def test_a_shuffled_order_is_a_permutation_that_depends_on_the_key_and_the_seed_alone():
    orders = {name: frame_order(name, 8, 0).tolist() for name in map(str, range(200))}
    assert all(sorted(order) == list(range(8)) for order in orders.values())
    assert orders == {name: frame_order(name, 8, 0).tolist() for name in orders}
    assert len({tuple(order) for order in orders.values()}) > 190
    assert frame_order("1", 8, 1).tolist() != orders["1"]


@pytest.mark.parametrize("num_frames", [2, 3])
def test_a_shuffled_order_is_never_the_true_one(num_frames):
    for number in range(100):
        assert frame_order(str(number), num_frames, 0).tolist() != list(range(num_frames))


def test_one_frame_has_one_order():
    assert frame_order("x", 1, 0).tolist() == [0]


def test_every_video_gets_the_pixels_of_another_one(world: World):
    others = other_videos(world.samples, 0)
    assert set(others) == {video_of(s) for s in world.samples if s.media.kind == "video"}
    assert all(video_of(other) != video for video, other in others.items())
    assert len({video_of(other) for other in others.values()}) == len(others)


def test_conditions_that_cannot_be_asked_are_left_out_with_the_reason(world: World):
    wanted = EvaluationConfig().condition_names
    assert which_conditions(wanted, world.samples) == (["ordered", "shuffled", "other_video"], {})
    assert which_conditions([], world.samples) == (
        ["ordered"],
        {"shuffled": "switched off", "other_video": "switched off"},
    )
    assert which_conditions(wanted, make_world(videos=1).samples) == (
        ["ordered", "shuffled"],
        {"other_video": "there are fewer than two videos"},
    )
    _, left_out = which_conditions([*wanted, "blind"], make_world(videos=0).samples)
    assert left_out == dict.fromkeys(["shuffled", "other_video", "blind"], "there are no videos")


def test_the_further_conditions_are_asked_when_they_are_wanted(world: World):
    config = EvaluationConfig(conditions=("reversed", "single_frame", "blind"))
    conditions, left_out = which_conditions(config.condition_names, world.samples)
    assert conditions == ["ordered", "reversed", "single_frame", "blind"]
    assert set(left_out) == {"shuffled", "other_video"}


def test_a_limited_choice_of_items_is_random_repeatable_and_in_order(world: World):
    chosen = choose_items(world.samples, 7, 0)
    assert chosen == choose_items(world.samples, 7, 0) == sorted(chosen)
    assert len(chosen) == 7
    assert chosen != choose_items(world.samples, 7, 1)
    assert choose_items(world.samples, None, 0) == choose_items(world.samples, 999, 0) == list(range(len(world)))


def test_a_condition_changes_what_is_seen_and_nothing_else(world: World):
    clip = world.clips[0]
    before = clip.frames.copy()
    shown = {name: condition.show(clip, "key", 0) for name, condition in CONDITIONS.items()}
    assert shown["ordered"] is clip
    assert shown["other_video"] is clip  # of another one
    assert shown["blind"] is NO_VIDEO
    assert np.array_equal(shown["reversed"].frames, clip.frames[::-1])
    assert np.array_equal(shown["shuffled"].frames, clip.frames[frame_order("key", 8, 0)])
    for other in (shown["reversed"], shown["shuffled"]):
        assert np.array_equal(other.times_s, clip.times_s)
        assert (other.duration_s, other.kind) == (clip.duration_s, clip.kind)
    one = shown["single_frame"]
    assert np.array_equal(one.frames, clip.frames[4:5])
    assert (one.times_s.tolist(), one.duration_s) == ([2.0], 4.0)
    assert np.array_equal(clip.frames, before)


def test_a_condition_of_ones_own_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("my_conditions")
    module.DIM = Condition(name="dim", title="dim", description="half as bright", show=lambda clip, key, seed: clip)
    module.TWIN = Condition(name="shuffled", title="", description="", show=lambda clip, key, seed: clip)
    monkeypatch.setitem(sys.modules, "my_conditions", module)
    monkeypatch.setattr(CONDITIONS, "_entries", dict(CONDITIONS.items()))
    config = EvaluationConfig(conditions=("blind", "my_conditions:DIM"), gate=())
    assert config.condition_names == ("ordered", "blind", "dim")
    assert add_entries(CONDITIONS, ["my_conditions:DIM", "dim"]) == ("dim",)
    with pytest.raises(UserError, match="there is another condition 'shuffled'; choose another name"):
        add_entries(CONDITIONS, ["my_conditions:TWIN"])
