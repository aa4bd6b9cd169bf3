"""A question about a file, asked of a served model: what `vthink ask` and the smoke test use.

This package's server sends the structured answer as ``vthink``; that of any OpenAI-compatible one that takes
``video_url`` parts is parsed here. Imports neither torch nor KServe.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ValidationError

from ..common.answers.responses import Segment, parse_response
from ..common.chat_endpoint.config import ChatEndpointConfig
from ..common.chat_endpoint.endpoint import BlockingEndpoint, CallFailedError, ChatReply, EndpointUnusableError, is_vllm
from ..common.chat_endpoint.media import data_url, media_part, text_part
from ..common.errors import UserError

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

API_KEY = "VTHINK_API_KEY"  # environment variable with the key that a server asks for, on its side and on the caller's


class MediaView(BaseModel, frozen=True):
    """What the model saw of the media; ``frames_s``: when in it the frames are."""

    kind: str
    duration_s: float
    frames_s: tuple[float, ...]


class StructuredAnswer(BaseModel, frozen=True):
    """An answer as its parts; ``media`` is None where the server does not say (vLLM)."""

    segments: tuple[Segment, ...]
    reasoning: str
    answer: str | None
    media: MediaView | None = None

    @classmethod
    def parse(cls, text: str, media: MediaView | None = None) -> Self:
        """Read a model's response."""
        parsed = parse_response(text)
        return cls(segments=parsed.segments, reasoning=parsed.reasoning, answer=parsed.answer, media=media)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileQuestion:
    """A question about one video or image file, which is sent with it; ``kind`` is None: by the file's name."""

    path: Path
    text: str
    options: Sequence[str] = ()  # without letters, for a multiple-choice question
    problem_type: str | None = None  # see `common.rows.sample`; None: multiple choice with options, else free-form
    kind: Literal["video", "image"] | None = None
    start_s: float | None = None  # only this part of the video is asked about, in seconds
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """A served model's answer."""

    reply: ChatReply
    view: StructuredAnswer

    def to_json(self) -> dict[str, Any]:
        """Everything about it, as `vthink ask --json` prints it."""
        reply, usage = self.reply, None
        read, written = reply.input_tokens, reply.output_tokens
        if read is not None and written is not None:
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        about = {"text": reply.text, "finish_reason": reply.finish_reason, "token_ids": reply.token_ids}
        return self.view.model_dump(mode="json") | about | {"usage": usage, "model": reply.model}


def served_endpoint(url: str, model: str = "") -> ChatEndpointConfig:
    """How a served model is asked: once, with the key in ``VTHINK_API_KEY`` where there is one. ``model`` is its name,
    empty: whatever is served. ConfigError: ``url`` is not an address of a server."""
    key = API_KEY if os.environ.get(API_KEY) else None
    settings = {"url": url, "model": model, "timeout_s": 600.0, "api_key_env": key, "retries": 0}
    return ChatEndpointConfig.load(settings, "the server's address")


def ask(
    endpoint: BlockingEndpoint, question: FileQuestion, sampling: Mapping[str, Any] | None = None,
    on_delta: Callable[[str], object] | None = None, *, plain: bool | None = None,
) -> ServedAnswer:  # fmt: skip
    """Ask one question about one file.

    Args:
        sampling: ``max_tokens``, ``temperature``, ``top_p``, ``seed``; without: the server's own, but vLLM, which would
            sample, is greedy as ours is.
        on_delta: called with each piece of the answer as it is generated.
        plain: the server lacks our extension (vLLM): options and problem type go to the chat template that
            `rollout.inference_service.serving_template` gave it; a part of a video cannot be asked about. None: the
            server is asked what it is.

    UserError: the file cannot be read, or a part of a video is asked about where only whole ones can be. EndpointError:
    no server, a refusal, in its words, or an answer that broke off.
    """
    kind = question.kind or ("image" if question.path.suffix.lower() in _IMAGE_SUFFIXES else "video")
    content = [media_part(data_url(question.path, kind), kind), text_part(question.text)]
    if plain is None:
        plain = _serves_vllm(endpoint)
    if plain and (question.start_s is not None or question.end_s is not None):
        raise UserError(
            f"{endpoint.config.url} is vLLM, which sees whole videos: ask without start and end, or cut the part"
        )
    about: dict[str, object] = {"options": list(question.options) or None, "problem_type": question.problem_type}
    if not plain:
        about |= {"start_s": question.start_s, "end_s": question.end_s}
    extension = {key: value for key, value in about.items() if value is not None}
    parameters = {"return_token_ids": True, **({"temperature": 0} if plain else {}), **(sampling or {})}
    if extension or plain:
        parameters["chat_template_kwargs" if plain else "vthink"] = extension
    reply = endpoint.complete([{"role": "user", "content": content}], parameters, on_delta)
    if reply.extension is None:
        return ServedAnswer(reply, StructuredAnswer.parse(reply.text))
    try:
        return ServedAnswer(reply, StructuredAnswer.model_validate(reply.extension))
    except ValidationError as error:
        words = f"{endpoint.config.url} does not answer like this package's server"
        raise CallFailedError(f"{words} (vthink: {error.errors(include_url=False)[0]['msg']})") from error


def _serves_vllm(endpoint: BlockingEndpoint) -> bool:
    try:
        return is_vllm(endpoint.models()[0])
    except EndpointUnusableError:  # it lists no models, so it is not vLLM; if it refuses us, the question says so
        return False
