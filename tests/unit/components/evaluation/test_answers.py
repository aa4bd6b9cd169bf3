from vthink.components.evaluation.answers import answer_all

from .small_world import Model, World


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
