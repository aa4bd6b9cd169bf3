"""The list of models, the page at the root, and the guard around every route, of KServe's too."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.serve import CHAT_PATHS, Guard, page
from vthink.tests.fakes.model_server import Running


async def application(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("reached")(scope, receive, send)


def request(
    method: str, path: str, config: ServerConfig | None = None, api_key: str | None = None, **headers: str
) -> httpx.Response:
    async def send() -> httpx.Response:
        guard = Guard(application, config or ServerConfig(), api_key)
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def refusal(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert words in response.json()["error"]["message"]


def test_with_a_key_questions_need_it_and_health_does_not() -> None:
    for key in ({}, *({"authorization": value} for value in ("Bearer wrong", "Bearer right2", "right"))):
        refusal(request("POST", CHAT_PATHS[0], api_key="right", **key), 401, "asks for a key")
        refusal(request("GET", "/v1/models", api_key="right", **key), 401, "asks for a key")
    assert request("POST", CHAT_PATHS[0], api_key="right", authorization="Bearer right").text == "reached"
    for path in ("/v2/health/ready", "/metrics", "/", "/v2/models/vthink/ready"):
        assert request("GET", path, api_key="right").text == "reached"
    for path in ("/openapi.json", "/docs", "/v2/models", "/v1/models/vthink", "/v2/models/a/ready/b"):
        refusal(request("GET", path, api_key="right"), 401, "asks for a key")
    for scheme in ("bearer", "BEARER"):
        assert request("GET", "/v1/models", api_key="right", authorization=f"{scheme} right").text == "reached"
    assert request("POST", CHAT_PATHS[0]).text == "reached"  # the control: no key is set


def test_other_host_names_are_refused_on_loopback() -> None:
    refusal(request("GET", "/", host="rebind.example"), 403, "localhost only")
    assert request("GET", "/", host="localhost:1234").text == "reached"
    assert request("GET", "/", ServerConfig(host="0.0.0.0"), host="vthink.team.svc").text == "reached"


def test_two_hosts_are_refused(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: rebind.example\r\nHost: localhost\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "path", ["/v2/repository/models/vthink/unload", "/v1/models/vthink:predict", "/v2/models/vthink/infer", "/nowhere"]
)
def test_nothing_else_takes_a_post(path: str) -> None:
    refusal(request("POST", path), 404, CHAT_PATHS[0])


def test_other_methods_are_refused() -> None:
    refusal(request("DELETE", "/v1/models"), 405, "method DELETE is not allowed")


# --- the routes


def test_models_answers_openai_and_kserve_clients(server: Running) -> None:
    body = httpx.get(server.url + "/v1/models").json()
    assert body["data"][0]["id"] == "vthink"
    assert body["models"] == ["vthink"]
    one = httpx.get(server.url + "/v1/models/vthink").json()
    assert (one["id"], one["object"], one["ready"]) == ("vthink", "model", True)
    refusal(httpx.get(server.url + "/v1/models/gpt"), 404, "this server has 'vthink'")


def test_page_allows_its_own_script_and_nothing_else(server: Running) -> None:
    response = httpx.get(server.url + "/")
    policy = response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2


def test_page_asks_nobody_else_and_has_no_inline_handlers() -> None:
    html, _ = page()
    html = html.replace("http://www.w3.org/2000/svg", "")
    for forbidden in ("http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
        assert forbidden not in html, forbidden
    assert not re.search(r"<[^>]*\son[a-z]+=", html)
