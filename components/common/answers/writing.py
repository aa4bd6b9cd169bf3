"""The response that a sample should get: what SFT trains on."""

from __future__ import annotations

import re

from ..errors import UserError
from ..model.prompts import AnswerFormat
from ..rows.sample import Sample
from .responses import _TAG, Segment, follows_format, parse_response
from .spans import format_span

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class ResponseError(UserError):
    """A sample from which no response can be written, in one line that names it."""


def write_response(sample: Sample, style: AnswerFormat = "video_thinker") -> str:
    """The response that a sample should get: what SFT trains on. It parses back, has its format, and is
    graded 1.

    video_r1: the reasoning in one ``<think>``, then the answer. video_thinker: a segment per evidence span,
    with one sentence of the reasoning each and what remains in the last, then the answer. Reasoning that
    carries tags already (a published trace) keeps its own segments.

    Raises:
        ResponseError: there is nothing to write a response from, or it would not have its format (a video
        without
            evidence spans in video_thinker, a published trace with damaged tags).
    """
    text = _write(sample, style)
    if not follows_format(sample, text, style):
        raise ResponseError(
            f"sample '{sample.id}': no {style} response can be written from its reasoning and evidence spans"
        )
    return text


def _write(sample: Sample, style: AnswerFormat) -> str:
    trace = parse_response(sample.reasoning or "")
    reasoning = trace.reasoning if trace.segments or trace.tagged else _plain(sample.reasoning or "")
    segments = trace.segments or tuple(Segment(e.start_s, e.end_s, _plain(e.caption), "") for e in sample.evidence)
    answer = f"<answer>{_plain(sample.answer)}</answer>"
    if style == "video_r1":
        thoughts = [s.thought or s.caption for s in trace.segments] + [reasoning]
        thought = " ".join(t for t in thoughts if t) or " ".join(s.caption for s in segments)
        return f"<think>{thought}</think>\n{answer}"
    if segments and not trace.segments:
        segments, reasoning = _share_out(segments, reasoning or " ".join(s.caption for s in segments)), ""
    parts = [
        f"<time>{format_span(s.start_s, s.end_s)}</time><caption>{s.caption}</caption>"
        + (f"<think>{s.thought}</think>" if s.thought else "")
        for s in segments
    ]
    return "".join(parts) + (f"<think>{reasoning}</think>" if reasoning else "") + answer


def _share_out(segments: tuple[Segment, ...], reasoning: str) -> tuple[Segment, ...]:
    """A sentence for each segment: the last gets the rest; where there are too few, the first go without."""
    sentences = _SENTENCE_END.split(reasoning)
    empty = max(0, len(segments) - len(sentences))
    thoughts = [""] * empty + sentences[: len(segments) - empty - 1]
    thoughts.append(" ".join(sentences[len(segments) - empty - 1 :]))
    return tuple(Segment(s.start_s, s.end_s, s.caption, thought) for s, thought in zip(segments, thoughts, strict=True))


def _plain(text: str) -> str:
    """Text without our tags, so that it cannot break the response that it is put into."""
    return _TAG.sub("", text).strip()
