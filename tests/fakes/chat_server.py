"""A server of OpenAI chat completions that answers by a script, over real HTTP; for clients, which must bear anything.

Its well-formed answers have the shape that this package's own server and vLLM 0.32 (2026-12-01) give: vLLM adds
fields, which clients ignore.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What one request gets."""

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    """Before anything is sent."""
    drip_s: float | None = None
    """Seconds between two bytes of the body."""
    cut: int | None = None
    """The connection closes after so many bytes of the body."""


def completion(text: Any, finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A ``chat.completion`` object."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"object": "chat.completion", "model": "played", "choices": [choice], **more}


def events(*chunks: dict[str, Any] | str) -> bytes:
    """Server-sent events."""
    return b"".join(f"data: {c if isinstance(c, str) else json.dumps(c)}\n\n".encode() for c in chunks)


def delta(text: str | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A ``chat.completion.chunk`` object."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "model": "played", "choices": [choice], **more}


@dataclass
class ChatServer:
    """A running server; its last scripted answer is repeated."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The JSON bodies that came, in order; of a GET, its path."""
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    reply: Callable[[dict[str, Any]], Answer] | None = None
    """Answers by the request instead of by the script."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: dict[str, Any], headers: dict[str, str]) -> Answer:
        """The answer to the next request."""
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.arrived_s.append(time.monotonic())
            if self.reply is not None:
                return self.reply(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def chat_server(*answers: Answer) -> Iterator[ChatServer]:
    """A server on a port of the loopback address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._answer({"path": self.path})

        def _answer(self, request: dict[str, Any]) -> None:
            answer = server.take(request | {"path": self.path}, dict(self.headers))
            time.sleep(answer.delay_s)
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                if answer.drip_s is None:
                    self.wfile.write(body[: answer.cut])
                else:
                    for byte in body[: answer.cut]:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(answer.drip_s)
            except OSError:
                pass  # the client has gone
            self.close_connection = answer.cut is not None

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{listener.server_address[1]}", list(answers))
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
