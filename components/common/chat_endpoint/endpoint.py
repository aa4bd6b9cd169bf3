"""The client of a server of OpenAI chat completions: bounded, patient, and on its guard.

What comes back is hostile: its size, its time, its shape and the numbers in it are checked here; the text is for the
caller to check. Keys are read from the environment and appear nowhere else.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Self, TypeVar

import httpx
from anyio.from_thread import start_blocking_portal

from ..errors import UserError
from ..retry import Backoff
from .config import ChatEndpointConfig, is_loopback, may_carry_key

T = TypeVar("T")
Fields = Mapping[str, Any]  # of a JSON object
Messages = Sequence[Fields]
OnDelta = Callable[[str], object]

MAX_REPLY_BYTES = 4 * 2**20  # a longer body is not read to its end
_MAX_TOKENS_COUNTED = 10**9
_CONNECT_S = 10.0
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_WRONG_SETTINGS = frozenset({401, 402, 403, 404, 405})
_SHAPE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a body of another shape raises."""


class EndpointError(UserError):
    """A call that got no answer."""


class EndpointUnusableError(EndpointError):
    """The server cannot be used as it is set up: no other call will be answered either."""


class CallFailedError(EndpointError):
    """One call that the server refused, or that failed at every attempt."""


class _AttemptError(Exception):
    """An attempt that failed: what the server did, as the end of a sentence that begins with its name."""

    def __init__(self, problem: str, after_s: float = 0.0, *, final: bool = False) -> None:
        """``after_s``: how long the server asked to wait; ``final``: another attempt is of no use."""
        super().__init__(problem)
        self.after_s, self.final = after_s, final


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """A model's answer."""

    text: str  # empty where there are no words
    finish_reason: str  # `stop`, `length` (cut off at `max_tokens`), …; empty where the server does not say
    input_tokens: int | None = None  # as the server counts; None: it does not say, or no number that can be true
    output_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    """Of the answer, where they were requested (``return_token_ids``) and the server gives them."""
    model: str = ""  # its name by the server
    extension: Any = None  # what this package's own server adds (`vthink`), not checked

    @property
    def finished(self) -> bool:
        """Whether the answer came to its end, rather than being cut off."""
        return self.finish_reason in ("stop", "")


class ChatEndpoint:
    """One model of one server. An asynchronous context manager; see `BlockingEndpoint` for threads."""

    def __init__(
        self,
        config: ChatEndpointConfig,
        *,
        name: str = "",
        setting: str = "",
        attempt: Callable[[], contextlib.AbstractAsyncContextManager[object]] = contextlib.nullcontext,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Check the settings; an `EndpointUnusableError` without URL or key, or where a key would travel unencrypted.

        ``name`` (``the teacher``) and ``setting`` (``curation.teacher``) are for messages. ``attempt`` is a context
        around each attempt of a call, for example to count what it may cost; an exception on entering it ends the call.
        """
        self.config = config
        self._setting = f"{setting}." if setting else ""
        self._name = f"{name} at {config.url}" if name else str(config.url)
        self._attempt, self._pause = attempt, pause
        self._slots = asyncio.Semaphore(config.concurrency)
        self._not_before_s = 0.0
        self._backoff = Backoff(first_s=config.backoff_s, longest_s=config.max_backoff_s, jitter=1.0)
        if not config.url:
            raise EndpointUnusableError(f"{self._setting}url is not set: where is the server?")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if config.api_key_env is not None:
            headers["Authorization"] = f"Bearer {self._key(config.api_key_env)}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=min(config.timeout_s, _CONNECT_S), pool=None),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
            trust_env=not is_loopback(config.url),  # a proxy of the environment is for addresses elsewhere
        )

    def _key(self, variable: str) -> str:
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            what = "is not set" if not key else "holds characters that no API key has"
            raise EndpointUnusableError(f"{self._setting}api_key_env: the environment variable {variable} {what}")
        if not may_carry_key(str(self.config.url)):
            raise EndpointUnusableError(
                f"{self._setting}url: the key in {variable} would be sent to {self.config.url} unencrypted; use https"
            )
        return key

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def complete(
        self, messages: Messages, parameters: Fields | None = None, on_delta: OnDelta | None = None
    ) -> ChatReply:
        """One answered call; waits its turn, and repeats what failed in a way that may pass before it gives up.

        ``messages`` are in OpenAI's form (`media` makes their parts), ``parameters`` further fields of the request, of
        which those that are None are left out. ``on_delta`` gets each piece of the text as it comes (without, the
        answer comes whole); a call is not repeated once a piece came."""
        body = {"model": self.config.model or None, "messages": list(messages), **(parameters or {})}
        if on_delta is not None:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps({key: value for key, value in body.items() if value is not None}).encode()
        async with self._slots:
            return await self._until_answered(partial(self._chat, data, on_delta))

    async def models(self) -> list[Fields]:
        """What the server says about the models that it serves (``GET /v1/models``); an `EndpointError` for none."""
        return await self._until_answered(self._list_models)

    async def _until_answered(self, call: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            held_s = self._not_before_s - time.monotonic()
            if held_s > 0:
                await self._pause(held_s)
            async with self._attempt():
                try:
                    return await call()
                except _AttemptError as error:
                    problem = error
            failures += 1
            if problem.final or failures > self.config.retries:
                times = f", {failures} times" if failures > 1 else ""
                raise CallFailedError(f"{self._name} {problem}{times}")
            # On top of what the server asks for: callers that were all told to wait do not return at once.
            await self._pause(self._bounded_s(problem.after_s) + self._backoff.pause_s(failures))

    def _bounded_s(self, after_s: float) -> float:
        return min(after_s, 10 * self.config.max_backoff_s)

    async def _chat(self, data: bytes, on_delta: OnDelta | None) -> ChatReply:
        if on_delta is None:
            body = await self._exchange("POST", "/chat/completions", data)
            with _chat_completion():
                answer = json.loads(body)
                return _reply(answer["choices"][0]["message"]["content"], answer, answer.get("usage"))
        reader = _StreamReader(on_delta)
        try:
            await self._exchange("POST", "/chat/completions", data, reader.feed)
            return reader.reply()
        except _AttemptError as error:
            error.final |= bool(reader.pieces)  # what was passed on cannot be taken back
            raise

    async def _list_models(self) -> list[Fields]:
        body = await self._exchange("GET", "/models")
        try:
            models = json.loads(body)["data"]
            if not models or not all(isinstance(model, Mapping) for model in models):
                raise TypeError
        except _SHAPE_ERRORS:
            problem = "does not list its models like an OpenAI-compatible server"
            raise EndpointUnusableError(f"{self._name} {problem}") from None
        return list(models)

    async def _exchange(
        self, method: str, path: str, data: bytes = b"", take: Callable[[bytes], None] | None = None
    ) -> bytes:
        """The body of one request's answer; with ``take``, the body of an answer of status 200 goes there instead."""
        limit_s, loop = self.config.timeout_s, asyncio.get_running_loop()
        body, length = bytearray(), 0
        try:
            async with asyncio.timeout(limit_s) as deadline:
                async with self._client.stream(method, self.config.base_url + path, content=data) as response:
                    async for chunk in response.aiter_bytes():
                        length += len(chunk)
                        if length > MAX_REPLY_BYTES:
                            raise _AttemptError(f"sent more than {MAX_REPLY_BYTES} bytes")
                        if take is not None and response.status_code == 200:
                            take(chunk)
                            deadline.reschedule(loop.time() + limit_s)
                        else:
                            body += chunk
        except httpx.ConnectError as error:
            raise _AttemptError(f"cannot be reached ({error}); is the server running?") from None
        except (TimeoutError, httpx.TimeoutException):
            raise _AttemptError(f"did not answer within {limit_s:g} s") from None
        except httpx.TransportError as error:
            raise _AttemptError(f"broke off ({error or type(error).__name__})") from None
        except httpx.InvalidURL as error:
            raise EndpointUnusableError(f"'{self.config.url}' is not a server's address ({error})") from None
        if response.status_code != 200:
            self._refuse(response, bytes(body))
        return bytes(body)

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        status, key = response.status_code, self.config.api_key_env
        problem = f"answered HTTP {status}: {_refusal_reason(body)}"
        if status in _TRANSIENT:
            after_s = _retry_after_s(response.headers.get("Retry-After"))
            if status == 429 and after_s:
                # Who is told to wait would be told so again: all calls of this server wait.
                self._not_before_s = max(self._not_before_s, time.monotonic() + self._bounded_s(after_s))
            raise _AttemptError(problem, after_s)
        if status in _WRONG_SETTINGS or response.is_redirect:
            sent = f"the key comes from {key}" if key else "no key is sent"
            raise EndpointUnusableError(
                f"{self._name} {problem}; check {self._setting}url, {self._setting}model ('{self.config.model}') "
                f"and {self._setting}api_key_env ({sent})"
            )
        raise CallFailedError(f"{self._name} {problem}")


class BlockingEndpoint:
    """A `ChatEndpoint` that threads share: each call blocks its thread only. A context manager."""

    def __init__(self, config: ChatEndpointConfig, *, name: str = "", setting: str = "") -> None:
        """See `ChatEndpoint`."""
        self.config = config
        self._endpoint = ChatEndpoint(config, name=name, setting=setting)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._endpoint))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def complete(
        self, messages: Messages, parameters: Fields | None = None, on_delta: OnDelta | None = None
    ) -> ChatReply:
        """See `ChatEndpoint.complete`."""
        return self._portal.call(self._endpoint.complete, messages, parameters, on_delta)

    def models(self) -> list[Fields]:
        """See `ChatEndpoint.models`."""
        return self._portal.call(self._endpoint.models)


def _retry_after_s(value: str | None) -> float:
    """Seconds from a Retry-After header, which is a number or a date; 0 where it is neither."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def is_vllm(model: Fields) -> bool:
    """Whether a server's entry for a model (`ChatEndpoint.models`) is vLLM's; compared with 0.32, 2026-12-01."""
    return model.get("owned_by") == "vllm"


@contextlib.contextmanager
def _chat_completion() -> Iterator[None]:
    """What reading something else raises becomes an error of the attempt."""
    try:
        yield
    except _SHAPE_ERRORS:
        raise _AttemptError("sent something that is not a chat completion") from None


class _StreamReader:
    """Puts a reply together from the bytes of its server-sent events, and passes its pieces on."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._line: list[bytes] = []
        self.pieces: list[str] = []
        self._last: Any = None
        self._usage: Any = None

    def feed(self, data: bytes) -> None:
        """Take bytes; pass on the pieces of text that are complete with them."""
        self._line.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(self._line).split(b"\n")
        self._line = [rest]
        for line in lines:
            event = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or event == b"[DONE]":
                continue
            with _chat_completion():
                pieces = self._read(json.loads(event))
            for piece in pieces:
                self.pieces.append(piece)
                self._on_delta(piece)

    def _read(self, chunk: Any) -> list[str]:
        if "error" in chunk:
            raise _AttemptError(f"gave up: {_reason(chunk)}", final=True)
        self._usage = chunk.get("usage") or self._usage
        if any(choice.get("finish_reason") is not None for choice in chunk["choices"]):
            self._last = chunk
        pieces = [choice["delta"].get("content") for choice in chunk["choices"]]
        return [piece + "" for piece in pieces if piece]  # only text can be added to

    def reply(self) -> ChatReply:
        """The whole, after the last bytes."""
        if self._last is None:
            raise _AttemptError("broke off in the middle of the answer")
        with _chat_completion():
            return _reply("".join(self.pieces), self._last, self._usage)


def _reply(text: Any, answer: Any, usage: Any) -> ChatReply:
    choice = answer["choices"][0]
    tokens = choice.get("token_ids")
    if not isinstance(text, str | None) or not all(type(token) is int for token in tokens or ()):
        raise TypeError
    counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = [count if type(count) is int and 0 <= count <= _MAX_TOKENS_COUNTED else None for count in counts]
    return ChatReply(
        text=text or "", finish_reason=str(choice.get("finish_reason") or "")[:40], input_tokens=known[0],
        output_tokens=known[1], token_ids=None if tokens is None else tuple(tokens),
        model=str(answer.get("model") or "")[:200], extension=answer.get("vthink"),
    )  # fmt: skip


def _refusal_reason(body: bytes) -> str:
    """The reason in the body of an error, as one printable line."""
    try:
        return _line(_reason(json.loads(body)))
    except _SHAPE_ERRORS:
        return _line(body[:2000].decode("utf-8", "replace"))


def _reason(answer: Any) -> str:
    error = answer.get("error", answer)
    return _line(str(error.get("message", error) if isinstance(error, dict) else error))


def _line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())
    return line[:200] or "no reason given"
