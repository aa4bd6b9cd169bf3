"""Media fetched for a request: real HTTP servers on this machine stand for the ones that must not be reached."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.server
import ipaddress
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.exchange import ApiError
from vthink.components.deployment.server.media import Address, MediaReader, is_public, read_data_url

PAYLOAD = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hits: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hits.append(self.path)
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        path = self.path
        if path.startswith("/redirect-to/"):
            return self.reply(302, b"", location=path.removeprefix("/redirect-to/"))
        if path.startswith("/loop"):
            return self.reply(302, b"", location=f"{base}/loop{len(self.hits)}")
        if path == "/gzip":
            return self.reply(200, gzip.compress(bytes(10**7)), encoding="gzip")
        if path == "/missing":
            return self.reply(404, b"no")
        if path == "/empty":
            return self.reply(200, b"")
        if path in ("/endless", "/slow"):
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(10**6):
                    self.wfile.write(b"x" * (2**16 if path == "/endless" else 1))
                    time.sleep(0 if path == "/endless" else 0.05)
            except OSError:
                self.close_connection = True
            return None
        if path == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
            return None
        return self.reply(200, PAYLOAD)

    def reply(self, status: int, data: bytes, location: str = "", encoding: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if location:
            self.send_header("Location", location)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    Handler.hits.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def config(**settings: object) -> ServerConfig:
    base = {"allow_http_media": True, "max_video_bytes": 2**20, "media_timeout_s": 3}
    return ServerConfig.load({**base, **settings})


def only_127_0_0_1(address: Address) -> bool:
    """The test's own "internet"; the rest of the loopback network stays private."""
    return address == ipaddress.ip_address("127.0.0.1")


def refusal(url: str, status: int = 400, reader: MediaReader | None = None) -> str:
    with pytest.raises(ApiError) as caught:
        asyncio.run((reader or MediaReader(config())).read(url))
    assert caught.value.status == status, str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


INSIDE = """
    127.0.0.1 127.8.8.8 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 0.0.0.0
    192.0.0.192 168.63.129.16 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 192.0.2.1 ::1 :: fe80::1 fc00::1
    fd00:ec2::254 ff02::1 fec0::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1
    64:ff9b::a9fe:a9fe 2002:7f00:1:: 2002:a9fe:a9fe::1 ::7f00:1 192.88.99.1 3fff::1 3fff:fff::1 5f00::1
"""
OUTSIDE = "8.8.8.8 93.184.216.34 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808"


@pytest.mark.parametrize("address", INSIDE.split())
def test_address_inside_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE.split())
def test_address_outside_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "ftp://example.org/a", "s3://b/k", "", "x" * 9000],
)
def test_only_data_and_http_urls_are_taken(url: str) -> None:
    assert "data: URL" in refusal(url)


def test_http_is_refused_unless_allowed(web: str) -> None:
    assert "does not fetch" in refusal(f"{web}/v.mp4", reader=MediaReader(ServerConfig()))
    assert Handler.hits == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "localhost",
        "LOCALHOST.",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0",
        "[::1]",
        "[::]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_private_hosts_are_refused_in_every_spelling(web: str, host: str) -> None:
    port = web.rpartition(":")[2]
    message = refusal(f"http://{host}:{port}/v.mp4")
    assert "public" in message or "resolved" in message
    assert Handler.hits == []


def test_every_address_of_a_host_must_be_public(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(web.rpartition(":")[2])

    async def two_addresses(self: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("8.8.8.8", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", two_addresses)
    assert "public" in refusal(f"http://rebind.example:{port}/v.mp4")
    assert Handler.hits == []


def test_connects_to_the_address_that_was_checked(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time (DNS rebinding) is not asked a second time."""
    port = int(web.rpartition(":")[2])
    asked: list[object] = []

    async def first_good_then_bad(self: object, host: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host in (b"127.0.0.1", "127.0.0.1"):  # the pinned address itself
            return [(2, 1, 6, "", ("127.0.0.1", port))]
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.66", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", first_good_then_bad)
    reader = MediaReader(config(), only_127_0_0_1)
    assert asyncio.run(reader.read(f"http://rebind.example:{port}/v.mp4")) == PAYLOAD
    assert asked == ["rebind.example"]


def test_allowed_media_is_fetched(web: str) -> None:
    reader = MediaReader(config(), only_127_0_0_1)
    assert asyncio.run(reader.read(f"{web}/v.mp4")) == PAYLOAD
    assert asyncio.run(reader.read(f"{web}/redirect-to//v.mp4")) == PAYLOAD


def test_redirect_to_a_private_address_is_refused(web: str) -> None:
    reader = MediaReader(config(), only_127_0_0_1)
    port = web.rpartition(":")[2]
    assert "public" in refusal(f"{web}/redirect-to/http://127.0.0.2:{port}/secret", reader=reader)
    assert "only http" in refusal(f"{web}/redirect-to/file:///etc/passwd", reader=reader)
    assert not any("secret" in path for path in Handler.hits if not path.startswith("/redirect-to/"))


def test_redirect_to_what_is_not_a_url_is_a_400(web: str) -> None:
    assert "not a URL" in refusal(f"{web}/redirect-to/http://[", reader=MediaReader(config(), only_127_0_0_1))


def test_the_next_address_is_tried_where_one_does_not_answer(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(web.rpartition(":")[2])

    async def two_addresses(self: object, host: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        hosts = [host.decode() if isinstance(host, bytes) else host]
        hosts = ["127.0.0.9", "127.0.0.1"] if hosts == ["two.example"] else hosts
        return [(2, 1, 6, "", (address, port)) for address in hosts]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", two_addresses)
    reader = MediaReader(config(), lambda address: address.is_loopback)  # nobody listens at 127.0.0.9
    assert asyncio.run(reader.read(f"http://two.example:{port}/v.mp4")) == PAYLOAD
    assert "ConnectError" in refusal("http://127.0.0.9:9/v.mp4", reader=reader)


def test_redirects_end(web: str) -> None:
    assert "redirects more than 3" in refusal(f"{web}/loop", reader=MediaReader(config(), only_127_0_0_1))
    assert len(Handler.hits) == 4


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("endless", 413, "larger than"),
        ("huge", 413, "larger than"),
        ("slow", 504, "did not arrive"),
        ("gzip", 400, "compressed"),
        ("missing", 400, "HTTP 404"),
        ("empty", 400, "0 bytes"),
    ],
)
def test_what_is_fetched_is_bounded(web: str, path: str, status: int, words: str) -> None:
    reader = MediaReader(config(media_timeout_s=1), only_127_0_0_1)
    started = time.monotonic()
    assert words in refusal(f"{web}/{path}", status, reader)
    assert time.monotonic() - started < 5


def test_only_allowed_domains(web: str) -> None:
    reader = MediaReader(config(allowed_media_domains=["media.example.org", ".cdn.example"]), only_127_0_0_1)
    assert "not allowed" in refusal(f"{web}/v.mp4", reader=reader)
    assert "not allowed" in refusal("http://evilmedia.example.org/", reader=reader)
    assert "not allowed" in refusal("http://media.example.org.evil.net/", reader=reader)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    message = refusal("http://user:secret@example.org/v.mp4?X-Signature=abc")
    assert "secret" not in message


def test_data_url() -> None:
    url = "data:video/mp4;base64," + base64.b64encode(PAYLOAD).decode()
    assert read_data_url(url, len(PAYLOAD)) == PAYLOAD
    assert asyncio.run(MediaReader(ServerConfig()).read(url)) == PAYLOAD
    with pytest.raises(ApiError) as caught:
        read_data_url(url, len(PAYLOAD) - 1)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "url",
    ["data:", "data:video/mp4,abc", "data:video/mp4;base64,@@@@", "data:;base64,", "data:;base64,é", "data:;base64,A"],
)
def test_malformed_data_url_is_a_400(url: str) -> None:
    assert refusal(url)
