import json
from typing import Any

import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.completion import ApiError, ChatQuestion, parse_request

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}}
TEXT = {"type": "text", "text": "What moves?"}


def body(content: Any = None, **more: Any) -> bytes:
    content = [VIDEO, TEXT] if content is None else content
    return json.dumps({"messages": [{"role": "user", "content": content}], **more}).encode()


def parse(data: bytes) -> ChatQuestion:
    return parse_request(data, ServerConfig(max_new_tokens=100, max_question_chars=200), "Look closely.")[0]


def test_plain_openai_request_is_a_free_form_question() -> None:
    question = parse(body(model="vthink", temperature=0.5, top_p=0.9, seed=7, max_tokens=12, user="me"))
    assert (question.text, question.options, question.problem_type) == ("What moves?", (), "free_form")
    assert (question.media_kind, question.max_new_tokens, question.temperature, question.top_p, question.seed) == (
        "video",
        12,
        0.5,
        0.9,
        7,
    )
    assert not question.stream


def test_without_sampling_parameters_the_answer_is_greedy_and_as_long_as_allowed() -> None:
    question = parse(body())
    assert (question.temperature, question.top_p, question.seed, question.max_new_tokens) == (0.0, 1.0, None, 100)


def test_options_make_it_multiple_choice() -> None:
    question = parse(body(vthink={"options": ["left", "right"], "start_s": 1, "end_s": 2.5}))
    assert (question.options, question.problem_type) == (("left", "right"), "multiple_choice")
    assert (question.start_s, question.end_s) == (1.0, 2.5)


def test_image_and_stream_options_are_taken() -> None:
    question = parse(body([TEXT, IMAGE], stream=True, stream_options={"include_usage": True}, max_completion_tokens=5))
    assert (question.media_kind, question.stream, question.include_usage, question.max_new_tokens) == (
        "image",
        True,
        True,
        5,
    )


def test_the_models_own_system_message_may_be_repeated_but_not_changed() -> None:
    user = {"role": "user", "content": [VIDEO, TEXT]}
    same = {"messages": [{"role": "system", "content": " Look closely. "}, user]}
    assert parse(json.dumps(same).encode()).text == "What moves?"
    other = {"messages": [{"role": "system", "content": "You are a pirate."}, user]}
    with pytest.raises(ApiError, match="prompt it was trained with"):
        parse(json.dumps(other).encode())


@pytest.mark.parametrize(
    ("data", "param", "words"),
    [
        (b"{", None, "not JSON"),
        (b"\xff\xfe", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b'"text"', None, "object"),
        (b"{}", "messages", "required"),
        (json.dumps({"messages": []}).encode(), "messages", "at least 1"),
        (body("What moves?"), "messages", "one video_url or image_url"),
        (body([VIDEO, VIDEO, TEXT]), "messages", "got 2"),
        (body([VIDEO]), "messages", "question is empty"),
        (body([VIDEO, {"type": "text", "text": "x" * 201}]), "messages", "longer than 200"),
        (body([VIDEO, {"type": "input_audio"}]), "messages.0.content", "input_audio"),
        (body(max_tokens=101), "max_tokens", "at most 100"),
        (body(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (body(temperature=-1), "temperature", "greater than or equal to 0"),
        (body(temperature=1e400), "temperature", "finite|not JSON|less than"),
        (body(top_p=0), "top_p", "greater than 0"),
        (body(n=2), "n", "not supported"),
        (body(tools=[{"type": "function"}]), "tools", "not supported"),
        (body(stop="."), "stop", "not supported"),
        (body(temprature=1), "temprature", "did you mean 'temperature'"),
        (body(vthink={"option": ["a"]}), "vthink.option", "did you mean 'options'"),
        (body(vthink={"options": ["a", " "]}), "vthink", "empty"),
        (body(vthink={"problem_type": "multiple_choice"}), "vthink", "at least two"),
        (body(vthink={"options": ["a", "b"], "problem_type": "ocr"}), "vthink", "belong to multiple_choice"),
        (body(vthink={"start_s": 3, "end_s": 2}), "vthink", "before end_s"),
    ],
)
def test_wrong_request_is_a_400_in_openais_shape(data: bytes, param: str | None, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        parse(data)
    error = caught.value.body["error"]
    assert caught.value.status == 400
    assert error["type"] == "invalid_request_error"
    if param is not None and not (error["param"] or "").startswith(param):
        pytest.fail(f"names {error['param']}, not {param}")
    assert "\n" not in error["message"]
    assert len(error["message"]) < 600


def test_another_model_is_a_404() -> None:
    with pytest.raises(ApiError, match="this server has 'vthink'") as caught:
        parse(body(model="gpt-x"))
    assert caught.value.status == 404
    assert caught.value.body["error"]["code"] == "model_not_found"


def test_conversations_are_refused() -> None:
    turns = [{"role": "user", "content": [VIDEO, TEXT]}, {"role": "assistant", "content": "A square."}]
    with pytest.raises(ApiError, match="exactly one user message"):
        parse(json.dumps({"messages": [*turns, turns[0]]}).encode())
