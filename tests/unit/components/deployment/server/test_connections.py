"""Limits of connections, over real sockets: uvicorn 0.54 with httptools, as KServe 0.21 starts it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.tests.fakes.model_server import Running, ScriptedModel, running


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server with few connections and little patience."""
    config = ServerConfig(max_connections=8, header_timeout_s=0.5, upload_timeout_s=30, decoders=1)
    with running(ScriptedModel(), config) as started:
        yield started


def connect(server: Running, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(data)
    return client


def ended(client: socket.socket, within_s: float) -> bool:
    """Whether the server closes the connection in time."""
    client.settimeout(within_s)
    try:
        while client.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEAD += b"Content-Length: 99\r\n\r\n"


def test_idle_connections_make_room_for_new_ones(small: Running) -> None:
    clients = [connect(small) for _ in range(40)]
    assert httpx.get(small.url + "/v1/models", timeout=10).status_code == 200
    assert ended(clients[0], 5)
    for client in clients:
        client.close()


def test_beyond_the_limit_of_busy_connections_one_is_refused(small: Running) -> None:
    clients = [connect(small, HEAD + b"{") for _ in range(8)]
    time.sleep(0.2)
    with connect(small, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n") as late:
        assert late.recv(4096).startswith(b"HTTP/1.1 503 ")
    for client in clients:
        client.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # the control: with room again it is answered
        try:
            assert httpx.get(small.url + "/v1/models", timeout=10).status_code == 200
            return
        except (httpx.TransportError, AssertionError):
            time.sleep(0.05)
    pytest.fail("not answered")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_header_that_does_not_arrive_is_not_waited_for(small: Running, sent: bytes) -> None:
    with connect(small, sent) as client:
        assert ended(client, 5)


def test_a_body_may_take_longer_than_a_header(small: Running) -> None:
    with connect(small, HEAD + b"{") as client:
        assert not ended(client, 1.0)


def test_a_connection_is_used_again(small: Running) -> None:
    with httpx.Client(base_url=small.url) as client:
        for _ in range(3):
            assert client.get("/v1/models").status_code == 200
            time.sleep(0.6)  # longer than a header may take: it has not begun


@pytest.mark.parametrize("whole", [True, False])
def test_a_header_of_megabytes_is_refused(small: Running, whole: bool) -> None:
    with connect(small, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n") as client:
        try:
            for _ in range(100):
                client.sendall(b"X-Long: " + b"a" * 100_000 + b"\r\n" if whole else b"a" * 100_000)
            answer = client.recv(4096)
        except ConnectionError:
            answer = b"reset"
        assert answer == b"reset" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert httpx.get(small.url + "/v1/models", timeout=10).status_code == 200


def test_a_server_that_stops_does_not_wait_for_half_a_request(start: Callable[..., Running]) -> None:
    config = ServerConfig(upload_timeout_s=30, decoders=1)
    with running(ScriptedModel(), config) as server:
        client = connect(server, HEAD + b"{")
        time.sleep(0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 0.9  # the fake gives answers in work 1 s
    assert ended(client, 1)
