"""OpenAI chat requests: what this server takes of them, checked, as one question about one video or image."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...common.rows.sample import ProblemType
from .errors import ApiError

MediaKind = Literal["video", "image"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Url(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # OpenAI's image_url has a `detail`
    url: str


class TextPart(_Strict):
    """Words of the question."""

    type: Literal["text"]
    text: str


class VideoPart(_Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: _Url


class ImagePart(_Strict):
    """A still image."""

    type: Literal["image_url"]
    image_url: _Url


Part = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: tuple[Part, ...]
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _words_alone(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part.text.strip() for part in self.content if isinstance(part, TextPart)).strip()


class Extension(_Strict):
    """What this server takes beyond OpenAI's fields."""

    options: tuple[str, ...] = Field(default=(), max_length=26)
    """Answer options without letters; they get the letters A, B, … in this order."""
    problem_type: ProblemType | None = None
    """What kind of answer is asked for; default: multiple choice when there are options, else free-form."""
    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Begin of the part of the video that is asked about, in seconds."""
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """End of that part."""

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


class StreamOptions(BaseModel):
    """OpenAI's options of a stream."""

    model_config = ConfigDict(extra="ignore", frozen=True)
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
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    return_token_ids: bool = False
    vthink: Extension = Extension()

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatQuestion:
    """One question about one video or image: a checked request."""

    text: str
    options: tuple[str, ...]
    problem_type: ProblemType
    media_url: str
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


def parse_request(
    body: bytes, *, model_name: str, system: str | None, max_new_tokens: int, max_question_chars: int
) -> ChatQuestion:
    """Read and check a request body.

    Args:
        body: JSON.
        model_name: the only name a request may call the model by.
        system: the system message of the model's prompt template; a request may repeat it, not change it.
        max_new_tokens: the most a request may ask for.
        max_question_chars: the longest question, options included.

    Raises:
        ApiError: 400 (404 for another model), naming the parameter.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None
    if request.model not in (None, model_name):
        raise ApiError(
            404,
            f"the model '{request.model[:80]}' is not served here; this server has '{model_name}'",
            param="model",
            code="model_not_found",
        )
    user = _user_message(request.messages, system)
    media: list[tuple[MediaKind, str]] = []
    for part in user.content:
        if isinstance(part, VideoPart):
            media.append(("video", part.video_url.url))
        elif isinstance(part, ImagePart):
            media.append(("image", part.image_url.url))
    if len(media) != 1:
        raise ApiError(
            400,
            f"one video_url or image_url part is needed, got {len(media)}; this model answers about one video or image",
            param="messages",
        )
    extension = request.vthink
    if not user.text:
        raise ApiError(400, "the question is empty: add a text part", param="messages")
    if len(user.text) + sum(map(len, extension.options)) > max_question_chars:
        raise ApiError(400, f"the question is longer than {max_question_chars} characters", param="messages")
    name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    tokens = request.max_completion_tokens or request.max_tokens or max_new_tokens
    if tokens > max_new_tokens:
        raise ApiError(400, f"'{name}' may be at most {max_new_tokens} here (got {tokens})", param=name)
    return ChatQuestion(
        text=user.text,
        options=extension.options,
        problem_type=extension.problem_type or ("multiple_choice" if extension.options else "free_form"),
        media_url=media[0][1],
        media_kind=media[0][0],
        start_s=extension.start_s,
        end_s=extension.end_s,
        max_new_tokens=tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stream=request.stream,
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=request.return_token_ids,
    )


def _user_message(messages: tuple[Message, ...], system: str | None) -> Message:
    """The one user message; a system message must be the one the model was trained with."""
    rest = list(messages)
    if rest[0].role in ("system", "developer"):
        if rest[0].text != (system or "").strip():
            raise ApiError(
                400,
                "the model is asked with the prompt it was trained with; leave the system message out",
                param="messages[0]",
            )
        rest = rest[1:]
    if len(rest) != 1 or rest[0].role != "user":
        roles = ", ".join(message.role for message in messages[:8])
        raise ApiError(400, f"exactly one user message is needed, got: {roles}", param="messages")
    return rest[0]


def _invalid(error: ValidationError) -> ApiError:
    """The first mistake of a request in one line, without its input (which may be megabytes)."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "extra_forbidden":
        known: list[str] = list(ChatRequest.model_fields)
        if first["loc"][0] == "vthink":
            known = list(Extension.model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1])[:80], known, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return ApiError(400, f"unknown parameter '{path[:200]}'{hint}", param=path[:200], code="unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"] and first["loc"][0] in _Unsupported.model_fields:
        message = f"not supported by this server; leave it out ({message})"
    return ApiError(400, f"'{path[:200]}': {message[:300]}" if path else message[:300], param=path[:200] or None)
