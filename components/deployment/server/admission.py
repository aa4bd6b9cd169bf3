"""Who is served next: so many requests at once, the others in a short queue that takes turns between callers."""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect

from .exchange import ApiError


class Admission:
    """Slots for requests, and a queue with a deadline in front of them. A slot that becomes free goes to the caller who
    has waited longest for a turn, not to the one with most requests."""

    def __init__(self, slots: int, max_waiting: int, max_wait_s: float) -> None:
        """Args: ``slots``: served at once; ``max_waiting``: requests in the queue; ``max_wait_s``: the longest wait."""
        self._slots, self._max_waiting, self._max_wait_s = slots, max_waiting, max_wait_s
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._served_s: deque[float] = deque(maxlen=32)
        self.in_work = self.num_waiting = 0

    @contextlib.asynccontextmanager
    async def slot(self, caller: str, gone: asyncio.Future[None]) -> AsyncIterator[None]:
        """A slot, once there is one. ApiError 429: too many wait, or this one did for too long; ClientDisconnect."""
        if self.in_work < self._slots and not self.num_waiting:
            self.in_work += 1
        else:
            await self._wait(caller, gone)
        started = time.monotonic()
        try:
            yield
            self._served_s.append(time.monotonic() - started)
        finally:
            self.in_work -= 1
            self._next()

    async def _wait(self, caller: str, gone: asyncio.Future[None]) -> None:
        if self.num_waiting >= self._max_waiting:
            raise self._busy(f"{self.num_waiting} requests wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        self.num_waiting += 1
        try:
            await asyncio.wait({turn, gone}, timeout=self._max_wait_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if turn.done():
                self.in_work -= 1
                self._next()
            raise
        finally:
            self._forget(caller, turn)
        if not turn.done():
            raise ClientDisconnect if gone.done() else self._busy(f"this request waited for {self._max_wait_s:g} s")

    def _forget(self, caller: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            self.num_waiting -= 1
            if not turns:
                del self._waiting[caller]

    def _next(self) -> None:
        while self._waiting and self.in_work < self._slots:
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            self.num_waiting -= 1
            if turns:
                self._waiting[caller] = turns  # at the end of the line
            if not turn.done():
                self.in_work += 1
                turn.set_result(None)

    def _busy(self, why: str) -> ApiError:
        """How long until a new request would have its turn: what waits, at the pace of the last ones."""
        pace_s = sum(self._served_s) / len(self._served_s) if self._served_s else 1.0
        wait_s = max(1, min(math.ceil(pace_s * (self.num_waiting + 1) / self._slots), 60))
        words = f"the server is busy ({why}); try again in {wait_s} s"
        return ApiError(429, words, code="rate_limit_exceeded", headers={"retry-after": str(wait_s)})
