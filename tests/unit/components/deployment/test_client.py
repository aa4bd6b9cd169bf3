from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.launch.process import free_port
from vthink.components.deployment.client import AskError, ask

from .conftest import ANSWER, Running, ScriptedEngine


@pytest.mark.parametrize("streaming", [False, True])
def test_answer_is_structured(server: Running, video: Path, streaming: bool) -> None:
    pieces: list[str] = []
    reply = ask(server.url, video, "Which way?", ["left", "right"], pieces.append if streaming else None, seed=3)
    assert reply["answer"] == "B"
    assert reply["segments"][0]["caption"] == "a red square moves right"
    assert reply["text"] == ANSWER
    assert reply["finish_reason"] == "stop"
    assert reply["token_ids"] == list(range(len(ANSWER.split(" "))))
    assert reply["usage"]["completion_tokens"] == len(reply["token_ids"])
    assert ("".join(pieces) == ANSWER) == streaming
    assert server.engine.asks[-1].options == ("left", "right")


def test_url_may_end_in_v1_and_proxies_are_not_asked_about_this_machine(
    server: Running, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(server.url + "/v1/", video, "Which way?")["answer"] == "B"


def one_line(error: pytest.ExceptionInfo[AskError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_say_what_is_wrong(server: Running, video: Path, tmp_path: Path) -> None:
    with pytest.raises(AskError) as caught:
        ask(server.url, tmp_path / "none.mp4", "?")
    assert "none.mp4: No such file" in one_line(caught)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(AskError, match="empty"):
        ask(server.url, tmp_path / "empty.mp4", "?")
    with pytest.raises(AskError) as caught:
        ask(f"http://127.0.0.1:{free_port()}", video, "?")
    assert "no server at" in one_line(caught)
    with pytest.raises(AskError) as caught:
        ask("nonsense", video, "?")
    assert "not a server's address" in one_line(caught)
    with pytest.raises(AskError) as caught:
        ask(server.url, video, " ")
    assert "HTTP 400" in one_line(caught)
    assert "question is empty" in str(caught.value)


def test_stream_that_breaks_off_is_an_error(start: Callable[..., Running], video: Path) -> None:
    server = start(ScriptedEngine(text="word " * 100, delay_s=0.1), request_timeout_s=2)
    with pytest.raises(AskError, match="within 2 s"):
        ask(server.url, video, "?", on_delta=lambda text: None)


def answering(status: int, body: bytes) -> tuple[http.server.HTTPServer, str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def test_answer_of_another_openai_server_is_parsed_here(video: Path) -> None:
    body = b'{"model": "m", "choices": [{"message": {"content": "So. <answer>7</answer>"}, "finish_reason": "stop"}]}'
    server, url = answering(200, body)
    assert ask(url, video, "?")["answer"] == "7"
    server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>hello</html>", "does not answer like"),
        (200, b'{"choices": []}', "does not answer like"),
        (502, b"<html>bad gateway</html>", "HTTP 502"),
        (500, b'{"error": "RuntimeError : x"}', "RuntimeError"),
    ],
)
def test_other_servers_are_one_line_too(video: Path, status: int, body: bytes, words: str) -> None:
    server, url = answering(status, body)
    with pytest.raises(AskError, match=words) as caught:
        ask(url, video, "?")
    one_line(caught)
    server.shutdown()
