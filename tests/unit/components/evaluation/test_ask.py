from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.ask import Answer, answer_all, ask, by_video, clip_key_of
from vthink.components.evaluation.benchmarks.benchmark import QuestionSet
from vthink.components.evaluation.conditions import frame_order

from .small_world import HELD_OUT_SPLIT, Model, World


class Interview:
    """A model that is asked the questions of a world; its answers are kept by (condition, id)."""

    def __init__(self, world: World, missing: dict[str, str] | None = None) -> None:
        self.world = world
        self.questions = QuestionSet(HELD_OUT_SPLIT, world.samples, missing or {}, {})
        self.answers: dict[tuple[str, str], Answer] = {}

    def media(self, samples: Iterable) -> Iterable:
        for sample in samples:
            yield self.world.clips[self.world.samples.index(sample)]

    def keep(self, condition, samples, answers) -> None:
        self.answers |= {(condition, s.id): a for s, a in zip(samples, answers, strict=True)}

    def ask(self, load: Callable[[], Model], *conditions: str, batch_size: int = 5) -> dict[tuple[str, str], Answer]:
        def asked(condition, sample) -> bool:
            return (condition, sample.id) in self.answers

        names = conditions or ("ordered",)
        ask(self.questions, self.media, names, load, self.keep, asked, batch_size=batch_size, seed=0)
        return self.answers


def test_shuffled_frames_are_the_same_frames_in_one_other_order_for_all_questions_about_a_video(world: World):
    model = Model()
    Interview(world).ask(lambda: model, "shuffled")
    for sample, clip in zip(world.samples, world.clips, strict=True):
        if sample.media.kind == "image":
            assert sample.id not in model.seen  # is asked about as it is alone
        else:
            order = frame_order(clip_key_of(sample), 8, 0)
            assert np.array_equal(model.seen[sample.id], clip.frames[order])
            assert not np.array_equal(model.seen[sample.id], clip.frames)


def test_the_control_shows_another_video_and_the_same_one_to_all_questions_about_a_video(world):
    model = Model()
    answers = Interview(world).ask(lambda: model, "other_video")
    for sample, clip in zip(world.samples, world.clips, strict=True):
        if sample.media.kind == "video":
            assert not np.array_equal(model.seen[sample.id], clip.frames)
    assert np.array_equal(model.seen["v000-direction"], model.seen["v000-start"])
    assert not any(answer.error for answer in answers.values())


def test_every_condition_is_asked_of_every_video_in_one_round_and_its_clip_is_one_object(world: World):
    seen: list[tuple[str, int]] = []

    def predict(samples, clips):
        seen.extend((sample.id, id(clip)) for sample, clip in zip(samples, clips, strict=True))
        return Model()(samples, clips)

    answers = Interview(world).ask(lambda: predict, "ordered", "reversed", "single_frame", "blind")
    videos = [sample.id for sample in world.samples if sample.media.kind == "video"]
    assert len(answers) == len(world) + 3 * len(videos)
    clips = dict(seen[:2])
    assert len(clips) == 2
    assert len(set(clips.values())) == 1


def test_an_item_that_fails_is_recorded_and_touches_no_other(world):
    healthy = Interview(world).ask(Model)
    answers = Interview(world).ask(lambda: Model(fail_on=frozenset({"v001-start"})))
    failed = {key: answer.error for key, answer in answers.items() if answer.error}
    assert failed == {("ordered", "v001-start"): "RuntimeError: cannot answer v001-start"}
    assert {k: a for k, a in answers.items() if k not in failed} == {
        k: a for k, a in healthy.items() if k not in failed
    }


def test_a_video_that_cannot_be_read_fails_alone_with_all_its_questions(world):
    world.clips[2] = world.clips[3] = OSError("damaged")
    answers = Interview(world).ask(Model)
    failed = {answer.id: answer.error for answer in answers.values() if answer.error}
    assert failed == dict.fromkeys(["v001-direction", "v001-start"], "OSError: damaged")
    assert len(answers) == len(world)


def test_a_question_whose_video_is_missing_fails_under_every_condition_and_its_video_is_not_looked_for(world):
    interview = Interview(world, missing={"v001-start": "no video"})
    answers = interview.ask(Model, "ordered", "shuffled")
    failed = {key: answer.error for key, answer in answers.items() if answer.error}
    assert failed == {(name, "v001-start"): "no video" for name in ("ordered", "shuffled")}


def test_a_machine_that_fails_everything_is_not_taken_for_a_bad_model(world):
    everything = Model(fail_on=frozenset(sample.id for sample in world.samples))
    interview = Interview(world)
    with pytest.raises(UserError, match="all 10 items of a batch failed"):
        interview.ask(lambda: everything, batch_size=10)
    assert not interview.answers


def test_a_killed_evaluation_asks_nothing_twice_and_gets_the_same_answers(world):
    undisturbed = Interview(world).ask(Model)
    interview, asked = Interview(world), []
    for stop_after in (0, 1, 2, None):
        model = Model(stop_after=stop_after)
        with suppress(KeyboardInterrupt):
            interview.ask(lambda model=model: model)
        asked += model.asked
    assert interview.answers == undisturbed
    assert sorted(asked) == sorted(sample.id for sample in world.samples)


def test_a_finished_condition_does_not_load_the_model(world):
    interview = Interview(world)
    first = dict(interview.ask(Model))

    def load() -> Model:
        raise AssertionError("loaded")

    assert interview.ask(load) == first


def test_questions_are_grouped_by_the_part_of_the_video_they_are_about(world: World):
    samples = [*world.samples[:4], world.samples[0]]
    media = samples[4].media.model_copy(update={"start_s": 1.0})
    samples[4] = samples[4].model_copy(update={"media": media})
    assert by_video(samples) == [samples[:2], samples[2:4], samples[4:]]


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
        completions = Model()(samples, clips)
        return [
            OSError("gone") if sample.id == "v001-start" else completion
            for sample, completion in zip(samples, completions, strict=True)
        ]

    answers = answer_all(world.samples[:6], world.clips[:6], predict)
    assert [answer.error for answer in answers] == [None, None, None, "OSError: gone", None, None]
    assert calls == [6]
