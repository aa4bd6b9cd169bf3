"""OpenAI's chat completion request: checked, bounded, and put as a conversation about at most one video or image."""

import difflib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from ...common.model.prompts import Turn
from ...common.rows.sample import ProblemType
from ...common.video.config import MediaKind
from ..config import ServerConfig
from .exchange import ApiError, Json
from .payload import Media, take_media
from .view import Selection, select_fields

_MAX_FIELDS = 64

LABELS = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user"}
)
"""Parameters that only label a request."""

IGNORED = frozenset(
    {"add_generation_prompt", "mm_processor_kwargs", "parallel_tool_calls", "priority", "reasoning_effort"}
    | {"request_id", "skip_special_tokens", "spaces_between_special_tokens", "verbosity", "web_search_options"}
)
"""Parameters that the model has no use for: left out, with a warning."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
}
"""OpenAI's and vLLM's parameters that would change the answer and that this server does not have: these values only."""


class _Url(BaseModel):  # OpenAI's image_url has a `detail`: more is allowed
    url: str


class _Text(BaseModel):
    type: Literal["text", "input_text", "output_text"]
    text: str


class _Video(BaseModel):
    type: Literal["video_url"]
    video_url: _Url


class _Image(BaseModel):
    type: Literal["image_url"]
    image_url: _Url


_Part = Annotated[_Text | _Video | _Image, Field(discriminator="type")]


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: tuple[_Part, ...] = Field(default=(), max_length=64, fail_fast=True)

    @field_validator("content", mode="before")
    @classmethod
    def _words_alone(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content if content else ()

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, _Text))

    @property
    def media(self) -> list[tuple[MediaKind, str]]:
        """The media parts: what they are, and their URLs."""
        media: list[tuple[MediaKind, str]] = [("video", p.video_url.url) for p in self.content if isinstance(p, _Video)]
        return media + [("image", part.image_url.url) for part in self.content if isinstance(part, _Image)]


class Extension(BaseModel):
    """What this server takes beyond OpenAI's fields: answer options, which get the letters A, B, … in this order, the
    kind of answer (default: multiple choice with options, else free-form), and the part of the video, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: tuple[str, ...] = Field(default=(), max_length=26, fail_fast=True)
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


class _ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Json | None = None


_Count = Annotated[int, Field(strict=True)]  # true is not 1
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ChatRequest(BaseModel):
    """A chat completion request: what of it has an effect."""

    messages: tuple[Message, ...] = Field(min_length=1, max_length=256, fail_fast=True)
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Count | None = Field(default=None, ge=1)
    max_completion_tokens: _Count | None = Field(default=None, ge=1)
    temperature: _Number | None = Field(default=None, ge=0, le=2)
    top_p: _Number | None = Field(default=None, gt=0, le=1)
    seed: _Count | None = Field(default=None, ge=0, lt=2**63)
    n: _Count | None = Field(default=None, ge=1, le=16)
    stop: str | tuple[str, ...] | None = None
    logprobs: bool | None = None
    top_logprobs: _Count | None = Field(default=None, ge=0, le=20)
    response_format: _ResponseFormat | None = None
    return_token_ids: bool | None = None
    chat_template_kwargs: Extension | None = None
    vthink: Extension | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | tuple[str, ...] | None) -> tuple[str, ...]:
        stop = (value,) if isinstance(value, str) else value or ()
        if len(stop) > 4 or any(not 0 < len(text) <= 256 for text in stop):
            raise ValueError("give at most 4 texts, each of 1 to 256 characters")
        return stop

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.vthink is not None and self.chat_template_kwargs is not None:
            raise ValueError("give vthink or chat_template_kwargs, not both")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatQuestion:
    """A checked request, without its media: a conversation whose last turn asks."""

    turns: tuple[Turn, ...]
    media_kind: MediaKind | None = None  # what is shown in one of the turns; None: words alone
    start_s: float | None = None
    end_s: float | None = None
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # none: no log-probabilities
    selection: Selection | None = None
    """Which fields of the structured answer to give as JSON in place of the text; None: the text."""
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    notes: tuple[str, ...] = ()  # what of the request had no effect, for a header

    @property
    def text(self) -> str:
        """The last turn's."""
        return self.turns[-1].text

    @property
    def options(self) -> tuple[str, ...]:
        """The last turn's."""
        return tuple(self.turns[-1].options)

    @property
    def problem_type(self) -> str:
        """The last turn's."""
        return self.turns[-1].problem_type


def parse_request(body: bytearray | bytes, config: ServerConfig) -> tuple[ChatQuestion, Media | None]:
    """Read and check a request's body: the question, and its media where there are any. ApiError 400, 404 or 413: names
    the field."""
    text, payloads = take_media(body)
    if len(text) > config.max_json_bytes:
        words = (
            f"without its media the request is larger than {config.max_json_bytes} bytes, the most this server takes"
        )
        raise ApiError(413, words)
    request, notes = _validate(text)
    if request.model not in (None, config.model_name):
        message = f"the model '{str(request.model)[:80]}' is not served here; this server has '{config.model_name}'"
        raise ApiError(404, message, "model", "model_not_found")
    turns, media = _turns(request, config)
    extension = request.vthink or request.chat_template_kwargs or Extension()
    if media is None and (extension.start_s is not None or extension.end_s is not None):
        raise ApiError(400, "start_s and end_s choose a part of a video, and there is none", "vthink")
    name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    tokens = request.max_completion_tokens or request.max_tokens or config.max_new_tokens
    if tokens > config.max_new_tokens:
        notes.append(f"{name} is {config.max_new_tokens}, the most this server gives")
    n = request.n or 1
    if n > config.max_batch:
        raise ApiError(400, f"'n' may be at most {config.max_batch} here", "n")
    question = ChatQuestion(
        turns=turns, media_kind=media[0] if media else None, start_s=extension.start_s, end_s=extension.end_s,
        max_new_tokens=min(tokens, config.max_new_tokens), temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0, seed=request.seed, n=n, stop=tuple(request.stop or ()),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        selection=_selection(request.response_format), stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        return_token_ids=bool(request.return_token_ids), notes=tuple(notes),
    )  # fmt: skip
    return question, payloads.get(media[1], media[1]) if media else None


def _validate(text: bytes) -> tuple[ChatRequest, list[str]]:
    """The request, and what of it is ignored."""
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object")
    if len(fields) > _MAX_FIELDS:
        raise ApiError(400, f"the body has more than {_MAX_FIELDS} parameters")
    notes, known = list[str](), ChatRequest.model_fields
    for name in [name for name in fields if name not in known]:
        value = fields.pop(name)
        if name in NEUTRAL:
            if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
                raise ApiError(400, f"'{name}' is not supported by this server; leave it out", name)
        elif name in IGNORED:
            notes.append(f"{name} is ignored")
        elif name not in LABELS:
            near = difflib.get_close_matches(name[:80], {*known, *NEUTRAL}, n=1, cutoff=0.6)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ApiError(400, f"unknown parameter '{name[:80]}'{hint}", name[:80], "unknown_parameter")
    for name in ("vthink", "chat_template_kwargs"):
        if isinstance(fields.get(name), dict) and len(fields[name]) > _MAX_FIELDS:
            raise ApiError(400, f"'{name}' has more than {_MAX_FIELDS} fields", name)
    try:
        return ChatRequest.model_validate(fields), notes
    except ValidationError as error:
        raise _invalid(error) from None


def _turns(request: ChatRequest, config: ServerConfig) -> tuple[tuple[Turn, ...], tuple[MediaKind, str] | None]:
    """The conversation, and the media in it, which may be repeated but not differ."""
    extension, turns, media = request.vthink or request.chat_template_kwargs or Extension(), list[Turn](), None
    last = len(request.messages) - 1
    for position, message in enumerate(request.messages):
        where = f"messages[{position}]"
        shown = None
        for each in message.media:
            if message.role != "user":
                raise ApiError(400, f"media belong to a user message, not to one of role {message.role}", where)
            if media is not None and each != media:
                raise ApiError(400, "this model answers about one video or image, and there are several", where)
            shown, media = (each[0] if media is None else shown), each
        text, role = message.text, message.role
        if role != "assistant":
            text = text.strip()
            if not text:
                raise ApiError(
                    400, "the question is empty: add a text part" if role == "user" else "the text is empty", where
                )
            if len(text) + sum(map(len, extension.options)) > config.max_question_chars:
                raise ApiError(400, f"the question is longer than {config.max_question_chars} characters", where)
        if role in ("system", "developer"):
            if position:
                raise ApiError(400, "a system message is taken as the first one only", where)
            turns.append(Turn(role="system", text=text))
        elif role == "assistant":
            turns.append(Turn(role="assistant", text=text))
        elif position == last:
            kind = extension.problem_type or ("multiple_choice" if extension.options else "free_form")
            turns.append(Turn(role="user", text=text, options=extension.options, problem_type=kind, kind=shown))
        else:
            turns.append(Turn(role="user", text=text, kind=shown))
    if turns[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "messages")
    return tuple(turns), media


def _selection(response_format: _ResponseFormat | None) -> Selection | None:
    if response_format is None or response_format.type == "text":
        return None
    schema = (response_format.json_schema or {}).get("schema") if response_format.type == "json_schema" else {}
    if not isinstance(schema, dict):
        raise ApiError(400, "json_schema needs a schema", "response_format")
    try:
        return select_fields(schema)
    except ValueError as error:
        raise ApiError(400, f"response_format: {error}", "response_format") from None


def _invalid(error: ValidationError) -> ApiError:
    """The first mistake of a request in one line, without its input (which may be megabytes)."""
    first = error.errors(include_input=False, include_url=False)[0]
    path = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1])[:80], Extension.model_fields, n=1, cutoff=0.6)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return ApiError(400, f"unknown parameter '{path}'{hint}", path, "unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"'{path}': {message[:300]}" if path else message[:300], path or None)
