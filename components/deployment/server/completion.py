"""A finished or growing answer as OpenAI's chat completion, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Literal

from ...common.video.clip import Clip
from ..ask import MediaView, StructuredAnswer
from .exchange import Json
from .request import ChatQuestion
from .view import as_json


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token by its text and bytes, with its log-probability and those of the most probable in its place."""

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenText, ...] = ()

    def to_json(self) -> Json:
        """OpenAI's form."""
        own = {"token": self.text, "logprob": self.logprob, "bytes": list(self.data)}
        return own | {"top_logprobs": [_bare(token) for token in self.top]}


def _bare(token: TokenText) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}


@dataclass(frozen=True, slots=True)
class Piece:
    """What an answer grows by."""

    text: str
    index: int = 0
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[TokenText, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedAnswer:
    """The model's finished answers to a request."""

    choices: tuple[Choice, ...]
    prompt_token_ids: tuple[int, ...]
    cached_tokens: int = 0  # tokens of the prompt that the model had read for an earlier request

    @property
    def usage(self) -> Json:
        """The tokens, counted as OpenAI does."""
        prompt, completion = len(self.prompt_token_ids), sum(len(choice.token_ids) for choice in self.choices)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return usage | {"prompt_tokens_details": {"cached_tokens": self.cached_tokens}}


class CompletionWriter:
    """Writes the answers to one request."""

    def __init__(self, question: ChatQuestion, clip: Clip | None, model_name: str, fingerprint: str) -> None:
        self._question, self._media = question, None
        if clip is not None:
            duration_s, *times_s = (round(float(time_s), 3) for time_s in (clip.duration_s, *clip.times_s))
            self._media = MediaView(kind=clip.kind, duration_s=duration_s, frames_s=tuple(times_s))
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        self._head["system_fingerprint"] = fingerprint

    def whole(self, answer: GeneratedAnswer) -> Json:
        """The ``chat.completion`` object."""
        choices = []
        for index, choice in enumerate(answer.choices):
            message = {"role": "assistant", "content": self._content(choice), "refusal": None}
            choices.append({"message": message} | self._end(index, choice) | self._logprobs(choice.logprobs))
        body = {**self._head, "object": "chat.completion", "choices": choices, "usage": answer.usage}
        return body | self._view(answer, 0)

    def first_chunks(self) -> list[Json]:
        """A chunk for each answer that names its role."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk({"index": i, "delta": delta, "finish_reason": None, "logprobs": None})
            for i in range(self._question.n)
        ]

    def piece(self, piece: Piece) -> Json | None:
        """A piece of an answer; None: it is not given as text."""
        if self._question.selection is not None:
            return None
        delta = {"index": piece.index, "delta": {"content": piece.text}, "finish_reason": None}
        return self._chunk(delta | self._logprobs(piece.logprobs))

    def last_chunks(self, answer: GeneratedAnswer) -> list[Json]:
        """The chunks with the finish reasons and ``vthink``, and the one with the usage where it was asked for."""
        chunks = []
        for index, choice in enumerate(answer.choices):
            delta = {"content": self._content(choice)} if self._question.selection is not None else {}
            end = {"delta": delta, "logprobs": None} | self._end(index, choice)
            chunks.append(self._chunk(end) | self._view(answer, index))
        if self._question.include_usage:
            chunks.append({**self._chunk(None), "usage": answer.usage})
        return chunks

    def _chunk(self, choice: Json | None) -> Json:
        return {**self._head, "object": "chat.completion.chunk", "choices": [] if choice is None else [choice]}

    def _parsed(self, choice: Choice) -> StructuredAnswer:
        return StructuredAnswer.parse(choice.text, self._media)

    def _content(self, choice: Choice) -> str:
        selection = self._question.selection
        return choice.text if selection is None else as_json(self._parsed(choice), selection)

    def _logprobs(self, tokens: tuple[TokenText, ...]) -> Json:
        if self._question.top_logprobs is None:
            return {"logprobs": None}
        return {"logprobs": {"content": [token.to_json() for token in tokens], "refusal": None}}

    def _end(self, index: int, choice: Choice) -> Json:
        end: Json = {"index": index, "finish_reason": choice.finish_reason}
        return end | ({"token_ids": list(choice.token_ids)} if self._question.return_token_ids else {})

    def _view(self, answer: GeneratedAnswer, index: int) -> Json:
        """The structured answer, and the prompt's tokens where they were asked for."""
        view: Json = {"vthink": self._parsed(answer.choices[index]).model_dump(mode="json")}
        return view | ({"prompt_token_ids": list(answer.prompt_token_ids)} if self._question.return_token_ids else {})
