"""Connections with limits: how many there are, and how large and slow their headers may be.

uvicorn (0.54) has none of these with httptools: thousands of idle connections use up the file descriptors, after
which asyncio logs a traceback for every connection it cannot accept.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..config import ServerConfig

_MAX_HEADER_BYTES = 64 * 2**10
_SPARE_DESCRIPTORS = 192  # for the backlog (64), the decoders, the model's files and the outside


def limited(config: ServerConfig) -> type[LimitedProtocol]:
    """The protocol of a server's connections; raises the process' limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.max_connections + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = config.max_connections if soft == resource.RLIM_INFINITY else soft - _SPARE_DESCRIPTORS

    class Protocol(LimitedProtocol):
        max_connections = max(8, min(config.max_connections, room))
        header_timeout_s = config.header_timeout_s
        waiting: ClassVar[dict[LimitedProtocol, None]] = {}

    return Protocol


class LimitedProtocol(HttpToolsProtocol):
    """A connection among a limited number of them."""

    max_connections: ClassVar[int]
    header_timeout_s: ClassVar[float]
    waiting: ClassVar[dict[LimitedProtocol, None]]
    """Connections without a request in work, the one that has waited longest first."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._header_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Makes room, or refuses."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            oldest = next(iter(self.waiting), None)
            if oldest is None:
                self._refuse(503, "too many connections; try again soon")
                return
            oldest._close()
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._header_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a header."""
        waiting = self in self.waiting
        if waiting:
            self._header_bytes += len(data)
            if self._header_bytes > len(data) and self._deadline is None:
                self._expect_header()
        super().data_received(data)
        if waiting and self in self.waiting and self._header_bytes > _MAX_HEADER_BYTES:
            self._refuse(431, "the header is larger than 64 KiB")

    def on_headers_complete(self) -> None:
        """The request is in work from here on."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._header_done()
        if size > _MAX_HEADER_BYTES:
            self._refuse(431, "the header is larger than 64 KiB")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """It waits again (uvicorn closes it after its keep-alive time)."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self.waiting[self] = None

    def shutdown(self) -> None:
        """The server stops: what has not arrived whole is not waited for."""
        super().shutdown()
        if self.cycle is None or (self.cycle.more_body and not self.cycle.response_started):
            self._close()

    def _expect_header(self) -> None:
        self.waiting[self] = None
        self._deadline = self.loop.call_later(self.header_timeout_s, self._close)

    def _header_done(self) -> None:
        self.waiting.pop(self, None)
        self._header_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._header_done()
        if not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, status: int, words: str) -> None:
        if self.transport.is_closing():
            return
        reason = {431: "Request Header Fields Too Large", 503: "Service Unavailable"}[status]
        body = f'{{"error": {{"message": "{words}", "type": "invalid_request_error", "param": null, "code": null}}}}'
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
        self._header_done()
        self.transport.close()
