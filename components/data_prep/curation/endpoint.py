"""A server of OpenAI chat completions, asked by many at once: bounded, patient, counted, and never beyond a budget.

What comes back is hostile: its size, its time, its shape and the numbers in it are checked here; the text is for the
caller to check. Keys are read from the environment and appear nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from ..config import EndpointConfig

MAX_REPLY_BYTES = 4 * 2**20
"""A longer body is not read to its end."""


IMAGE_TOKENS = 1000
"""What an image is taken to cost until the server has said what it did cost."""


MAX_FAILURES_IN_A_ROW = 20
"""After so many calls that failed for good, without one that worked, the server is given up."""


_CONNECT_S = 10.0


_REPEATED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})


_WRONG_SETTINGS = frozenset({401, 402, 403, 404, 405})


_MAX_TOKENS_COUNTED = 10**9


class EndpointError(RuntimeError):
    """The server cannot be used as it is set up; nothing more is asked. One line for a person."""


class CallFailedError(RuntimeError):
    """One call that got no answer, however often it was repeated, or that the server refused."""


class StoppedError(RuntimeError):
    """A call that was not made, because no more calls are to be made."""


class _AgainError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, problem: str, after_s: float = 0.0):
        super().__init__(problem)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said."""

    text: str
    """Its words; empty where there are none."""
    finished: bool
    """Whether it came to its end, rather than being cut off at ``max_tokens``."""
    input_tokens: int
    output_tokens: int
    usd: float
    """What it cost, by the configured prices."""


@dataclass
class Account:
    """What was asked and spent so far, what may be spent, and whether to go on."""

    budget_usd: float | None = None
    calls: Counter[str] = field(default_factory=Counter)
    """Answered calls by role."""
    repeated: int = 0
    """Attempts that failed and were made again."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    """Spent, what earlier runs spent included."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more calls are to be made; those under way are waited for."""
    stopped_why: str = ""
    error: EndpointError | None = None
    """Why a server cannot be used, when that is what stopped it."""
    _reserved_usd: float = 0.0
    _under_way: int = 0
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, role: str, reply: Reply) -> None:
        """Count an answered call."""
        self.calls[role] += 1
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        self.usd += reply.usd

    def stop(self, why: str | EndpointError) -> None:
        """Let no further call begin."""
        if not self.stopped.is_set():
            self.stopped_why = str(why)
            self.error = why if isinstance(why, EndpointError) else None
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
        if self.stopped.is_set():
            raise StoppedError(self.stopped_why)
        self._reserved_usd += usd
        self._under_way += 1
        try:
            yield
        finally:
            self._reserved_usd -= usd
            self._under_way -= 1
            self._ended.set()


class Endpoint:
    """One server, in one role. An asynchronous context manager."""

    def __init__(self, role: str, config: EndpointConfig, account: Account):
        """Check the settings.

        Raises:
            EndpointError: no URL, no model, or no key where one is named.
        """
        self.role = role
        self.config = config
        for name in ("url", "model"):
            if not getattr(config, name):
                raise EndpointError(f"curation.{role}.{name} is not set; give it with --set curation.{role}.{name}=…")
        url = str(config.url)
        self._url = url.rstrip("/") + "/chat/completions"
        self._account = account
        self._slots = asyncio.Semaphore(config.concurrency)
        self._not_before_s = 0.0
        self._failures_in_a_row = 0
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if config.api_key_env is not None:
            key = os.environ.get(config.api_key_env, "").strip()
            if not key or not key.isascii() or not key.isprintable():
                what = "is not set" if not key else "holds characters that no API key has"
                raise EndpointError(
                    f"curation.{role}.api_key_env: the environment variable {config.api_key_env} {what}"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=min(config.timeout_s, _CONNECT_S), pool=None),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
            # A proxy of the environment is for addresses elsewhere.
            trust_env=not _is_loopback(url),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, messages: Sequence[Mapping[str, Any]], seed: int) -> Reply:
        """One answered call; waits its turn, and repeats what failed.

        Raises:
            CallFailedError: the server refused this call, or failed at every attempt.
            EndpointError: the server cannot be used at all.
            StoppedError: no more calls are to be made.
        """
        data = json.dumps(self._body(messages, seed)).encode()
        most_usd = self._usd(_most_input_tokens(messages), self._most_output_tokens())
        async with self._slots:
            try:
                reply = await self._until_answered(data, messages, most_usd)
            except EndpointError as error:
                self._account.stop(error)
                raise
            except CallFailedError as error:
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                    given_up = f"{self._failures_in_a_row} calls in a row failed; the last: {error}"
                    self._account.stop(EndpointError(given_up))
                raise
        self._failures_in_a_row = 0
        return reply

    async def _until_answered(self, data: bytes, messages: Sequence[Mapping[str, Any]], most_usd: float) -> Reply:
        for attempt in range(self.config.retries + 1):
            await self._wait(self._not_before_s - time.monotonic())
            async with self._account.reserve(most_usd):
                try:
                    reply = await self._once(data, messages)
                except _AgainError as error:
                    problem = error
                else:
                    self._account.add(self.role, reply)
                    return reply
            if attempt < self.config.retries:
                self._account.repeated += 1
                await self._wait(self._backoff_s(attempt, problem.after_s))
        raise CallFailedError(f"{self._who()} {problem}, {self.config.retries + 1} times")

    def _backoff_s(self, attempt: int, after_s: float) -> float:
        """How long to wait after a failure: full jitter; at least what the server asks for."""
        longest = min(self.config.max_backoff_s, self.config.backoff_s * 2 ** min(attempt, 30))
        return min(after_s, 10 * self.config.max_backoff_s) + random.uniform(0.0, longest)

    async def _wait(self, seconds: float) -> None:
        """Wait, unless no more calls are to be made."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._account.stopped.wait(), seconds)

    async def _once(self, data: bytes, messages: Sequence[Mapping[str, Any]]) -> Reply:
        body = bytearray()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                async with self._client.stream("POST", self._url, content=data) as response:
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_REPLY_BYTES:
                            raise _AgainError(f"sent more than {MAX_REPLY_BYTES} bytes")
        except (TimeoutError, httpx.TimeoutException):
            raise _AgainError(f"did not answer within {self.config.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _AgainError(f"broke off ({error or type(error).__name__})") from None
        if response.status_code == 200:
            return self._reply(bytes(body), messages)
        said = f"answered HTTP {response.status_code}: {_message(bytes(body))}"
        if response.status_code in _REPEATED:
            after_s = _retry_after_s(response.headers.get("Retry-After"))
            if response.status_code == 429 and after_s:
                # Who is told to wait would be told so again: all calls of this server wait.
                longest = 10 * self.config.max_backoff_s
                self._not_before_s = max(self._not_before_s, time.monotonic() + min(after_s, longest))
            raise _AgainError(said, after_s)
        if response.status_code in _WRONG_SETTINGS or response.is_redirect:
            key = self.config.api_key_env
            raise EndpointError(
                f"{self._who()} {said}; check curation.{self.role}.url, .model ('{self.config.model}') and "
                f".api_key_env ({f'the key comes from {key}' if key else 'no key is sent'})"
            )
        raise CallFailedError(f"{self._who()} {said}")

    def _reply(self, body: bytes, messages: Sequence[Mapping[str, Any]]) -> Reply:
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            usage = answer.get("usage") or {}
            counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _AgainError("sent something that is not a chat completion") from None
        text = text if isinstance(text, str) else ""
        estimated = (_most_input_tokens(messages) // 2, len(text) // 4)
        tokens = [
            count if isinstance(count, int) and 0 <= count <= _MAX_TOKENS_COUNTED else guess
            for count, guess in zip(counted, estimated, strict=True)
        ]
        finished = choice.get("finish_reason") in ("stop", None)
        return Reply(text, finished, tokens[0], tokens[1], self._usd(*tokens))

    def _body(self, messages: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.config.model, "messages": list(messages), "seed": seed}
        body |= {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens, **self.config.extra}
        return {key: value for key, value in body.items() if value is not None}

    def _most_output_tokens(self) -> int:
        asked = self.config.extra.get("max_completion_tokens")
        return asked if isinstance(asked, int) else self.config.max_tokens

    def _usd(self, input_tokens: int, output_tokens: int) -> float:
        return usd(self.config, input_tokens, output_tokens)

    def _who(self) -> str:
        return f"the {self.role} at {self.config.url}"


def usd(config: EndpointConfig, input_tokens: int, output_tokens: int) -> float:
    """What so many tokens cost."""
    prices = (config.usd_per_million_input_tokens, config.usd_per_million_output_tokens)
    return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6


def _most_input_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """More tokens than a request has: a token for every two bytes of text, `IMAGE_TOKENS` per image."""
    total = 0
    for message in messages:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            total += len(part["text"].encode("utf-8", "replace")) // 2 if part["type"] == "text" else IMAGE_TOKENS
    return total


def _message(body: bytes) -> str:
    """The server's reason, as one line."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = body[:2000].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return line[:200] or "no reason given"


def _retry_after_s(value: str | None) -> float:
    """Seconds from a Retry-After header, which is a number or a date; 0 where it is neither."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
