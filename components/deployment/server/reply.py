"""A finished or growing answer as OpenAI's chat completion, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from ...common.video.clip import Clip
from ..structured import MediaView, StructuredAnswer
from .request import ChatQuestion


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedAnswer:
    """A finished answer of the model."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_token_ids: tuple[int, ...]


class CompletionWriter:
    """Writes one completion, whole or in chunks."""

    def __init__(self, question: ChatQuestion, clip: Clip, model_name: str, fingerprint: str) -> None:
        self._question = question
        self._media = MediaView(
            kind=clip.kind,
            duration_s=round(float(clip.duration_s), 3),
            frames_s=tuple(round(float(time_s), 3) for time_s in clip.times_s),
        )
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }

    def _usage(self, generated: GeneratedAnswer) -> dict[str, int]:
        prompt, completion = len(generated.prompt_token_ids), len(generated.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self, generated: GeneratedAnswer) -> dict[str, Any]:
        """The ``chat.completion`` object."""
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": generated.text, "refusal": None},
            "logprobs": None,
            "finish_reason": generated.finish_reason,
        }
        body = {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(generated)}
        if self._question.return_token_ids:
            choice["token_ids"] = list(generated.token_ids)
            body["prompt_token_ids"] = list(generated.prompt_token_ids)
        return body | {"vthink": self._view(generated)}

    def _view(self, generated: GeneratedAnswer) -> dict[str, Any]:
        """The structured answer, and when in the media the frames are that the model saw."""
        return StructuredAnswer.parse(generated.text, self._media).model_dump(mode="json")

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def first_chunk(self) -> dict[str, Any]:
        """The chunk that names the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta_chunk(self, text: str) -> dict[str, Any]:
        """A piece of the answer."""
        return self._chunk({"content": text})

    def last_chunks(self, generated: GeneratedAnswer) -> list[dict[str, Any]]:
        """The chunk with the finish reason and ``vthink``, and the one with the usage where it was asked for."""
        last = self._chunk({}, generated.finish_reason) | {"vthink": self._view(generated)}
        if self._question.return_token_ids:
            last["choices"][0]["token_ids"] = list(generated.token_ids)
            last["prompt_token_ids"] = list(generated.prompt_token_ids)
        if not self._question.include_usage:
            return [last]
        usage = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(generated)}
        return [last, usage]
