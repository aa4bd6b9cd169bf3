"""The teacher or the judge: a model behind a server, asked by many at once, counted, and never beyond the budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ...common.chat_endpoint.endpoint import CallFailedError, ChatEndpoint, EndpointError, EndpointUnusableError
from ...common.chat_endpoint.media import Part
from ..config import TeacherConfig

Role = Literal["teacher", "judge"]
IMAGE_TOKENS = 1000  # what an image is taken to cost until the server has said what it did cost
MAX_FAILURES_IN_A_ROW = 20  # after so many calls that failed for good, without one that worked, the server is given up


class StoppedError(Exception):
    """A call that was not made, because no more calls are to be made."""


@dataclass
class Account:
    """Calls, tokens and money of a curation."""

    budget_usd: float | None = None
    calls: Counter[str] = field(default_factory=Counter)  # answered calls by role
    failed_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0  # spent, what earlier runs spent included
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more calls are to be made; those under way are waited for."""
    stop_reason: str = ""
    error: EndpointError | None = None  # why a server cannot be used, when that is what stopped it
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
        """Set aside what a call may cost at most while it is under way; where the budget is too small for it beside the
        others, wait for them, as most cost less than that. Raises StoppedError: the budget does not allow it, or no
        more calls are to be made."""
        while self.budget_usd is not None and self.usd + self._reserved_usd + usd > self.budget_usd:
            if not self._under_way:
                spent = f"${self.usd:.4f} spent, up to ${usd:.4f} for the next"
                self.stop(f"the budget of ${self.budget_usd:g} does not allow another call ({spent})")
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
        """Around each attempt of a call. Raises StoppedError: no more calls are to be made."""
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


class Answer(NamedTuple):
    """What a model wrote, whether it came to its end (not cut off at ``max_tokens``), tokens in and out, its cost."""

    text: str
    finished: bool
    tokens: tuple[int, int]
    usd: float


class CurationModel:
    """A model in one role. `endpoint` is an asynchronous context manager that must be entered."""

    def __init__(self, role: Role, config: TeacherConfig, account: Account):
        """Check the settings. Raises EndpointUnusableError: no URL, no model, or no key where one is named."""
        self.role, self.config, self._account = role, config, account
        self._failures_in_a_row = 0
        setting = f"curation.{role}"
        self.endpoint = ChatEndpoint(
            config, name=f"the {role}", setting=setting, attempt=account.attempt, pause=account.pause
        )
        if not config.model:
            raise EndpointUnusableError(f"{setting}.model is not set; give it with --set {setting}.model=…")

    async def ask(self, parts: Sequence[Part], seed: int) -> Answer:
        """One answered call; waits its turn, and repeats what failed. Raises CallFailedError: the server refused this
        call, or failed at every attempt; EndpointUnusableError: the server cannot be used at all; StoppedError: no more
        calls are to be made."""
        config, account = self.config, self._account
        texts = [part["text"].encode("utf-8", "replace") for part in parts if part["type"] == "text"]
        most_input_tokens = sum(len(text) // 2 for text in texts) + IMAGE_TOKENS * (len(parts) - len(texts))
        message = {"role": "user", "content": parts[0]["text"] if len(parts) == 1 else list(parts)}
        async with account.reserve(config.usd(most_input_tokens, config.most_output_tokens)):
            try:
                reply = await self.endpoint.complete([message], {"seed": seed, **config.sampling()})
            except EndpointUnusableError as error:
                account.stop(error)
                raise
            except CallFailedError as error:
                self._failures_in_a_row += 1
                if (n := self._failures_in_a_row) >= MAX_FAILURES_IN_A_ROW:
                    account.stop(EndpointUnusableError(f"{n} calls in a row failed; the last: {error}"))
                raise
            self._failures_in_a_row = 0
            tokens_in = most_input_tokens // 2 if reply.input_tokens is None else reply.input_tokens
            tokens_out = len(reply.text) // 4 if reply.output_tokens is None else reply.output_tokens
            usd = config.usd(tokens_in, tokens_out)
            account.calls[self.role] += 1
            account.input_tokens += tokens_in
            account.output_tokens += tokens_out
            account.usd += usd
        return Answer(reply.text, reply.finished, (tokens_in, tokens_out), usd)
