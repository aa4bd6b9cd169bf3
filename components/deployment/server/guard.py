"""What may be asked from outside: paths, methods, host names and the key."""

from __future__ import annotations

import hmac
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import ServerConfig
from .errors import ApiError
from .exchange import HttpExchange
from .routes import CHAT_PATHS


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
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await HttpExchange(scope, receive, send).fail(refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = re.sub(r":\d+$", "", host)
        if self._hosts is not None and name not in self._hosts:
            return ApiError(403, f"this server answers to localhost only, not to '{name[:80]}'")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return ApiError(405, f"method {scope['method'][:16]} is not allowed", headers={"allow": "GET, HEAD, POST"})
        if scope["method"] == "POST" and scope["path"] not in CHAT_PATHS:
            return ApiError(404, f"nothing is answered there; ask at POST {CHAT_PATHS[0]}")
        key = headers.get(b"authorization", b"")
        guarded = self._authorization is not None and "/v1/" in scope["path"]
        if guarded and not hmac.compare_digest(key, self._authorization or b""):
            return ApiError(
                401,
                "this server asks for a key: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return None
