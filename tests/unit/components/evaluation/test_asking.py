import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.evaluation.answers import answer_all
from vthink.components.evaluation.ask import ask, by_video
from vthink.components.evaluation.conditions import (
    NO_VIDEO,
    choose_items,
    conditions,
    frame_order,
    other_videos,
    under,
    video_of,
)
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.journal import Journal

from .conftest import Model, World, make_world


def journal(storage: Storage, name: str = "answers/") -> Journal:
    return Journal(storage, join(storage.config.root_uri, name))


def test_a_shuffled_order_is_a_permutation_that_depends_on_the_sample_and_the_seed_alone():
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
    assert all(video_of(world.samples[index]) != video for video, index in others.items())
    assert len({video_of(world.samples[index]) for index in others.values()}) == len(others)


def test_conditions_that_cannot_be_asked_are_left_out_with_the_reason(world: World):
    assert set(conditions(EvaluationConfig(), world.samples).values()) == {None}
    without = conditions(EvaluationConfig(shuffled=False, other_video_control=False, gate=()), world.samples)
    assert without == {"ordered": None, "shuffled": "switched off", "other_video": "switched off"}
    one = conditions(EvaluationConfig(), make_world(videos=1).samples)
    assert one["other_video"] == "there are fewer than two videos"
    assert one["shuffled"] is None
    assert conditions(EvaluationConfig(), make_world(videos=0).samples)["shuffled"] == "there are no videos"


def test_a_limited_choice_of_items_is_random_repeatable_and_in_order(world: World):
    chosen = choose_items(world.samples, 7, 0)
    assert chosen == choose_items(world.samples, 7, 0) == sorted(chosen)
    assert len(chosen) == 7
    assert chosen != choose_items(world.samples, 7, 1)
    assert choose_items(world.samples, None, 0) == choose_items(world.samples, 999, 0) == list(range(len(world)))


def test_shuffled_frames_are_the_same_frames_in_another_order(world: World, config, storage):
    ordered, shuffled = Model(), Model()
    indices = [i for i, s in enumerate(world.samples) if s.media.kind == "video"]
    ask(world, indices, "ordered", lambda: ordered, journal(storage, "a/"), config)
    ask(world, indices, "shuffled", lambda: shuffled, journal(storage, "b/"), config)
    for index in indices:
        name = world.samples[index].id
        order = frame_order(name, 8, config.seed)
        assert not np.array_equal(ordered.seen[name], shuffled.seen[name])
        assert np.array_equal(ordered.seen[name][order], shuffled.seen[name])


def test_the_control_shows_another_video_and_the_same_one_to_all_questions_about_a_video(world, config, storage):
    model = Model()
    indices = [i for i, s in enumerate(world.samples) if s.media.kind == "video"]
    ask(world, indices, "other_video", lambda: model, journal(storage), config)
    for index in indices:
        sample = world.samples[index]
        assert not np.array_equal(model.seen[sample.id], world.clips[index].frames)
    assert np.array_equal(model.seen["v000-direction"], model.seen["v000-start"])


def test_an_item_that_fails_is_recorded_and_touches_no_other(world, config, storage):
    model = Model(fail_on=frozenset({"v001-start"}))
    healthy = ask(world, range(len(world)), "ordered", Model, journal(storage, "a/"), config)
    answers = ask(world, range(len(world)), "ordered", lambda: model, journal(storage, "b/"), config)
    failed = [answer for answer in answers if answer.error]
    assert [answer.id for answer in failed] == ["v001-start"]
    assert failed[0].error == "RuntimeError: cannot answer v001-start"
    assert [a for a in answers if not a.error] == [a for a in healthy if a.id != "v001-start"]


def test_a_video_that_cannot_be_read_fails_alone(world, config, storage):
    world.clips[2] = OSError("damaged")
    answers = ask(world, range(len(world)), "ordered", Model, journal(storage), config)
    assert {answer.id: answer.error for answer in answers if answer.error} == {"v001-direction": "OSError: damaged"}
    assert len(answers) == len(world)


def test_a_machine_that_fails_everything_is_not_taken_for_a_bad_model(world, config, storage):
    everything = Model(fail_on=frozenset(sample.id for sample in world.samples))
    kept = journal(storage)
    with pytest.raises(UserError, match="all 10 items of a batch failed"):
        ask(world, range(len(world)), "ordered", lambda: everything, kept, config.model_copy(update={"batch_size": 10}))
    assert not list(storage.list(kept.prefix))


def test_a_killed_evaluation_asks_nothing_twice_and_gets_the_same_answers(world, config, storage):
    undisturbed = ask(world, range(len(world)), "ordered", Model, journal(storage, "a/"), config)
    asked: list[str] = []
    for stop_after in (0, 1, 2, None):
        model = Model(stop_after=stop_after)
        try:
            answers = ask(
                world, range(len(world)), "ordered", lambda model=model: model, journal(storage, "b/"), config
            )
        except KeyboardInterrupt:
            answers = []
        asked += model.asked
    assert answers == undisturbed
    assert sorted(asked) == sorted(sample.id for sample in world.samples)


def test_a_finished_condition_does_not_load_the_model(world, config, storage):
    first = ask(world, range(len(world)), "ordered", Model, journal(storage), config)

    def load() -> Model:
        raise AssertionError("loaded")

    assert ask(world, range(len(world)), "ordered", load, journal(storage), config) == first


def test_answers_to_other_items_are_refused(world, config, storage):
    kept = journal(storage)
    ask(world, range(len(world)), "ordered", Model, kept, config)
    with pytest.raises(UserError, match="batch 0 holds other items; delete this prefix"):
        ask(world, list(reversed(range(len(world)))), "ordered", Model, journal(storage), config)


def test_progress_counts_every_item_once(world, config, storage):
    counts: list[int] = []
    ask(world, range(len(world)), "ordered", Model, journal(storage), config, counts.append)
    assert sum(counts) == len(world)


# -- frame conditions ----------------------------------------------------------------------------------------


def test_a_condition_changes_what_is_seen_and_nothing_else(world: World):
    clip = world.clips[0]
    before = clip.frames.copy()
    assert under(clip, "ordered", "key", 0) is clip
    backwards = under(clip, "reversed", "key", 0)
    assert np.array_equal(backwards.frames, clip.frames[::-1])
    assert under(clip, "blind", "key", 0) is NO_VIDEO
    for other in (backwards, under(clip, "shuffled", "key", 0)):
        assert np.array_equal(other.times_s, clip.times_s)
        assert (other.duration_s, other.kind) == (clip.duration_s, clip.kind)
    one = under(clip, "single_frame", "key", 0)
    assert np.array_equal(one.frames, clip.frames[4:5])
    assert (one.times_s.tolist(), one.duration_s) == ([2.0], 4.0)
    assert np.array_equal(clip.frames, before)


def test_the_further_conditions_are_asked_when_they_are_wanted(world: World, config, storage):
    wanted = config.model_copy(update={"reversed": True, "single_frame": True, "blind": True})
    assert set(conditions(config, world.samples)) == {"ordered", "shuffled", "other_video"}
    assert conditions(wanted, world.samples) == dict.fromkeys([*conditions(config, world.samples), *EXTRA])
    no_videos = conditions(wanted, make_world(videos=0).samples)
    assert {no_videos[frames] for frames in EXTRA} == {"there are no videos"}
    indices = [i for i, s in enumerate(world.samples) if s.media.kind == "video"]
    models = {frames: Model() for frames in ("ordered", *EXTRA)}
    for frames, model in models.items():
        ask(world, indices, frames, lambda model=model: model, journal(storage, f"{frames}/"), wanted)
    name = world.samples[0].id
    seen = {frames: model.seen[name] for frames, model in models.items()}
    assert np.array_equal(seen["reversed"], seen["ordered"][::-1])
    assert len(seen["single_frame"]) == 1
    assert seen["blind"] is None


EXTRA = ("reversed", "single_frame", "blind")


# -- together, then apart --------------------------------------------------------------------------------------


def test_what_fails_together_is_asked_by_video_and_then_one_by_one(world: World):
    calls: list[list[str]] = []

    def predict(samples, clips):
        calls.append([sample.id for sample in samples])
        return Model(fail_on=frozenset({"v001-start"}))(samples, clips)

    samples, clips = world.samples[:6], world.clips[:6]  # two questions on each of three videos
    answers = answer_all(samples, clips, predict)
    ids = [sample.id for sample in samples]
    assert [answer.id for answer in answers] == ids
    assert [answer.id for answer in answers if answer.error] == ["v001-start"]
    assert calls == [ids, ids[:2], ids[2:4], ids[4:6], ids[2:3], ids[3:4]]


def test_an_error_in_place_of_an_answer_is_of_that_question_alone(world: World):
    calls = []

    def predict(samples, clips):
        calls.append(len(samples))
        said = Model()(samples, clips)
        return [
            OSError("gone") if sample.id == "v001-start" else one for sample, one in zip(samples, said, strict=True)
        ]

    answers = answer_all(world.samples[:6], world.clips[:6], predict)
    assert [answer.error for answer in answers] == [None, None, None, "OSError: gone", None, None]
    assert calls == [6]


def test_questions_are_grouped_by_the_part_of_the_video_they_are_about(world: World):
    samples = [*world.samples[:4], world.samples[0]]
    media = samples[4].media.model_copy(update={"start_s": 1.0})
    samples[4] = samples[4].model_copy(update={"media": media})
    assert by_video(samples) == [[0, 1], [2, 3], [4]]
