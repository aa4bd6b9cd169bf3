"""Video-Thinker's responses (arXiv 2510.23473): located, captioned segments, each with a thought, then the answer."""

from __future__ import annotations

import re

from ..rows.sample import Sample
from .responses import Segment, blocks, parse_response, without_tags
from .spans import format_span, parse_spans

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def is_video_thinker_format(text: str | None, *, min_segments: int = 1) -> bool:
    """Whether the text is segments, reasoning and one answer, as Video-Thinker's system prompt asks.

    Each ``<time>`` holds a readable range and is followed by a ``<caption>``; there is at least one
    ``<think>``; tags are neither nested nor left open; the ``<answer>`` comes last. Text between the tags is
    legal. (The paper's own check is not published.)

    Args:
        text: the response.
        min_segments: how many segments there must be; 0 for a picture, which has no time.
    """
    if not isinstance(text, str):
        return False
    parts = list(blocks(text))
    tags = [block.tag for block in parts]
    if "?" in tags or tags.count("answer") != 1 or tags[-1] != "answer" or "think" not in tags:
        return False
    if any(block.tag and not block.content for block in parts):
        return False
    for place, block in enumerate(parts):
        if block.tag == "time" and (parts[place + 1].tag != "caption" or not parse_spans(block.content)):
            return False
        if block.tag == "caption" and (place == 0 or parts[place - 1].tag != "time"):
            return False
    return tags.count("time") >= min_segments


def follows_video_thinker(sample: Sample, text: str | None) -> bool:
    """`is_video_thinker_format` with what the sample is about: a picture needs no segments."""
    return is_video_thinker_format(text, min_segments=1 if sample.media.kind == "video" else 0)


def write_video_thinker(sample: Sample) -> str:
    """A segment per evidence span, with one sentence of the reasoning each and what remains in the last; the answer.

    Reasoning that carries tags already (a published trace) keeps its own segments.
    """
    trace = parse_response(sample.reasoning or "")
    reasoning = trace.reasoning if trace.segments or trace.tagged else without_tags(sample.reasoning or "")
    segments = trace.segments
    if not segments and sample.evidence:
        captions = [without_tags(evidence.caption) for evidence in sample.evidence]
        thoughts = _share_out(reasoning or " ".join(captions), len(captions))
        spans = [(evidence.start_s, evidence.end_s) for evidence in sample.evidence]
        segments = tuple(
            Segment(*span, caption, thought) for span, caption, thought in zip(spans, captions, thoughts, strict=True)
        )
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
