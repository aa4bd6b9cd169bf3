"""The list of models and the page at the root."""

from __future__ import annotations

import re

import httpx
from vthink.components.deployment.server.page import page
from vthink.tests.fakes.model_server import Running


def test_models_answers_openai_and_kserve_clients(server: Running) -> None:
    body = httpx.get(server.url + "/v1/models").json()
    assert body["data"][0]["id"] == "vthink"
    assert body["models"] == ["vthink"]


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
