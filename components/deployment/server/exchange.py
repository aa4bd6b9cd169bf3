"""One HTTP request and its response: a bounded body in; JSON, events or a refusal out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

Headers = Mapping[str, str] | None

_DRAIN_S = 5.0
_KINDS = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(Exception):
    """A refusal in OpenAI's error shape, with its HTTP status."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Headers = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class HttpExchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._asgi = (scope, receive, send)
        request = Request(scope, receive)
        self.headers, self._pieces = request.headers, request.stream()
        self.status: int | None = None
        """Of the response, once it has begun."""

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The request's body; ApiError 413 or 408, ClientDisconnect."""
        declared = self.headers.get("content-length", "0")
        body = bytearray()
        if declared.isdigit() and int(declared) <= limit:
            try:
                async with asyncio.timeout(timeout_s):
                    async for piece in self._pieces:
                        body += piece
                        if len(body) > limit:
                            break
                    else:
                        return bytes(body)
            except TimeoutError:
                raise ApiError(408, f"the request did not arrive within {timeout_s:g} s") from None
        await self.drain(limit)
        raise ApiError(413, f"the request is larger than {limit} bytes, the most this server takes")

    async def drain(self, limit: int) -> None:
        """Read and drop what is still arriving, within bounds.

        A connection that is closed over unread data is reset, and the client then may never see the response.
        """
        if self.headers.get("expect"):
            return  # the client waits for our word and has not sent the body
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                async for piece in self._pieces:
                    dropped += len(piece)
                    if dropped > 4 * limit:
                        return

    async def gone(self) -> None:
        """Return when the client has gone (after the body was read)."""
        while (await self._asgi[1]())["type"] != "http.disconnect":
            pass

    async def json(self, status: int, content: object, headers: Headers = None) -> None:
        """Answer with JSON."""
        self.status = status
        await JSONResponse(content, status, headers)(*self._asgi)

    async def event(self, content: object, last: bool = False) -> None:
        """Send a server-sent event (None: ``[DONE]``), starting the response with the first."""
        send = self._asgi[2]
        if self.status is None:
            self.status = 200
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers.append((b"x-accel-buffering", b"no"))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        data = "[DONE]" if content is None else json.dumps(content)
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": not last})

    async def fail(self, error: ApiError) -> None:
        """Answer with an error; in a stream that has begun, as its last event."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):  # the client may not be reading
                if self.status is None:
                    await self.json(error.status, error.body, error.headers)
                else:
                    self.status = error.status
                    await self.event(error.body)
                    await self.event(None, last=True)
