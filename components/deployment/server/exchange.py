"""One HTTP request and its response: a bounded body in, JSON or events out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Scope, Send

from .errors import ApiError

_DRAIN_S = 5.0


class ClientGoneError(Exception):
    """The client has gone."""


class HttpExchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        self.status: int | None = None

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The request's body. Raises ApiError 413 or 408."""
        declared = self.headers.get("content-length", "0")
        too_large = ApiError(413, f"the request is larger than {limit} bytes, the most this server takes")
        if not declared.isdigit() or int(declared) > limit:
            await self.drain(limit)
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                async for piece in self._pieces():
                    body += piece
                    if len(body) > limit:
                        break
        except TimeoutError:
            raise ApiError(408, f"the request did not arrive within {timeout_s:g} s") from None
        if len(body) > limit:
            await self.drain(limit)
            raise too_large
        return bytes(body)

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    async def drain(self, limit: int) -> None:
        """Read and drop what is still arriving, within bounds.

        A connection that is closed over unread data is reset, and the client then may never see the response.
        """
        if self.headers.get("expect"):
            return  # the client waits for our word and has not sent the body
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                async for piece in self._pieces():
                    dropped += len(piece)
                    if dropped > 4 * limit:
                        return

    async def gone(self) -> None:
        """Return when the client has gone (after the body was read)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def json(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        body = json.dumps(content).encode()
        head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._start(status, head)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, content: dict[str, Any] | None, last: bool = False) -> None:
        """Send a server-sent event (None: ``[DONE]``), starting the response with the first."""
        if self.status is None:
            await self._start(
                200,
                {
                    "content-type": "text/event-stream; charset=utf-8",
                    "cache-control": "no-cache",
                    "x-accel-buffering": "no",
                },
            )
        data = "[DONE]" if content is None else json.dumps(content)
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": not last})

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
