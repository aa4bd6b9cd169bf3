"""The shapes of response that a prompt can ask for: one entry each, for parsing, checking and writing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UserError
from ..registry import Registry
from ..rows.sample import Sample
from .responses import ParsedResponse, parse_response
from .video_r1 import is_video_r1_format, write_video_r1
from .video_thinker import follows_video_thinker, write_video_thinker


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFormat:
    """A shape of response."""

    follows: Callable[[Sample, str | None], bool]
    """Whether a response to the sample has this shape (the format reward of GRPO)."""
    write: Callable[[Sample], str]
    """The response that a sample should get, from its reasoning, evidence and answer."""
    parse: Callable[[str | None], ParsedResponse] = parse_response
    """What a response says. The default reads both papers' formats, and answers in none."""


FORMATS = Registry[AnswerFormat](
    "answer format",
    AnswerFormat,
    {
        "video_r1": AnswerFormat(follows=lambda sample, text: is_video_r1_format(text), write=write_video_r1),
        "video_thinker": AnswerFormat(follows=follows_video_thinker, write=write_video_thinker),
    },
)
"""The answer formats there are; a prompt template names the one that it asks for."""


class ResponseError(UserError):
    """A sample from which no response can be written, in one line that names it."""


def follows_format(sample: Sample, text: str | None, style: str) -> bool:
    """Whether a response to ``sample`` has the shape called ``style``."""
    return FORMATS.get(style).follows(sample, text)


def write_response(sample: Sample, style: str = "video_thinker") -> str:
    """The response that a sample should get: what SFT trains on. It parses back, has its format, and is graded 1.

    Raises:
        ResponseError: there is nothing to write a response from, or it would not have its format (a video without
            evidence spans in video_thinker, a published trace with damaged tags).
    """
    answer_format = FORMATS.get(style)
    text = answer_format.write(sample)
    if not answer_format.follows(sample, text):
        raise ResponseError(
            f"sample '{sample.id}': no {style} response can be written from its reasoning and evidence spans"
        )
    return text
