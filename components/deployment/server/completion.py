"""OpenAI's chat completions: a request as one question about a video or image, an answer or refusal as they send it."""

from __future__ import annotations

import difflib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...common.rows.sample import ProblemType
from ...common.video.clip import Clip
from ...common.video.config import MediaKind
from ..ask import MediaView, StructuredAnswer
from ..config import ServerConfig

Json = dict[str, Any]
Headers = Mapping[str, str] | None
_KINDS = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(Exception):
    """A refusal in OpenAI's error shape, with its HTTP status."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Headers = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Url(BaseModel):  # OpenAI's image_url has a `detail`: more is allowed
    url: str


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Video(_Strict):
    type: Literal["video_url"]
    video_url: _Url


class _Image(_Strict):
    type: Literal["image_url"]
    image_url: _Url


class Message(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: tuple[Annotated[_Text | _Video | _Image, Field(discriminator="type")], ...]
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _words_alone(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part.text.strip() for part in self.content if isinstance(part, _Text)).strip()


class Extension(_Strict):
    """What this server takes beyond OpenAI's fields: answer options, which get the letters A, B, … in this order, the
    kind of answer (default: multiple choice with options, else free-form), and the part of the video, in seconds."""

    options: tuple[str, ...] = Field(default=(), max_length=26)
    problem_type: ProblemType | None = None
    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not option.strip() for option in self.options):
            raise ValueError("an option is empty")
        if self.problem_type == "multiple_choice" and len(self.options) < 2:
            raise ValueError("problem_type multiple_choice needs at least two options")
        if self.options and self.problem_type not in (None, "multiple_choice"):
            raise ValueError(f"options belong to multiple_choice, not to {self.problem_type}")
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise ValueError("start_s must be before end_s")
        return self


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Unsupported(_Strict):
    """OpenAI's parameters that would change the answer and that this server does not have: neutral values only."""

    n: Literal[1] | None = None
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    stop: tuple[str, ...] | None = Field(default=None, max_length=0)
    tools: tuple[Any, ...] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: tuple[Literal["text"]] | None = None


class ChatRequest(_Unsupported):
    """A chat completion request. Parameters that only label a request are taken and ignored."""

    messages: tuple[Message, ...] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    return_token_ids: bool = False
    vthink: Extension = Extension()
    user: str | None = None
    metadata: Json | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatQuestion:
    """One question about one video or image: a checked request, without its media."""

    text: str
    options: tuple[str, ...]
    problem_type: ProblemType
    media_kind: MediaKind
    start_s: float | None
    end_s: float | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stream: bool
    include_usage: bool
    return_token_ids: bool


def parse_request(body: bytes, config: ServerConfig, system: str | None) -> tuple[ChatQuestion, str]:
    """Read and check a request's body: the question, and the URL of its media (which may be megabytes of base64).

    A request may repeat ``system``, the prompt template's message, not change it. ApiError 400 or 404: names the field.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.model not in (None, config.model_name):
        message = f"the model '{request.model[:80]}' is not served here; this server has '{config.model_name}'"
        raise ApiError(404, message, "model", "model_not_found")
    user, extension = _user_message(request.messages, system), request.vthink
    media: list[tuple[MediaKind, str]] = [("video", p.video_url.url) for p in user.content if isinstance(p, _Video)]
    media += [("image", part.image_url.url) for part in user.content if isinstance(part, _Image)]
    most, name = config.max_new_tokens, "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    tokens = request.max_completion_tokens or request.max_tokens or most
    if len(media) != 1:
        need = f"one video_url or image_url part is needed, got {len(media)}"
        raise ApiError(400, f"{need}; this model answers about one video or image", "messages")
    if not user.text:
        raise ApiError(400, "the question is empty: add a text part", "messages")
    if len(user.text) + sum(map(len, extension.options)) > config.max_question_chars:
        raise ApiError(400, f"the question is longer than {config.max_question_chars} characters", "messages")
    if tokens > most:
        raise ApiError(400, f"'{name}' may be at most {most} here (got {tokens})", name)
    question = ChatQuestion(
        text=user.text, options=extension.options,
        problem_type=extension.problem_type or ("multiple_choice" if extension.options else "free_form"),
        media_kind=media[0][0], start_s=extension.start_s, end_s=extension.end_s,
        max_new_tokens=tokens, temperature=request.temperature or 0.0, top_p=request.top_p or 1.0, seed=request.seed,
        stream=request.stream, include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=request.return_token_ids,
    )  # fmt: skip
    return question, media[0][1]


def _user_message(messages: tuple[Message, ...], system: str | None) -> Message:
    """The one user message; a system message must be the one the model was trained with."""
    rest = list(messages)
    if rest[0].role in ("system", "developer") and rest.pop(0).text != (system or "").strip():
        words = "the model is asked with the prompt it was trained with; leave the system message out"
        raise ApiError(400, words, "messages[0]")
    if len(rest) != 1 or rest[0].role != "user":
        roles = ", ".join(message.role for message in messages[:8])
        raise ApiError(400, f"exactly one user message is needed, got: {roles}", "messages")
    return rest[0]


def _invalid(error: ValidationError) -> ApiError:
    """The first mistake of a request in one line, without its input (which may be megabytes)."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "extra_forbidden":
        known = (Extension if first["loc"][0] == "vthink" else ChatRequest).model_fields
        near = difflib.get_close_matches(str(first["loc"][-1])[:80], known, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return ApiError(400, f"unknown parameter '{path}'{hint}", path, "unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"] and first["loc"][0] in _Unsupported.model_fields:
        message = f"not supported by this server; leave it out ({message})"
    return ApiError(400, f"'{path}': {message[:300]}" if path else message[:300], path or None)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedAnswer:
    """A finished answer of the model."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_token_ids: tuple[int, ...]

    @property
    def usage(self) -> dict[str, int]:
        """The tokens, counted as OpenAI does."""
        prompt, completion = len(self.prompt_token_ids), len(self.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class CompletionWriter:
    """Writes a finished or growing answer as OpenAI's chat completion, whole or in chunks."""

    def __init__(self, question: ChatQuestion, clip: Clip, model_name: str, fingerprint: str) -> None:
        self._question = question
        duration_s, *times_s = (round(float(time_s), 3) for time_s in (clip.duration_s, *clip.times_s))
        self._media = MediaView(kind=clip.kind, duration_s=duration_s, frames_s=tuple(times_s))
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        self._head["system_fingerprint"] = fingerprint

    def whole(self, answer: GeneratedAnswer) -> Json:
        """The ``chat.completion`` object."""
        content = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        return self._last("chat.completion", content, answer) | {"usage": answer.usage}

    def chunk(self, **delta: str) -> Json:
        """A piece of the answer; the first one names the role."""
        return self._object("chat.completion.chunk", {"delta": delta})

    def last_chunks(self, answer: GeneratedAnswer) -> list[Json]:
        """The chunk with the finish reason and ``vthink``, and the one with the usage where it was asked for."""
        last = self._last("chat.completion.chunk", {"delta": {}}, answer)
        usage = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": answer.usage}
        return [last, usage] if self._question.include_usage else [last]

    def _object(self, kind: str, content: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": kind, "choices": [choice]}

    def _last(self, kind: str, content: Json, answer: GeneratedAnswer) -> Json:
        """What ends an answer: also with the structured answer, and the tokens where they were asked for."""
        body = self._object(kind, content, answer.finish_reason)
        if self._question.return_token_ids:
            body["choices"][0]["token_ids"] = list(answer.token_ids)
            body["prompt_token_ids"] = list(answer.prompt_token_ids)
        return body | {"vthink": StructuredAnswer.parse(answer.text, self._media).model_dump(mode="json")}
