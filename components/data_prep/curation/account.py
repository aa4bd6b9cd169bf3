"""What a curation has spent, what it may spend, and whether it goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ...common.chat_endpoint.endpoint import EndpointError


class StoppedError(Exception):
    """A call that was not made, because no more calls are to be made."""


@dataclass
class Account:
    """Calls, tokens and money of a curation."""

    budget_usd: float | None = None
    calls: Counter[str] = field(default_factory=Counter)
    """Answered calls by role."""
    failed_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    """Spent, what earlier runs spent included."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more calls are to be made; those under way are waited for."""
    stop_reason: str = ""
    error: EndpointError | None = None
    """Why a server cannot be used, when that is what stopped it."""
    _reserved_usd: float = 0.0
    _under_way: int = 0
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, reason: str | EndpointError) -> None:
        """Let no further call begin."""
        if not self.stopped.is_set():
            self.stop_reason = str(reason)
            self.error = reason if isinstance(reason, EndpointError) else None
            self.stopped.set()
            self._ended.set()

    @contextlib.asynccontextmanager
    async def reserve(self, usd: float) -> AsyncIterator[None]:
        """Set aside what a call may cost at most while it is under way; where the budget is too small for it beside
        the others, wait for them, as most cost less than that.

        Raises:
            StoppedError: the budget does not allow it, or no more calls are to be made.
        """
        while self.budget_usd is not None and self.usd + self._reserved_usd + usd > self.budget_usd:
            if not self._under_way:
                self.stop(
                    f"the budget of ${self.budget_usd:g} does not allow another call (${self.usd:.4f} spent, up to "
                    f"${usd:.4f} for the next)"
                )
            if self.stopped.is_set():
                break
            self._ended.clear()
            await self._ended.wait()
        self._check()
        self._reserved_usd += usd
        self._under_way += 1
        try:
            yield
        finally:
            self._reserved_usd -= usd
            self._under_way -= 1
            self._ended.set()

    def _check(self) -> None:
        if self.stopped.is_set():
            raise StoppedError(self.stop_reason)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Around each attempt of a call.

        Raises:
            StoppedError: no more calls are to be made.
        """
        self._check()
        try:
            yield
        except Exception:
            self.failed_attempts += 1
            raise

    async def pause(self, seconds: float) -> None:
        """Wait, unless no more calls are to be made."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)
