"""The routes over real sockets: answers, and what strangers may send; after each, the server still answers."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from vthink.components.common.video.clip import stored
from vthink.components.common.video.decode import read_clip
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.chat import HttpExchange
from vthink.components.deployment.server.completion import ApiError
from vthink.tests.fakes.model_server import ANSWER, Running, ScriptedModel, running, write_video

CHAT = "/v1/chat/completions"


def video_part(data: bytes, mime: str = "video/mp4") -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def image_part(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def request(part: dict[str, Any], question: str = "Which way?", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": question}]}], **more}


def post(server: Running, body: dict[str, Any], path: str = CHAT) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def refusal(response: httpx.Response, status: int, words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "\n" not in error["message"]
    return error


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="session")
def mp4(video: Path) -> bytes:
    return video.read_bytes()


@pytest.fixture
def healthy(server: Running, mp4: bytes) -> Any:
    """The module's server, which must still answer after the test."""
    yield server
    response = post(server, request(video_part(mp4)))
    assert response.status_code == 200, response.text


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/openai/v1/chat/completions"])
def test_answer_has_openais_shape_and_the_structured_view(server: Running, mp4: bytes, path: str) -> None:
    body = post(server, request(video_part(mp4), model="vthink"), path).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "vthink"
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert "token_ids" not in choice
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    view = body["vthink"]
    assert view["segments"] == [
        {"start_s": 0.0, "end_s": 1.0, "caption": "a red square moves right", "thought": "it starts left"}
    ]
    assert view["answer"] == "B"
    assert "The square went right." in view["reasoning"]
    assert view["media"]["kind"] == "video"
    assert view["media"]["duration_s"] == pytest.approx(3.0, abs=0.1)
    assert len(view["media"]["frames_s"]) == 4


def test_stream_has_the_same_text_and_ends_with_the_view(server: Running, mp4: bytes) -> None:
    response = post(server, request(video_part(mp4), stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = events(response.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    whole = post(server, request(video_part(mp4))).json()
    assert chunks[-1]["vthink"] == whole["vthink"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


def test_pieces_arrive_while_the_answer_grows(start: Callable[..., Running], mp4: bytes) -> None:
    server = start(ScriptedModel(text="one two three four", delay_s=0.15))
    arrived = []
    with httpx.stream("POST", server.url + CHAT, json=request(video_part(mp4), stream=True), timeout=60) as response:
        for line in response.iter_lines():
            if '"content": " ' in line or '"content": "one' in line:
                arrived.append(time.monotonic())
    assert len(arrived) == 4
    assert arrived[-1] - arrived[0] > 0.3


def test_the_model_sees_the_question_and_exactly_the_frames_of_data_preparation(
    server: Running, mp4: bytes, video: Path
) -> None:
    extension = {"options": ["left", "right"], "start_s": 0.5, "end_s": 2.0}
    post(server, request(video_part(mp4), "Which way?", temperature=0.7, seed=3, max_tokens=9, vthink=extension))
    question, clip = server.model.questions[-1], server.model.clips[-1]
    assert (question.text, question.options, question.problem_type) == (
        "Which way?",
        ("left", "right"),
        "multiple_choice",
    )
    assert (question.temperature, question.seed, question.max_new_tokens) == (0.7, 3, 9)
    expected = stored(read_clip(video, server.model.video, "video", 0.5, 2.0), server.model.video)
    assert np.array_equal(clip.frames, expected.frames)
    assert np.array_equal(clip.times_s, expected.times_s)


def test_max_tokens_ends_the_answer_with_length(server: Running, mp4: bytes) -> None:
    body = post(server, request(video_part(mp4), max_tokens=2, return_token_ids=True)).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["token_ids"] == [0, 1]
    assert body["prompt_token_ids"] == [1, 2, 3]
    assert body["vthink"]["answer"] is None or body["vthink"]["answer"]


def test_image_is_answered(server: Running) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "PNG")
    body = post(server, request(image_part(buffer.getvalue()))).json()
    assert body["vthink"]["media"]["kind"] == "image"
    assert server.model.clips[-1].kind == "image"


# -- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/x.mp4",
        "/etc/passwd",
        "data:text/html,<script>",
    ],
)
def test_local_files_and_addresses_are_not_read(healthy: Running, url: str) -> None:
    body = request({"type": "video_url", "video_url": {"url": url}})
    error = refusal(post(healthy, body), 400, "")
    assert error["param"] == "messages"
    assert "root:" not in json.dumps(error)


@pytest.fixture(scope="module")
def fetching() -> Iterator[Running]:
    """A server that fetches media."""
    with running(ScriptedModel(), ServerConfig(allow_http_media=True, decoders=1)) as started:
        yield started


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "public"),
        ("http://localhost/x", "public"),
        ("http://[::1]/x", "public"),
        ("file:///etc/passwd", "data: URL"),
    ],
)
def test_with_http_allowed_private_addresses_stay_refused(fetching: Running, mp4: bytes, url: str, words: str) -> None:
    refusal(post(fetching, request({"type": "video_url", "video_url": {"url": url}})), 400, words)
    assert post(fetching, request(video_part(mp4))).status_code == 200


def test_body_of_100_mb_is_a_413(healthy: Running) -> None:
    response = httpx.post(
        healthy.url + CHAT, content=b" " * 100_000_000, headers={"content-type": "application/json"}, timeout=60
    )
    refusal(response, 413, "larger than")


def test_body_without_a_length_is_cut_off(healthy: Running) -> None:
    pieces = (b" " * 2**20 for _ in range(100))
    response = httpx.post(healthy.url + CHAT, content=pieces, headers={"content-type": "application/json"}, timeout=60)
    refusal(response, 413, "larger than")


def test_body_that_ends_beyond_the_limit_is_refused_at_once() -> None:
    pieces = [{"type": "http.request", "body": b"x" * 11, "more_body": False}]

    async def receive() -> Any:
        if not pieces:
            await asyncio.sleep(60)
        return pieces.pop()

    exchange = HttpExchange({"type": "http", "headers": []}, receive, receive)
    started = time.monotonic()
    with pytest.raises(ApiError) as caught:
        asyncio.run(exchange.body(10, timeout_s=60))
    assert caught.value.status == 413
    assert time.monotonic() - started < 3


def test_client_that_asks_first_is_told_before_it_sends(healthy: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", healthy.port), timeout=20) as client:
        client.sendall(head.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_video_over_the_limit_is_a_413(start: Callable[..., Running], mp4: bytes) -> None:
    server = start(max_video_bytes=len(mp4) - 1)
    refusal(post(server, request(video_part(mp4))), 413, "media is larger than")


def test_body_that_never_arrives_is_a_408(healthy: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", healthy.port), timeout=20) as client:
        client.sendall(head.encode())
        assert b" 408 " in client.recv(4096).split(b"\r\n")[0]


def test_truncated_mp4(healthy: Running, mp4: bytes) -> None:
    refusal(post(healthy, request(video_part(mp4[: len(mp4) // 2]))), 400, "the video cannot be read")


@pytest.mark.parametrize(
    "data", [b"just some text\n" * 50, b"\0" * 4096, b"#EXTM3U\nfile:///etc/passwd\n", bytes(range(256)) * 64]
)
def test_what_is_no_video(healthy: Running, data: bytes) -> None:
    error = refusal(post(healthy, request(video_part(data))), 400, "the video cannot be read")
    assert "/tmp" not in error["message"]


def test_video_sent_as_image_and_the_other_way_round(healthy: Running, mp4: bytes) -> None:
    refusal(post(healthy, request(image_part(mp4))), 400, "the image cannot be read")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_gif_bomb(healthy: Running, kind: str) -> None:
    """A few hundred bytes that claim a frame of 65,000 × 65,000 pixels."""
    side = (65_000).to_bytes(2, "little")
    bomb = b"GIF89a" + side * 2 + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b"," + b"\0" * 4 + side * 2 + b"\0"
    bomb += b"\x02\x02\x4c\x01\0;" + b"\0" * 64
    part = image_part(bomb, "image/gif") if kind == "image" else video_part(bomb, "image/gif")
    started = time.monotonic()
    refusal(post(healthy, request(part)), 400, f"the {kind} cannot be read")
    assert time.monotonic() - started < 25


def test_png_bomb(healthy: Running) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    refusal(post(healthy, request(image_part(buffer.getvalue()))), 400, "pixels")


def test_long_video_is_refused(start: Callable[..., Running], mp4: bytes) -> None:
    refusal(post(start(max_duration_s=1), request(video_part(mp4))), 400, "limit is 1 s")


def test_part_beyond_the_end(healthy: Running, mp4: bytes) -> None:
    refusal(post(healthy, request(video_part(mp4), vthink={"start_s": 90})), 400, "nothing between")


@pytest.mark.parametrize(
    ("body", "words"), [(b"{", "not JSON"), (b"", "not JSON"), (b"[1]", "object"), (b"{}", "messages")]
)
def test_wrong_json(healthy: Running, body: bytes, words: str) -> None:
    response = httpx.post(healthy.url + CHAT, content=body, headers={"content-type": "application/json"})
    refusal(response, 400, words)


def test_form_posts_of_other_sites_are_refused(healthy: Running, mp4: bytes) -> None:
    """What a web page may send across origins without asking first."""
    data = json.dumps(request(video_part(mp4)))
    response = httpx.post(healthy.url + CHAT, content=data, headers={"content-type": "text/plain"})
    refusal(response, 415, "application/json")


def test_flood_is_answered_or_refused_with_429(start: Callable[..., Running], mp4: bytes) -> None:
    server = start(ScriptedModel(text="a b", delay_s=0.1), max_concurrency=2)
    body = request(video_part(mp4))
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda _: post(server, body), range(24)))
    by_status: dict[int, int] = {}
    for response in responses:
        by_status[response.status_code] = by_status.get(response.status_code, 0) + 1
        if response.status_code == 429:
            assert refusal(response, 429, "try again")["type"] == "rate_limit_error"
            assert response.headers["retry-after"] == "1"
    assert set(by_status) == {200, 429}, by_status
    assert by_status[200] >= 2
    assert post(server, body).status_code == 200


def test_without_room_a_large_body_still_gets_its_429(start: Callable[..., Running], mp4: bytes) -> None:
    answer_now = threading.Event()

    class Waiting(ScriptedModel):
        def stream(self, question: Any, clip: Any) -> Any:
            self.questions.append(question)
            answer_now.wait(60)
            yield from super().stream(question, clip)

    server = start(Waiting(), max_concurrency=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, request(video_part(mp4)))
        while not server.model.questions:
            time.sleep(0.02)
        large = request(video_part(mp4), vthink={}, user="x" * 20_000_000)
        refusal(post(server, large), 429, "busy")
        answer_now.set()
        assert first.result().status_code == 200


@pytest.fixture(scope="module")
def slow(video: Path) -> Iterator[Running]:
    """A server whose answers take far longer than it has time."""
    model = ScriptedModel(text="word " * 200, delay_s=0.1)
    with running(model, ServerConfig(request_timeout_s=1.5, decoders=1)) as started:
        started.warm_up(video)
        yield started


def stopped(model: ScriptedModel, times: int) -> bool:
    """Whether so many answers were stopped, at once or soon."""
    deadline = time.monotonic() + 5
    while model.stopped_early < times and time.monotonic() < deadline:
        time.sleep(0.05)
    return model.stopped_early == times


def test_slow_answer_is_a_504_and_stops(slow: Running, mp4: bytes) -> None:
    before = slow.model.stopped_early
    refusal(post(slow, request(video_part(mp4))), 504, "within 1.5 s")
    assert stopped(slow.model, before + 1)


def test_slow_stream_ends_with_an_error_event_and_stops(slow: Running, mp4: bytes) -> None:
    before = slow.model.stopped_early
    last = events(post(slow, request(video_part(mp4), stream=True)).text)[-1]
    assert "within 1.5 s" in last["error"]["message"]
    assert stopped(slow.model, before + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_generation_stops_when_the_client_leaves(start: Callable[..., Running], mp4: bytes, stream: bool) -> None:
    model = ScriptedModel(text="word " * 500, delay_s=0.05)
    server = start(model, max_concurrency=1)
    body = json.dumps(request(video_part(mp4), stream=stream)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head.encode() + body)
        while not model.questions:
            time.sleep(0.02)
        time.sleep(0.2)
    assert stopped(model, 1)
    model.text = "short"
    assert post(server, request(video_part(mp4))).status_code == 200


def test_failure_inside_is_a_500_without_its_words(start: Callable[..., Running], mp4: bytes) -> None:
    class Broken(ScriptedModel):
        def stream(self, ask: Any, clip: Any) -> Any:
            raise RuntimeError("secret internals")
            yield ""

    server = start(Broken())
    response = post(server, request(video_part(mp4)))
    refusal(response, 500, "incident")
    assert "secret" not in response.text


def test_videos_are_decoded_side_by_side_with_limits_per_process(start: Callable[..., Running], tmp_path: Path) -> None:
    server = start(max_concurrency=8, decoders=2)
    files = [write_video(tmp_path / f"{n}.mp4", seconds=1 + n).read_bytes() for n in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda data: post(server, request(video_part(data))).json(), files))
    seconds = [answer["vthink"]["media"]["duration_s"] for answer in answers]
    assert seconds == pytest.approx([1, 2, 3, 4], abs=0.15)
