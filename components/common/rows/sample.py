"""The canonical row, a question about a video or image. Data sets and benchmarks are adapters into `Sample`."""

import json
import math
import re
import string
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..config import Section
from ..video.config import MediaKind

ProblemType = Literal["multiple_choice", "numerical", "ocr", "free_form", "regression"]
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


class Media(Section):
    """The video or image that a question is about."""

    kind: MediaKind
    uri: str = Field(min_length=1, max_length=4096)
    """Where it is: a path (relative ones count from the file of rows) or an ``s3://`` URI."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file, in hex; checked where it is given, filled in by preparation."""
    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Only the part of the video from here to ``end_s`` is shown; null: from its start, to its end."""
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "image" and (self.start_s is not None or self.end_s is not None):
            raise ValueError("an image has no start_s and end_s")
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise ValueError(f"start_s {self.start_s:g} is not before end_s {self.end_s:g}")
        _encodable(self.uri)
        return self


class Evidence(Section):
    """A part of the video that the answer rests on, and what is seen there."""

    start_s: float = Field(ge=0, allow_inf_nan=False)  # from the start of the part that is shown (`media.start_s`)
    end_s: float = Field(ge=0, allow_inf_nan=False)
    caption: str  # what is seen there

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_s > self.end_s:
            raise ValueError(f"start_s {self.start_s:g} is after end_s {self.end_s:g}")
        _non_empty(self.caption, "caption")
        return self


class Sample(Section):
    """One question about one video or image."""

    id: str = Field(max_length=1024)  # unique within a data set
    media: Media
    question: str  # without its options
    options: tuple[str, ...] = ()  # without letters; for `multiple_choice` only, 2 to 26 of them
    problem_type: ProblemType  # how the answer is given and graded
    answer: str  # the true one; for `multiple_choice` its letter, for `numerical` and `regression` a number
    reasoning: str | None = None  # a line of thought that leads to the answer, where one is known
    evidence: tuple[Evidence, ...] = ()  # the parts of the video that the answer rests on, where they are known
    source: str = ""  # the data set that the row is from
    split: str = "train"  # or `validation`, `test` or another name; a video is in one split only
    metadata: dict[str, Any] = Field(default={})  # anything else that the source says, as JSON values

    @field_validator("split")
    @classmethod
    def _split_name(cls, split: str) -> str:
        if not _SPLIT_NAME.fullmatch(split) or split == "all":
            raise ValueError("a split is named with letters, digits and _, and not 'all'")
        return split

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("id", "question", "answer"):
            _non_empty(getattr(self, name), name)
        _encodable(self.source + (self.reasoning or ""))
        if self.problem_type == "multiple_choice":
            _check_choice(self.options, self.answer)
        elif self.options:
            raise ValueError(f"options are for multiple_choice, not for {self.problem_type}")
        elif self.problem_type in ("numerical", "regression") and _number(self.answer) is None:
            raise ValueError(f"the answer of a {self.problem_type} question must be a number, not '{self.answer[:40]}'")
        try:
            _encodable(json.dumps(self.metadata, allow_nan=False, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"metadata must be plain JSON: {error}") from None
        return self


def _check_choice(options: Sequence[str], answer: str) -> None:
    letters = string.ascii_uppercase[: len(options)]
    if not 2 <= len(options) <= 26:
        raise ValueError(f"multiple_choice needs 2 to 26 options, there are {len(options)}")
    for letter, option in zip(letters, options, strict=True):
        _non_empty(option, f"option {letter}")
    if len(set(options)) < len(options):
        raise ValueError("two options have the same text")
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"the answer must be one of the letters {letters[0]} to {letters[-1]}, not '{answer[:40]}'")


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _non_empty(text: str, name: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} is empty")
    _encodable(text)


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair (broken UTF-16) in it") from None
