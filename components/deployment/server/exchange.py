"""One HTTP request and its response, within bounds, and a refusal in OpenAI's shape."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

Json = dict[str, Any]
Headers = Mapping[str, str] | None
_KINDS = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}
_DRAIN_S = 5.0


class ApiError(Exception):
    """A refusal in OpenAI's error shape, with its HTTP status."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Headers = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers, self.code = status, headers, code
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class UploadBudget:
    """Bytes of request bodies that the server holds at once, until their media are decoded."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0


class Upload:
    """A request's body, counted in the budget until it is freed."""

    def __init__(self, budget: UploadBudget) -> None:
        self._budget, self._counted, self.data = budget, 0, bytearray()

    def add(self, piece: bytes) -> None:
        """ApiError 429: there is no room for so many more bytes."""
        if self._budget.num_bytes + len(piece) > self._budget.max_bytes:
            words = "the server holds as many uploads as it can; try again soon"
            raise ApiError(429, words, code="rate_limit_exceeded", headers={"retry-after": "2"})
        self._budget.num_bytes += len(piece)
        self._counted += len(piece)
        self.data += piece

    def free(self) -> None:
        """The body is no longer needed."""
        self._budget.num_bytes -= self._counted
        self._counted, self.data = 0, bytearray()


class HttpExchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._asgi = (scope, receive, send)
        request = Request(scope, receive)
        self.headers, self._pieces = request.headers, request.stream()
        self.peer = request.client.host if request.client is not None else ""
        self.status: int | None = None  # of the response, once it has begun
        self.response_headers: dict[str, str] = {}

    async def body(self, limit: int, timeout_s: float, upload: Upload) -> None:
        """Read the request's body; ApiError 413, 408, 429, ClientDisconnect."""
        declared = self.headers.get("content-length", "0")
        try:
            if declared.isdigit() and int(declared) <= limit:
                async with asyncio.timeout(timeout_s):
                    async for piece in self._pieces:
                        if len(upload.data) + len(piece) > limit:
                            break
                        upload.add(piece)
                    else:
                        return
            raise ApiError(413, f"the request is larger than {limit} bytes, the most this server takes")
        except TimeoutError:
            raise ApiError(408, f"the request did not arrive within {timeout_s:g} s") from None
        except ApiError:
            upload.free()
            await self.drain(limit)
            raise

    async def drain(self, limit: int) -> None:
        """Drop what still arrives, within bounds: closed over unread data, a connection is reset, the response lost."""
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
        response = JSONResponse(content, status, {**self.response_headers, **(headers or {})})
        self.status = status
        await response(*self._asgi)

    async def event(self, content: object, last: bool = False) -> None:
        """Send a server-sent event (None: ``[DONE]``), starting the response with the first."""
        send = self._asgi[2]
        if self.status is None:
            self.status = 200
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers.append((b"x-accel-buffering", b"no"))
            headers += [
                (name.encode(), value.encode("latin-1", "replace")) for name, value in self.response_headers.items()
            ]
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
