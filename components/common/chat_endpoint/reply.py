"""What a server of OpenAI chat completions answers, whole or streamed: taken as hostile, returned as typed values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MAX_TOKENS_COUNTED = 10**9

_SHAPE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a body of another shape raises."""


class AttemptError(Exception):
    """An attempt that failed: what the server did, as the end of a sentence that begins with its name."""

    def __init__(self, problem: str, after_s: float = 0.0, *, final: bool = False) -> None:
        super().__init__(problem)
        self.after_s = after_s
        """How long the server asked to wait."""
        self.final = final
        """Whether another attempt is of no use."""


_MALFORMED = "sent something that is not a chat completion"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """A model's answer."""

    text: str
    """Its words; empty where there are none."""
    finish_reason: str
    """``stop``, ``length`` (cut off at ``max_tokens``), …; empty where the server does not say."""
    input_tokens: int | None = None
    """Tokens of the prompt, as the server counts; None: it does not say, or no number that can be true."""
    output_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    """Of the answer, where they were requested (``return_token_ids``) and the server gives them."""
    model: str = ""
    """The model's name by the server."""
    extension: Any = None
    """What this package's own server adds (``vthink``), not checked."""

    @property
    def finished(self) -> bool:
        """Whether the answer came to its end, rather than being cut off."""
        return self.finish_reason in ("stop", "")


def parse_reply(body: bytes) -> ChatReply:
    """Read a ``chat.completion`` object.

    Raises:
        AttemptError: it is none.
    """
    try:
        answer = json.loads(body)
        return _reply(answer["choices"][0]["message"]["content"], answer, answer.get("usage"))
    except _SHAPE_ERRORS:
        raise AttemptError(_MALFORMED) from None


class StreamReader:
    """Puts a reply together from the bytes of its server-sent events."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._pieces: list[str] = []
        self._last: Any = None
        self._usage: Any = None

    def feed(self, data: bytes) -> Iterator[str]:
        """Take bytes; yield the pieces of text that are complete with them.

        Raises:
            AttemptError: these are no chunks of a chat completion, or the server gave up (with its words).
        """
        self._line.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(self._line).split(b"\n")
        self._line = [rest]
        for line in lines:
            event = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or event == b"[DONE]":
                continue
            try:
                yield from self._read(json.loads(event))
            except _SHAPE_ERRORS:
                raise AttemptError(_MALFORMED) from None

    def _read(self, chunk: Any) -> Iterator[str]:
        if "error" in chunk:
            raise AttemptError(f"gave up: {_reason(chunk)}", final=True)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content")
            if piece:
                self._pieces.append(piece + "")  # only text can be added to
                yield piece
            if choice.get("finish_reason") is not None:
                self._last = chunk

    def reply(self) -> ChatReply:
        """The whole, after the last bytes.

        Raises:
            AttemptError: no chunk said why the answer ended, or the last is none of a chat completion.
        """
        if self._last is None:
            raise AttemptError("broke off in the middle of the answer")
        try:
            return _reply("".join(self._pieces), self._last, self._usage)
        except _SHAPE_ERRORS:
            raise AttemptError(_MALFORMED) from None


def _reply(text: Any, answer: Any, usage: Any) -> ChatReply:
    choice = answer["choices"][0]
    tokens = choice.get("token_ids")
    if not isinstance(text, str | None) or not all(type(token) is int for token in tokens or ()):
        raise TypeError
    counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = [count if type(count) is int and 0 <= count <= _MAX_TOKENS_COUNTED else None for count in counts]
    return ChatReply(
        text=text or "",
        finish_reason=str(choice.get("finish_reason") or "")[:40],
        input_tokens=known[0],
        output_tokens=known[1],
        token_ids=None if tokens is None else tuple(tokens),
        model=str(answer.get("model") or "")[:200],
        extension=answer.get("vthink"),
    )


def refusal_reason(body: bytes) -> str:
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
