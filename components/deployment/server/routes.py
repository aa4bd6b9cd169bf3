"""The routes beside KServe's own (chat, the list of models, the page at ``/``), and what may be asked from outside."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import importlib.resources
import re
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import ServerConfig
from .chat import ChatCompletions
from .exchange import ApiError, HttpExchange

CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")
"""OpenAI's and vLLM's path, and that of KServe's Hugging Face runtime."""


@functools.cache
def page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which admits its own script and style and no others."""
    html = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def source(tag: str) -> str:
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inner)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "media-src blob:; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def build_routes(chat: ChatCompletions, config: ServerConfig, about: Mapping[str, Any]) -> list[BaseRoute]:
    """All routes. ``about`` is what `GET /v1/models` says about the model beyond its name."""
    card = {"id": config.model_name, "object": "model", "created": int(time.time()), "owned_by": "vthink", **about}
    listed = {"object": "list", "data": [card], "models": [config.model_name]}  # `models` is KServe's own answer

    async def models(_: Request) -> Response:
        return JSONResponse(listed)

    async def index(_: Request) -> Response:
        html, policy = page()
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return HTMLResponse(html, headers=headers | {"referrer-policy": "no-referrer", "cache-control": "no-cache"})

    answers = {"/": index, "/v1/models": models, "/openai/v1/models": models}
    return [
        *(Route(path, chat, methods=["POST"]) for path in CHAT_PATHS),
        *(Route(path, answer, methods=["GET"]) for path, answer in answers.items()),
    ]


class Guard:
    """Middleware for every route: only what is meant to be asked from outside gets through.

    KServe's server also has routes that load and unload models and take inputs without a limit; this server's model
    stays loaded and is asked at `CHAT_PATHS`. On the loopback address the ``Host`` must be a name of this machine, so
    that a web page whose name server points to it (DNS rebinding) cannot talk to the server.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, api_key: str | None = None) -> None:
        """Args: ``api_key``: bearer token that OpenAI's routes ask for; None: none. Health and metrics stay open."""
        self._app = app
        self._authorization = f"Bearer {api_key}".encode("latin-1", "replace") if api_key else None
        self._hosts = {"localhost", "127.0.0.1", "[::1]", config.host} if config.loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await HttpExchange(scope, receive, send).fail(refusal)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers, method = dict(scope["headers"]), scope["method"]
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1").lower())
        if self._hosts is not None and host not in self._hosts:
            return ApiError(403, f"this server answers to localhost only, not to '{host[:80]}'")
        if method not in ("GET", "HEAD", "POST"):
            return ApiError(405, f"method {method[:16]} is not allowed", headers={"allow": "GET, HEAD, POST"})
        if method == "POST" and scope["path"] not in CHAT_PATHS:
            return ApiError(404, f"nothing is answered there; ask at POST {CHAT_PATHS[0]}")
        key, expected = headers.get(b"authorization", b""), self._authorization
        if expected is not None and "/v1/" in scope["path"] and not hmac.compare_digest(key, expected):
            words = "this server asks for a key: send the header Authorization: Bearer KEY"
            return ApiError(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return None
