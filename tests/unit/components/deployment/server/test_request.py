import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.deployment.ask import StructuredAnswer
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.exchange import ApiError
from vthink.components.deployment.server.request import ChatQuestion, parse_request
from vthink.components.deployment.server.view import as_json

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}}
TEXT = {"type": "text", "text": "What moves?"}


def body(content: Any = None, **more: Any) -> bytes:
    content = [VIDEO, TEXT] if content is None else content
    return json.dumps({"messages": [{"role": "user", "content": content}], **more}).encode()


def parse(data: bytes) -> ChatQuestion:
    return parse_request(data, ServerConfig(max_new_tokens=100, max_question_chars=200))[0]


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


def test_a_system_message_is_the_first_turn() -> None:
    user = {"role": "user", "content": [VIDEO, TEXT]}
    pirate = {"messages": [{"role": "developer", "content": " You are a pirate. "}, user]}
    turns = parse(json.dumps(pirate).encode()).turns
    assert [(turn.role, turn.text, turn.kind) for turn in turns] == [
        ("system", "You are a pirate.", None),
        ("user", "What moves?", "video"),
    ]
    late = {"messages": [user, {"role": "system", "content": "x"}, user]}
    with pytest.raises(ApiError, match="first one only"):
        parse(json.dumps(late).encode())


def conversation(*more: Any) -> bytes:
    first = {"role": "user", "content": [VIDEO, TEXT]}
    # As the client's `messages.append(response.choices[0].message)` sends it back.
    answer = {"role": "assistant", "content": " A square. ", "refusal": None, "annotations": [], "tool_calls": None}
    last = {"role": "user", "content": "Which colour?"}
    return json.dumps({"messages": [first, answer, *more, last], "vthink": {"options": ["red", "blue"]}}).encode()


def test_a_conversation_keeps_its_turns_and_only_the_last_has_the_options() -> None:
    question = parse(conversation())
    assert [(turn.role, turn.text, turn.kind, len(turn.options)) for turn in question.turns] == [
        ("user", "What moves?", "video", 0),
        ("assistant", " A square. ", None, 0),  # as it was generated
        ("user", "Which colour?", None, 2),
    ]
    assert question.media_kind == "video"
    with pytest.raises(ApiError, match="last message must be the user's"):
        parse(
            json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}).encode()
        )


def test_the_same_video_may_be_sent_again_and_another_may_not() -> None:
    big = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "A" * 4000}}
    turns = [{"role": "user", "content": [big, TEXT]}, {"role": "assistant", "content": "x"}]
    again, media = parse_request(json.dumps({"messages": [*turns, turns[0]]}).encode(), ServerConfig())
    assert [turn.kind for turn in again.turns] == ["video", None, None]
    assert media is not None
    assert len(media) == 4000
    other = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "B" * 4000}}
    with pytest.raises(ApiError, match="there are several") as caught:
        parse(json.dumps({"messages": [*turns, {"role": "user", "content": [other, TEXT]}]}).encode())
    assert caught.value.body["error"]["param"] == "messages[2]"


def test_words_alone_are_a_question() -> None:
    question, media = parse_request(body("What moves?"), ServerConfig())
    assert (question.media_kind, media, question.text) == (None, None, "What moves?")


def test_what_people_send_along_is_taken() -> None:
    question = parse(
        body(n=3, stop=["a", "b"], logprobs=True, top_logprobs=2, max_tokens=101, reasoning_effort="low", tools=[])
    )
    assert (question.n, question.stop, question.top_logprobs, question.max_new_tokens) == (3, ("a", "b"), 2, 100)
    assert question.notes == ("reasoning_effort is ignored", "max_tokens is 100, the most this server gives")
    neutral = parse(body(frequency_penalty=0.0, logit_bias={}, top_k=-1, user="me", metadata={"a": "b"}, stop=None))
    assert neutral.notes == ()
    kwargs = parse(body(chat_template_kwargs={"options": ["x", "y"], "problem_type": "multiple_choice"}))
    assert kwargs.options == ("x", "y")


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "segments": {"type": "array", "items": {"$ref": "#/$defs/Part"}}},
    "required": ["answer", "segments"],
    "additionalProperties": False,
    "$defs": {
        "Part": {"type": "object", "properties": {"start_s": {"type": "number"}, "caption": {"title": "Caption"}}}
    },
}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "view", "strict": True, "schema": value}}


def test_response_format_chooses_from_the_structured_answer() -> None:
    selection = parse(body(response_format=schema(SCHEMA))).selection
    assert selection == {"answer": None, "segments": [{"start_s": None, "caption": None}]}
    view = StructuredAnswer.parse("<time>00:01-00:02</time><caption>a ball</caption> so <answer>B</answer>")
    assert selection is not None
    assert json.loads(as_json(view, selection)) == {"answer": "B", "segments": [{"start_s": 1.0, "caption": "a ball"}]}
    assert set(parse(body(response_format={"type": "json_object"})).selection or ()) == {
        "segments",
        "reasoning",
        "answer",
    }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "object", "properties": {"colour": {"type": "string"}}}, "'colour' is not a field"),
        ({"type": "object", "properties": {"answer": {"type": "integer"}}}, "answer. is string here"),
        ({"type": "object", "properties": {"answer": {"enum": ["A"]}}}, "'enum' cannot be kept to"),
        ({"$ref": "#"}, "is not a schema"),
    ],
)
def test_response_format_that_cannot_be_kept_to_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        parse(body(response_format=schema(wrong)))
    assert caught.value.body["error"]["param"] == "response_format"


def peak_growth(work: Callable[[], object]) -> float:
    """MiB that this process grew by at its most."""

    def high() -> int:
        return int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1]
        )

    Path("/proc/self/clear_refs").write_text("5")
    before = high()
    work()
    return (high() - before) / 1024


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages":[' + b"1," * 10_000_000 + b"1]}",
        b'{"messages":[' + b"1," * 500_000 + b"1]}",
        b'{"messages":[{"role":"user","content":[' + b"{}," * 300_000 + b"{}]}]}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(90_000)) + b"}",
        b'{"messages":[],"vthink":{' + b",".join(b'"k%d":1' % n for n in range(90_000)) + b"}}",
        b'{"messages":[],"stop":[' + b'"a",' * 200_000 + b'"a"]}',
        b"[" * 20_000_000,
    ],
)
def test_a_body_of_many_small_things_takes_little_time_and_memory(data: bytes) -> None:
    def read() -> None:
        with pytest.raises(ApiError) as caught:
            parse(data)
        assert caught.value.status in (400, 413)
        assert len(str(caught.value)) < 600

    started = time.monotonic()
    assert peak_growth(read) < 3 * len(data) / 2**20 + 200
    assert time.monotonic() - started < 5


def test_growth_of_memory_would_be_noticed() -> None:
    assert peak_growth(lambda: len(bytearray(b"x" * 300_000_000))) > 250


@pytest.mark.parametrize(
    ("data", "param", "words"),
    [
        (b"{", None, "not JSON"),
        (b"\xff\xfe", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b'"text"', None, "object"),
        (b"{}", "messages", "required"),
        (json.dumps({"messages": []}).encode(), "messages", "at least 1"),
        (body([VIDEO, IMAGE, TEXT]), "messages", "there are several"),
        (body("What moves?", vthink={"start_s": 1}), "vthink", "there is none"),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages.0.role", "Input should be"),
        (body([VIDEO]), "messages", "question is empty"),
        (body([VIDEO, {"type": "text", "text": "x" * 201}]), "messages", "longer than 200"),
        (body([VIDEO, {"type": "input_audio"}]), "messages.0.content", "input_audio"),
        (body(max_tokens=True), "max_tokens", "valid integer"),
        (body(temperature="1"), "temperature", "valid number"),
        (body(max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (body(temperature=-1), "temperature", "greater than or equal to 0"),
        (body(temperature=1e400), None, "finite|not JSON|less than"),
        (body(top_p=0), "top_p", "greater than 0"),
        (body(n=33), "n", "less than or equal to 16"),
        (body(logit_bias={"5": 1}), "logit_bias", "not supported"),
        (body(presence_penalty=0.5), "presence_penalty", "not supported"),
        (body(top_logprobs=2), None, "needs logprobs"),
        (body(tools=[{"type": "function"}]), "tools", "not supported"),
        (body(stop=["a"] * 5), "stop", "at most 4"),
        (body(stop=""), "stop", "1 to 256"),
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
