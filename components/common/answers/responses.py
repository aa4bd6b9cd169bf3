"""Responses of a model: segments, reasoning and answer in either paper's format, or in none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .spans import Span, parse_spans
from .values import MAX_ANSWER_CHARS, extract_letter

MAX_SEGMENTS = 1_000
"""Further segments of a response are not read."""

TAGS = frozenset({"time", "caption", "think", "answer"})
"""Every tag of either format."""

_TAG = re.compile(r"<(/?)(time|caption|think|answer)>", re.IGNORECASE)
_FINAL_ANSWER = re.compile(r"final answer[\s*_]{0,4}(?:is\s{0,4})?[:：]", re.IGNORECASE)
_EXAMPLE = re.compile(r"for example[\s:,]{0,4}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the video that a response points at."""

    start_s: float
    end_s: float
    caption: str
    thought: str


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """What a response says."""

    segments: tuple[Segment, ...]
    reasoning: str
    """Everything thought outside the segments, tagged or not."""
    answer: str | None
    text: str
    """The response itself."""
    tagged: bool = False
    """Whether ``answer`` comes from ``<answer>`` tags, not from a fallback."""


class Block(NamedTuple):
    """A tag with its content, or text between tags (``tag`` empty), or a tag without its partner ("?")."""

    tag: str
    content: str


def blocks(text: str, tags: frozenset[str] = TAGS) -> Iterator[Block]:
    """The text as a flat row of blocks. A tag that opens inside another ends that one, as damaged."""
    open_tag, position = "", 0
    for match in _TAG.finditer(text):
        name = match[2].lower()
        if name not in tags:
            continue
        closing = bool(match[1])
        content = text[position : match.start()]
        position = match.end()
        if open_tag and closing and name == open_tag:
            yield Block(name, content.strip())
            open_tag = ""
        else:
            if content.strip():
                yield Block("", content.strip())
            if open_tag or closing:
                yield Block("?", name)
            open_tag = "" if closing else name
    if text[position:].strip():
        yield Block("", text[position:].strip())
    if open_tag:
        yield Block("?", open_tag)


def without_tags(text: str) -> str:
    """Text without our tags, so that it cannot break the response that it is put into."""
    return _TAG.sub("", text).strip()


def parse_response(text: str | None) -> ParsedResponse:
    """Segments, reasoning and answer of a response in either paper's format, or in neither.

    The answer is the content of the last ``<answer>``; else the line behind the last "Final answer:"; else a
    leading option letter (Video-Thinker's evaluator); else None.
    """
    if not isinstance(text, str):
        return ParsedResponse((), "", None, "")
    segments: list[Segment] = []
    thoughts: list[str] = []
    # The segment being read is complete with its <think>, or when the next one begins.
    spans: list[Span] = []
    caption: str | None = None
    answer: str | None = None
    before = ""

    def complete(thought: str = "") -> None:
        nonlocal spans, caption
        segments.extend(Segment(start, end, caption or "", thought) for start, end in spans)
        spans, caption = [], None

    for block in blocks(text):
        if block.tag == "time":
            complete()
            spans = parse_spans(block.content) if len(segments) < MAX_SEGMENTS else []
        elif block.tag == "caption" and caption is None:
            caption = block.content
        elif block.tag == "think":
            if spans:
                complete(block.content)
            else:
                thoughts.append(block.content)
        elif block.tag == "answer":
            if not _EXAMPLE.search(before[-20:]):  # a prompt that is repeated brings its own example
                answer = block.content
        elif block.tag == "":
            thoughts.append(block.content)
        before = "" if block.tag else block.content
    complete()
    tagged = answer is not None
    if answer is None:
        answer = _untagged_answer(text)
    return ParsedResponse(tuple(segments), "\n".join(t for t in thoughts if t), answer, text, tagged)


def _untagged_answer(text: str) -> str | None:
    ends = [match.end() for match in _FINAL_ANSWER.finditer(text)]
    if not ends:
        if text.lstrip().startswith("<"):
            return None
        first_line = text.strip().split("\n", 1)[0]
        return extract_letter(first_line) or extract_letter(text)
    rest = text[ends[-1] : ends[-1] + MAX_ANSWER_CHARS].strip()
    return rest.splitlines()[0].strip() if rest else None


def published_answer(text: str | None) -> str | None:
    """The answer as Video-R1's evaluation (``eval_bench.py``) reads it: the first ``<answer>``, else the whole text."""
    if not isinstance(text, str):
        return None
    start = text.find("<answer>")
    end = text.find("</answer>", start)
    content = text[start + len("<answer>") : end].strip() if 0 <= start < end else ""
    return content or text
