"""The one client of OpenAI chat completions, against a real HTTP server that does what servers do."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from vthink.components.common.chat_endpoint import endpoint as module
from vthink.components.common.chat_endpoint.config import ChatEndpointConfig
from vthink.components.common.chat_endpoint.endpoint import (
    MAX_REPLY_BYTES,
    BlockingEndpoint,
    CallFailedError,
    ChatEndpoint,
    ChatReply,
    EndpointUnusableError,
)
from vthink.components.common.config import ConfigError
from vthink.components.common.launch.process import free_port
from vthink.tests.fakes.chat_server import Answer, ChatServer, chat_server, completion, delta, events

MESSAGES = [{"role": "user", "content": "Which way?"}]
FINE = Answer(body=completion("left"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(FINE) as started:
        yield started


def config(server: ChatServer | str, **more: object) -> ChatEndpointConfig:
    url = server if isinstance(server, str) else server.url
    quick = {"timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, "max_backoff_s": 0.02, "model": "played"}
    return ChatEndpointConfig.load({"url": url, **quick, **more})


def complete(server: ChatServer | str, on_delta=None, parameters=None, **more: object) -> ChatReply:
    with BlockingEndpoint(config(server, **more)) as endpoint:
        return endpoint.complete(MESSAGES, parameters, on_delta)


def test_an_answer_is_typed_and_the_request_holds_what_was_set(server: ChatServer) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3}
    body = completion("left", usage=usage, vthink={"answer": "left"})
    body["choices"][0]["token_ids"] = [5, 6, 7]
    server.answers = [Answer(body=body)]
    reply = complete(server, parameters={"temperature": 0.0, "seed": None, "max_tokens": 9})
    assert reply == ChatReply(
        text="left", finish_reason="stop", input_tokens=12, output_tokens=3, token_ids=(5, 6, 7), model="played",
        extension={"answer": "left"},
    )  # fmt: skip
    assert reply.finished
    assert server.requests == [
        {"model": "played", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 9, "path": "/v1/chat/completions"}
    ]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8080", "http://h:8080/v1"),
        ("http://h:8080/", "http://h:8080/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai"),
    ],
)
def test_the_version_of_the_api_is_added_where_the_url_names_none(url: str, base: str) -> None:
    assert config(url).base_url == base


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://h/v1", "http://", "http://h:port", "http://u:p@h/v1", "http://h/v1?key=1"]
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"url|port"):
        config(url)


def test_this_machine_is_not_asked_through_a_proxy(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert complete(server).text == "left"


# -- what may pass is repeated ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(500, {"error": "RuntimeError: x"}),
        Answer(503),
        Answer(408),
        Answer(body=b"<html>hello</html>"),
        Answer(body={"choices": []}),
        Answer(body=completion(["no", "text"])),
        Answer(body=b"[" * 200_000),
        Answer(body=completion("left"), cut=20),
        Answer(body=b" " * (MAX_REPLY_BYTES + 1)),
    ],
    ids=["500", "503", "408", "html", "no choice", "no text", "deep", "cut off", "oversized"],
)
def test_a_failure_that_may_pass_is_repeated(server: ChatServer, trouble: Answer) -> None:
    server.answers = [trouble, trouble, FINE]
    assert complete(server).text == "left"
    assert len(server.requests) == 3


def test_a_call_that_fails_at_every_attempt_says_so_in_one_line(server: ChatServer) -> None:
    server.answers = [Answer(502, b"<html>bad\n\x1b[31mgateway</html>")]
    with pytest.raises(CallFailedError) as caught:
        complete(server)
    assert str(caught.value) == f"{server.url} answered HTTP 502: <html>bad [31mgateway</html>, 3 times"


def test_an_answer_that_takes_too_long_is_given_up_however_it_dawdles(server: ChatServer) -> None:
    server.answers = [Answer(body=completion("left"), delay_s=2), Answer(body=completion("left"), drip_s=0.1)]
    started = time.monotonic()
    with pytest.raises(CallFailedError, match=r"did not answer within 0\.4 s, 2 times"):
        complete(server, timeout_s=0.4, retries=1)
    assert time.monotonic() - started < 1.9


def test_no_server_is_one_line() -> None:
    with pytest.raises(CallFailedError, match="cannot be reached") as caught:
        complete(f"http://127.0.0.1:{free_port()}", retries=0)
    assert "\n" not in str(caught.value)


def test_a_busy_server_is_left_alone_as_long_as_it_says_by_all_calls(server: ChatServer) -> None:
    busy = Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
    server.answers = [busy, FINE]

    async def scenario() -> None:
        async with ChatEndpoint(config(server, max_backoff_s=0.1)) as endpoint:
            first = asyncio.create_task(endpoint.complete(MESSAGES))
            await asyncio.sleep(0.3)
            await asyncio.gather(first, endpoint.complete(MESSAGES))

    asyncio.run(scenario())
    assert [later - server.arrived_s[0] >= 0.95 for later in server.arrived_s[1:]] == [True, True]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("7", 7),
        ("-7", 0),
        ("soon", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float) -> None:
    assert module._retry_after_s(header) == seconds
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90))
    assert 80 < module._retry_after_s(later) <= 90


# -- what will not pass is not repeated ------------------------------------------------------------------------


def test_a_refused_call_is_not_repeated(server: ChatServer) -> None:
    server.answers = [Answer(400, {"error": {"message": "the question\nis empty"}})]
    with pytest.raises(CallFailedError, match=r"answered HTTP 400: the question is empty$"):
        complete(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "headers"), [(401, {}), (404, {}), (307, {"Location": "http://127.0.0.1:9/"})])
def test_a_server_that_refuses_key_or_model_or_sends_elsewhere_is_unusable(
    server: ChatServer, status: int, headers: dict[str, str]
) -> None:
    server.answers = [Answer(status, {"error": {"message": "no such model"}}, headers)]
    with pytest.raises(EndpointUnusableError) as caught:
        complete(server)
    assert f"answered HTTP {status}: no such model; check url, model ('played') and api_key_env" in str(caught.value)
    assert len(server.requests) == 1


# -- the key ---------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", " sesame ")
    complete(server, api_key_env="THE_KEY")
    assert server.headers[0]["Authorization"] == "Bearer sesame"
    for value, problem in (("", "is not set"), ("sés\name", "holds characters that no API key has")):
        monkeypatch.setenv("THE_KEY", value)
        with pytest.raises(EndpointUnusableError, match=f"curation.judge.api_key_env: .*THE_KEY {problem}"):
            ChatEndpoint(config(server, api_key_env="THE_KEY"), setting="curation.judge")


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://api.example.org/v1", True),
        ("http://api.example.org/v1", False),
        ("http://93.184.216.34/v1", False),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://10.1.2.3:8000", True),
        ("http://gpu-box:8000", True),
        ("http://vthink-predictor.team.svc", True),
        ("http://vthink-predictor.team.svc.cluster.local", True),
        ("http://vthink-predictor.team.svc.company.example", True),
    ],
)
def test_a_key_is_not_sent_unencrypted_to_the_internet(url: str, may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sesame")
    with contextlib.nullcontext() if may else pytest.raises(EndpointUnusableError, match="unencrypted; use https"):
        ChatEndpoint(config(url, api_key_env="THE_KEY"))
    ChatEndpoint(config(url))


# -- numbers that a server makes up ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 10**12}, {"prompt_tokens": True}]
)
def test_counts_that_cannot_be_true_are_none(server: ChatServer, usage: object) -> None:
    server.answers = [Answer(body=completion(None, None, usage=usage))]
    reply = complete(server)
    assert (reply.text, reply.input_tokens, reply.output_tokens, reply.finished) == ("", None, None, True)
    server.answers = [Answer(body=completion("cut", "length"))]
    assert not complete(server).finished


# -- streams ---------------------------------------------------------------------------------------------------


def test_a_stream_is_passed_on_piece_by_piece_and_put_together(server: ChatServer) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    last = delta(None, "length", vthink={"answer": "B"})
    body = events(delta(""), delta("über "), delta("left"), last, usage, "[DONE]")
    server.answers = [Answer(body=body.replace(b"\n", b"\r\n"), drip_s=0.0001)]
    pieces: list[str] = []
    reply = complete(server, pieces.append)
    assert pieces == ["über ", "left"]
    assert (reply.text, reply.finish_reason, reply.extension) == ("über left", "length", {"answer": "B"})
    assert (reply.input_tokens, reply.output_tokens) == (4, 2)
    assert server.requests[0]["stream_options"] == {"include_usage": True}


def test_a_stream_may_take_long_but_not_be_silent_long(server: ChatServer) -> None:
    body = events(delta("left"), delta(None, "stop"))
    server.answers = [Answer(body=body, drip_s=0.005)]
    assert complete(server, len, timeout_s=0.5).text == "left"  # over 1 s in all
    server.answers = [Answer(body=body, delay_s=1)]
    with pytest.raises(CallFailedError, match=r"within 0\.5 s"):
        complete(server, len, timeout_s=0.5, retries=0)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            events(delta("le"), {"error": {"message": "no answer\nwithin 2 s"}}, "[DONE]"),
            "gave up: no answer within 2 s",
        ),
        (events(delta("le")), "broke off in the middle"),
        (events(delta("le"), "{"), "not a chat completion"),
        (events(delta("le"), {"choices": [{"delta": {"content": 7}}]}), "not a chat completion"),
        (events(delta("le")) + b"data: " + b"x" * MAX_REPLY_BYTES, "more than"),
    ],
    ids=["error", "cut off", "no JSON", "no text", "oversized"],
)
def test_a_stream_that_fails_after_it_began_is_not_repeated(server: ChatServer, body: bytes, problem: str) -> None:
    server.answers = [Answer(body=body)]
    with pytest.raises(CallFailedError, match=problem):
        complete(server, len)
    assert len(server.requests) == 1


def test_a_stream_that_has_not_begun_is_repeated(server: ChatServer) -> None:
    server.answers = [Answer(503), Answer(body=events(delta("left"), delta(None, "stop")))]
    assert complete(server, len).text == "left"


# -- many at once ----------------------------------------------------------------------------------------------


def test_threads_share_an_endpoint_and_its_limit(server: ChatServer) -> None:
    server.answers = [Answer(body=completion("left"), delay_s=0.1)]
    started = time.monotonic()
    with BlockingEndpoint(config(server, concurrency=2)) as endpoint, ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: endpoint.complete(MESSAGES), range(6)))
    assert {reply.text for reply in replies} == {"left"}
    assert time.monotonic() - started >= 0.3


def test_a_caller_may_stand_around_each_attempt_and_end_the_call(server: ChatServer) -> None:
    attempts: list[str] = []

    class StoppedError(Exception):
        pass

    @contextlib.asynccontextmanager
    async def attempt() -> AsyncIterator[None]:
        if len(attempts) == 2:
            raise StoppedError
        attempts.append("begun")
        yield

    async def scenario() -> None:
        async with ChatEndpoint(config(server), attempt=attempt) as endpoint:
            await endpoint.complete(MESSAGES)

    server.answers = [Answer(500)]
    with pytest.raises(StoppedError):
        asyncio.run(scenario())
    assert len(server.requests) == len(attempts) == 2


# -- the list of models ----------------------------------------------------------------------------------------


def test_the_models_of_a_server(server: ChatServer) -> None:
    server.answers = [Answer(body={"data": [{"id": "played", "owned_by": "vthink"}]})]
    with BlockingEndpoint(config(f"{server.url}/v1")) as endpoint:
        assert endpoint.models()[0]["owned_by"] == "vthink"
    assert server.requests[0]["path"] == "/v1/models"


@pytest.mark.parametrize("body", [b"<html>", b"{}", {"data": []}, {"data": ["name"]}])
def test_a_server_that_lists_no_models_is_unusable(server: ChatServer, body: object) -> None:
    server.answers = [Answer(body=body)]
    with BlockingEndpoint(config(server)) as endpoint:
        with pytest.raises(EndpointUnusableError, match=re.escape("does not list its models")):
            endpoint.models()
