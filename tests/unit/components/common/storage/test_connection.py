"""A store that is away, slow, or refuses the keys: one line, in time."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.names import (
    StorageError,
)
from vthink.components.common.storage.s3 import Storage


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_endpoint_that_refuses_connections_gives_one_line_within_seconds(s3: StorageConfig) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(StorageError, match="cannot reach the S3 endpoint") as error:
        Storage(s3.model_copy(update={"endpoint_url": url})).check()
    assert time.monotonic() - start < 8
    assert url in one_line(error)


@pytest.mark.parametrize("accepts", [False, True], ids=["connection not taken", "request not answered"])
def test_an_endpoint_that_does_not_answer_gives_one_line_within_seconds(s3: StorageConfig, accepts: bool) -> None:
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(10 if accepts else 0)
        for _ in range(0 if accepts else 4):
            # A full queue: the kernel ignores further connections.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        start = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StorageError, match="cannot reach the S3 endpoint") as error:
            Storage(s3.model_copy(update={"endpoint_url": url})).check()
        assert time.monotonic() - start < 30
        assert "imeout" in one_line(error)


def test_a_body_that_breaks_off_is_read_again(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [b"{", b"{", b"{}"]

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert Storage(s3.model_copy(update={"endpoint_url": url})).read_json("s3://b/x") == {}
        assert answers == []
        answers += [b"{"] * 9
        with pytest.raises(StorageError, match="cannot reach") as error:
            Storage(s3.model_copy(update={"endpoint_url": url, "outage_s": 0.7})).read_json("s3://b/x")
        one_line(error)
        server.shutdown()


def test_an_ill_formed_endpoint_gives_one_line(s3: StorageConfig) -> None:
    with pytest.raises(StorageError, match="Invalid endpoint") as error:
        Storage(s3.model_copy(update={"endpoint_url": "localhost:9000"})).check()
    one_line(error)


@pytest.mark.parametrize(
    ("key", "secret"),
    [("someone-else", "test-secret-key"), ("test-access-key", "wrong")],
    ids=["key", "secret"],
)
def test_wrong_credentials_give_one_line(
    s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, key: str, secret: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for action in (Storage(s3).check, Storage(s3).ensure_bucket):
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"credentials|keys") as error:
            action()
        assert time.monotonic() - start < 8
        assert s3.endpoint_url is not None
        assert s3.endpoint_url in one_line(error)


def test_missing_credentials_give_one_line(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no usable S3 credentials") as error:
        Storage(s3).check()
    one_line(error)


def test_credentials_from_a_profile_work(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "credentials").write_text(f"[team]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    Storage(s3).check()
