"""A question about a file, asked of a served model: what `vthink ask` and the smoke test use.

Works with this package's server and with any OpenAI-compatible one that takes ``video_url`` parts; the structured
answer comes from the former, or is parsed here. Imports neither torch nor KServe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ..common.chat_endpoint.config import ChatEndpointConfig
from ..common.chat_endpoint.endpoint import BlockingEndpoint, CallFailedError, ChatReply
from ..common.chat_endpoint.media import data_url, media_part, text_part
from .structured import StructuredAnswer

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Files that are sent as images."""

API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that a server asks for, on its side and on the caller's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileQuestion:
    """A question about one video or image file."""

    path: Path
    """It is sent with the request."""
    text: str
    options: Sequence[str] = ()
    """Answer options without letters, for a multiple-choice question."""
    problem_type: str | None = None
    """See `common.rows.sample`; None: multiple choice with options, else free-form."""
    kind: Literal["video", "image"] | None = None
    """None: by the file's name."""
    start_s: float | None = None
    """Begin of the part of the video that is asked about, in seconds."""
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """A served model's answer."""

    reply: ChatReply
    view: StructuredAnswer

    def to_json(self) -> dict[str, Any]:
        """Everything about it, as `vthink ask --json` prints it."""
        reply, usage = self.reply, None
        if reply.input_tokens is not None and reply.output_tokens is not None:
            usage = {"prompt_tokens": reply.input_tokens, "completion_tokens": reply.output_tokens}
            usage["total_tokens"] = reply.input_tokens + reply.output_tokens
        about = {"text": reply.text, "finish_reason": reply.finish_reason, "token_ids": reply.token_ids}
        return self.view.model_dump(mode="json") | about | {"usage": usage, "model": reply.model}


def served_endpoint(url: str, model: str = "", timeout_s: float = 600.0) -> ChatEndpointConfig:
    """How a served model is asked: once, with the key in ``VTHINK_API_KEY`` where there is one.

    Args:
        url: the server, e.g. ``http://127.0.0.1:8080``.
        model: the served model's name; empty: whatever is served.
        timeout_s: how long to wait for the answer, or between two pieces of a stream.

    Raises:
        ConfigError: ``url`` is not an address of a server.
    """
    key = API_KEY if os.environ.get(API_KEY) else None
    settings = {"url": url, "model": model, "timeout_s": timeout_s, "api_key_env": key, "retries": 0}
    return ChatEndpointConfig.load(settings, "the server's address")


def ask(
    endpoint: BlockingEndpoint,
    question: FileQuestion,
    sampling: Mapping[str, Any] | None = None,
    on_delta: Callable[[str], object] | None = None,
    *,
    plain: bool = False,
) -> ServedAnswer:
    """Ask one question about one file.

    Args:
        endpoint: the server.
        question: the question.
        sampling: ``max_tokens``, ``temperature``, ``top_p``, ``seed``; without: the server's own.
        on_delta: called with each piece of the answer as it is generated.
        plain: the server lacks our extension (vLLM): options and problem type go to the chat template that
            `rollout.vllm.serving_template` gave it; a part of a video cannot be asked about.

    Raises:
        UserError: the file cannot be read; EndpointError: no server, a refusal (with the server's words), or an answer
            that broke off.
    """
    kind = question.kind or ("image" if question.path.suffix.lower() in IMAGE_SUFFIXES else "video")
    content = [media_part(data_url(question.path, kind), kind), text_part(question.text)]
    about: dict[str, Any] = {"options": list(question.options) or None, "problem_type": question.problem_type}
    if not plain:
        about |= {"start_s": question.start_s, "end_s": question.end_s}
    extension = {key: value for key, value in about.items() if value is not None}
    parameters: dict[str, Any] = {"return_token_ids": True, **(sampling or {})}
    if extension or plain:
        parameters["chat_template_kwargs" if plain else "vthink"] = extension
    reply = endpoint.complete([{"role": "user", "content": content}], parameters, on_delta)
    if reply.extension is None:
        return ServedAnswer(reply, StructuredAnswer.parse(reply.text))
    try:
        return ServedAnswer(reply, StructuredAnswer.model_validate(reply.extension))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise CallFailedError(
            f"{endpoint.config.url} does not answer like this package's server (vthink: {first['msg']})"
        ) from error
