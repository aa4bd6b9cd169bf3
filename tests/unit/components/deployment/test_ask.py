from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.chat_endpoint.endpoint import BlockingEndpoint, EndpointError
from vthink.components.common.config import ConfigError
from vthink.components.common.errors import UserError
from vthink.components.common.launch.process import free_port
from vthink.components.deployment.ask import FileQuestion, ServedAnswer, StructuredAnswer, ask, served_endpoint
from vthink.tests.fakes.chat_server import Answer, ChatServer, chat_server, completion
from vthink.tests.fakes.model_server import ANSWER, Running, ScriptedModel


def ask_about(
    url: str, path: Path, text: str = "?", sampling: dict[str, Any] | None = None, on_delta=None, plain=False, model="",
    **more: Any,
) -> ServedAnswer:  # fmt: skip
    with BlockingEndpoint(served_endpoint(url, model)) as endpoint:
        return ask(endpoint, FileQuestion(path=path, text=text, **more), sampling, on_delta, plain=plain)


@pytest.mark.parametrize("streaming", [False, True])
def test_answer_is_structured(server: Running, video: Path, streaming: bool) -> None:
    pieces: list[str] = []
    on_delta = pieces.append if streaming else None
    answer = ask_about(server.url, video, "Which way?", {"seed": 3}, on_delta, options=["left", "right"])
    assert answer.view.answer == "B"
    assert answer.view.segments[0].caption == "a red square moves right"
    assert answer.view.media is not None
    assert len(answer.view.media.frames_s) == 4
    assert answer.reply.text == ANSWER
    assert answer.reply.finish_reason == "stop"
    assert answer.reply.token_ids == tuple(range(len(ANSWER.split(" "))))
    assert answer.reply.output_tokens == len(answer.reply.token_ids)
    assert ("".join(pieces) == ANSWER) == streaming
    assert server.model.questions[-1].options == ("left", "right")
    assert server.model.questions[-1].seed == 3
    assert answer.to_json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 11, "total_tokens": 14}


def test_url_may_end_in_v1(server: Running, video: Path) -> None:
    assert ask_about(server.url + "/v1/", video, "Which way?").view.answer == "B"


def test_mistakes_say_what_is_wrong(server: Running, video: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.mp4: No such file"):
        ask_about(server.url, tmp_path / "none.mp4")
    with pytest.raises(EndpointError, match=r"cannot be reached .*is the server running"):
        ask_about(f"http://127.0.0.1:{free_port()}", video)
    with pytest.raises(ConfigError, match=r"the server's address: url must look like http://127\.0\.0\.1:8000/v1"):
        ask_about("nonsense", video)
    with pytest.raises(EndpointError, match="HTTP 400: the question is empty"):
        ask_about(server.url, video, " ")


def test_stream_that_breaks_off_is_an_error(start: Callable[..., Running], video: Path) -> None:
    server = start(ScriptedModel(text="word " * 100, delay_s=0.1), request_timeout_s=1)
    server.warm_up(video)
    with pytest.raises(EndpointError, match="gave up: no answer within 1 s"):
        ask_about(server.url, video, on_delta=len)


# -- other servers ---------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[ChatServer]:
    with chat_server(Answer(body=completion("So. <answer>7</answer>"))) as server:
        yield server


def test_answer_of_another_openai_server_is_parsed_here(other: ChatServer, video: Path) -> None:
    answer = ask_about(other.url, video)
    assert answer.view.answer == "7"
    assert answer.view.media is None


def test_a_server_without_our_extension_gets_options_for_its_template(
    other: ChatServer, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTHINK_API_KEY", "right")
    more = {"options": ["x", "y"], "problem_type": "multiple_choice"}
    assert ask_about(other.url, video, "Which?", plain=True, model="vthink", **more).view.answer == "7"
    body = other.requests[0]
    assert body["chat_template_kwargs"] == {"options": ["x", "y"], "problem_type": "multiple_choice"}
    assert body["model"] == "vthink"
    assert "vthink" not in body
    assert other.headers[0]["Authorization"] == "Bearer right"


@pytest.mark.parametrize(("owner", "name"), [("vllm", "chat_template_kwargs"), ("someone", "vthink")])
def test_a_server_is_asked_as_what_it_says_it_is(other: ChatServer, video: Path, owner: str, name: str) -> None:
    models = {"data": [{"id": "m", "owned_by": owner}]}
    other.reply = lambda request: Answer(body=completion("x") if "messages" in request else models)
    ask_about(other.url, video, "Which?", plain=None, options=["x", "y"])
    body = other.requests[-1]
    assert body[name] == {"options": ["x", "y"]}
    assert body.get("temperature") == (0 if owner == "vllm" else None)  # vLLM would sample
    ask_about(other.url, video, "Which?", {"temperature": 0.7}, plain=None)
    assert other.requests[-1]["temperature"] == 0.7


def test_a_server_that_lists_no_models_is_not_taken_for_vllm(other: ChatServer, video: Path) -> None:
    other.reply = lambda request: (
        Answer(body=completion("x")) if "messages" in request else Answer(404, {"error": "no"})
    )
    ask_about(other.url, video, "Which?", plain=None, options=["x", "y"])
    assert other.requests[-1]["vthink"] == {"options": ["x", "y"]}


def test_vllm_is_not_asked_about_the_whole_where_a_part_is_meant(other: ChatServer, video: Path) -> None:
    with pytest.raises(UserError, match="sees whole videos"):
        ask_about(other.url, video, plain=True, start_s=1.0)
    assert not other.requests


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(body=b"<html>hello</html>"), "not a chat completion"),
        (Answer(body=completion("x", vthink={"answer": "B"})), "does not answer like this package's server"),
        (Answer(502, b"<html>bad gateway</html>"), "HTTP 502"),
        (Answer(500, {"error": "RuntimeError : x"}), "RuntimeError"),
        (Answer(401, {"error": {"message": "Unauthorized"}}), "HTTP 401: Unauthorized"),
    ],
    ids=["no JSON", "half an extension", "502", "500", "401"],
)
def test_what_other_servers_answer_is_one_line(other: ChatServer, video: Path, answer: Answer, words: str) -> None:
    other.answers = [answer]
    with pytest.raises(EndpointError, match=words) as caught:
        ask_about(other.url, video)
    assert "\n" not in str(caught.value)
    assert len(other.requests) == 1


# -- an answer in parts ------------------------------------------------------------------------------------

TEXT = "<time>00:01-00:02</time><caption>a square</caption><think>it moves</think>So right. <answer>B</answer>"


def test_structured_view_has_segments_reasoning_and_answer() -> None:
    view = StructuredAnswer.parse(TEXT).model_dump(mode="json")
    assert view["segments"] == [{"start_s": 1.0, "end_s": 2.0, "caption": "a square", "thought": "it moves"}]
    assert "So right." in view["reasoning"]
    assert view["answer"] == "B"
    assert StructuredAnswer.model_validate(view) == StructuredAnswer.parse(TEXT)
