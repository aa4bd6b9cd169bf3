"""The smoke test against the real routes with a played model, and what of it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.chat_endpoint.endpoint import EndpointError
from vthink.components.common.launch.process import free_port
from vthink.components.common.rows.sample import Media, Sample
from vthink.components.deployment.config import DeploymentConfig
from vthink.components.deployment.smoke_test import EvaluationSettings, RecordedAnswer, Replay, SmokeTest
from vthink.tests.fakes.model_server import Running, ScriptedModel

TEXT = "It moves. <answer>B</answer>"


def smoke_test(path: Path, recorded: list[str], temperature: float = 0.0, **settings: Any) -> SmokeTest:
    """Items whose recorded answers are these; the played model answers B."""
    media = Media(kind="video", uri=str(path))
    replays = []
    for number, answer in enumerate(recorded):
        row = {"id": str(number), "model": "grpo", "frames": "ordered", "error": None, "answer": answer}
        row |= {"response": TEXT.replace("B", answer), "token_ids": list(range(len(TEXT.split(" "))))}
        sample = Sample(
            id=str(number), media=media, question=f"Which {number}?", options=("left", "right"),
            problem_type="multiple_choice", answer="B",
        )  # fmt: skip
        replays.append(Replay(sample, path, RecordedAnswer.model_validate(row)))
    config = DeploymentConfig.load({"server": {"max_new_tokens": 64}, **settings})
    evaluation = EvaluationSettings(split="test", max_new_tokens=64, temperature=temperature, top_p=1.0, seed=0)
    return SmokeTest(replays, ("4: gone",), 64, evaluation, config)


@pytest.fixture
def url(start: Callable[..., Running]) -> str:
    return start(ScriptedModel(text=TEXT, system=None), max_new_tokens=64).url


def test_the_same_answers_pass(url: str, video: Path) -> None:
    result = smoke_test(video, ["B", "B"]).run(url)
    assert (result.passed, result.why) == (True, "2 of 2 held-out items got the answer that evaluation saw")
    assert result.metrics == {"deployment/agreement": 1.0, "deployment/identical": 1.0}
    record = json.loads(json.dumps(result.to_json()))
    assert {name: record[name] for name in ("asked", "agreement", "identical", "correct", "skipped")} == {
        "asked": 2, "agreement": 1.0, "identical": 1.0, "correct": 1.0, "skipped": ["4: gone"],
    }  # fmt: skip
    assert record["items"][0]["text"] is None


def test_another_answer_fails_unless_so_many_may_differ(url: str, video: Path) -> None:
    result = smoke_test(video, ["B", "A"]).run(url)
    assert not result.passed
    assert result.why == (
        "1 of 2 held-out items got the answer that evaluation saw, 100% must (1: served 'B', evaluation 'A')"
    )
    assert [item.agrees for item in result.items] == [True, False]
    assert smoke_test(video, ["B", "A"], smoke_min_agreement=0.5).run(url).passed


def test_what_was_sampled_need_not_agree(url: str, video: Path) -> None:
    result = smoke_test(video, ["A"], temperature=1.0).run(url)
    assert result.passed
    assert result.why.endswith("evaluation sampled, so they need not agree")


def test_an_item_without_an_answer_fails(url: str, video: Path) -> None:
    test = smoke_test(video, ["B"])
    object.__setattr__(test, "limit", 0)  # the server refuses it
    result = test.run(url)
    assert not result.passed
    assert "1 of 1 held-out items got no answer: " in result.why
    assert "HTTP 400" in result.why


def test_a_server_that_is_gone_ends_the_test(video: Path) -> None:
    with pytest.raises(EndpointError, match="cannot be reached"):
        smoke_test(video, ["B"]).run(f"http://127.0.0.1:{free_port()}")


def test_one_question_is_kept_as_a_user_would_see_it(url: str, video: Path) -> None:
    question = smoke_test(video, ["B"]).ask_one(url)
    assert (question["question"], question["options"], question["truth"]) == ("Which 0?", ["left", "right"], "B")
    assert (question["answer"], question["text"], question["finish_reason"]) == ("B", TEXT, "stop")
    assert question["media"]["kind"] == "video"
    own = smoke_test(video, ["B"], smoke_question="What happens?").ask_one(url)
    assert (own["question"], own["options"], own["truth"]) == ("What happens?", [], None)
    assert json.dumps(own)
