"""The shapes of response that a prompt can ask for: one entry each, for checking and writing them."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UserError
from ..registry import Registry
from ..rows.sample import Sample
from .responses import Segment, blocks, format_span, parse_response, parse_spans, without_tags

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFormat:
    """A shape of response; `parse_response` reads every one."""

    follows: Callable[[Sample, str | None], bool]
    """Whether a response to the sample has this shape (the format reward of GRPO)."""
    write: Callable[[Sample], str]  # the response that a sample should get, from its reasoning, evidence and answer


class ResponseError(UserError):
    """A sample from which no response can be written, in one line that names it."""


def follows_format(sample: Sample, text: str | None, style: str) -> bool:
    """Whether a response to ``sample`` has the shape called ``style``."""
    return FORMATS.get(style).follows(sample, text)


def write_response(sample: Sample, style: str = "video_thinker") -> str:
    """The response that a sample should get: what SFT trains on. It parses back, has its format, and is graded 1. A
    `ResponseError` where there is none (a video without evidence spans in video_thinker, a trace with damaged tags)."""
    answer_format = FORMATS.get(style)
    text = answer_format.write(sample)
    if not answer_format.follows(sample, text):
        problem = f"no {style} response can be written from its reasoning and evidence spans"
        raise ResponseError(f"sample '{sample.id}': {problem}")
    return text


def _trace(sample: Sample) -> tuple[tuple[Segment, ...], str]:
    """Segments of a published trace, and the reasoning outside of them, without tags."""
    trace = parse_response(sample.reasoning or "")
    tagged = trace.segments or trace.tagged
    return trace.segments, trace.reasoning if tagged else without_tags(sample.reasoning or "")


# --- Video-R1 (arXiv 2503.21776): one ``<think>``, one ``<answer>``


def is_video_r1_format(text: str | None) -> bool:
    """Whether the whole text is one ``<think>…</think>`` and one ``<answer>…</answer>``, neither empty."""
    if not isinstance(text, str):
        return False
    parts = list(blocks(text, frozenset({"think", "answer"})))
    return [tag for tag, _ in parts] == ["think", "answer"] and all(content for _, content in parts)


def _write_video_r1(sample: Sample) -> str:
    """The reasoning in one ``<think>``, then the answer. Segments of a published trace become sentences of it."""
    segments, reasoning = _trace(sample)
    thoughts = [segment.thought or segment.caption for segment in segments] + [reasoning]
    captions = [s.caption for s in segments] or [without_tags(e.caption) for e in sample.evidence]
    thought = " ".join(filter(None, thoughts)) or " ".join(captions)
    return f"<think>{thought}</think>\n<answer>{without_tags(sample.answer)}</answer>"


# --- Video-Thinker (arXiv 2510.23473): located, captioned segments, each with a thought, then the answer


def is_video_thinker_format(text: str | None, *, min_segments: int = 1) -> bool:
    """Whether the text is segments, reasoning and one answer, as Video-Thinker's system prompt asks.

    Each ``<time>`` holds a readable range and is followed by a ``<caption>``; there is at least one ``<think>``; tags
    are neither nested nor left open; the ``<answer>`` comes last. Text between the tags is legal. (The paper's own
    check is not published.) ``min_segments`` is 0 for a picture, which has no time."""
    if not isinstance(text, str):
        return False
    parts = list(blocks(text))
    tags = [tag for tag, _ in parts]
    if "?" in tags or tags.count("answer") != 1 or tags[-1] != "answer" or "think" not in tags:
        return False
    if not all(content for tag, content in parts if tag):
        return False
    for place, (tag, content) in enumerate(parts):
        if tag == "time" and (tags[place + 1] != "caption" or not parse_spans(content)):
            return False
        if tag == "caption" and (place == 0 or tags[place - 1] != "time"):
            return False
    return tags.count("time") >= min_segments


def _write_video_thinker(sample: Sample) -> str:
    """A segment per evidence span (or those of a published trace), with a sentence of the reasoning each; the
    answer."""
    segments, reasoning = _trace(sample)
    if not segments and sample.evidence:
        captions = [without_tags(evidence.caption) for evidence in sample.evidence]
        thoughts = _share_out(reasoning or " ".join(captions), len(captions))
        pieces = zip(sample.evidence, captions, thoughts, strict=True)
        segments = tuple(Segment(e.start_s, e.end_s, caption, thought) for e, caption, thought in pieces)
        reasoning = ""
    parts = [
        f"<time>{format_span(s.start_s, s.end_s)}</time><caption>{s.caption}</caption>"
        + (f"<think>{s.thought}</think>" if s.thought else "")
        for s in segments
    ]
    thought = f"<think>{reasoning}</think>" if reasoning else ""
    return "".join(parts) + thought + f"<answer>{without_tags(sample.answer)}</answer>"


def _share_out(reasoning: str, parts: int) -> list[str]:
    """A sentence for each part: the last gets the rest; where there are too few, the first go without."""
    sentences = _SENTENCE_END.split(reasoning)
    empty = max(0, parts - len(sentences))
    alone = parts - empty - 1
    return [""] * empty + sentences[:alone] + [" ".join(sentences[alone:])]


_VIDEO_R1 = AnswerFormat(follows=lambda sample, text: is_video_r1_format(text), write=_write_video_r1)
_VIDEO_THINKER = AnswerFormat(
    follows=lambda sample, text: is_video_thinker_format(text, min_segments=int(sample.media.kind == "video")),
    write=_write_video_thinker,
)
FORMATS = Registry("answer format", AnswerFormat, {"video_r1": _VIDEO_R1, "video_thinker": _VIDEO_THINKER})
"""The answer formats there are; a prompt template names the one that it asks for."""
