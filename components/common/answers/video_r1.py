"""Video-R1's responses (arXiv 2503.21776): one ``<think>``, one ``<answer>``."""

from __future__ import annotations

from ..rows.sample import Sample
from .responses import blocks, parse_response, without_tags

_TAGS = frozenset({"think", "answer"})


def is_video_r1_format(text: str | None) -> bool:
    """Whether the whole text is one ``<think>…</think>`` and one ``<answer>…</answer>``, neither empty."""
    if not isinstance(text, str):
        return False
    parts = list(blocks(text, _TAGS))
    return [part.tag for part in parts] == ["think", "answer"] and all(part.content for part in parts)


def write_video_r1(sample: Sample) -> str:
    """The reasoning in one ``<think>``, then the answer. Segments of a published trace become sentences of it."""
    trace = parse_response(sample.reasoning or "")
    reasoning = trace.reasoning if trace.segments or trace.tagged else without_tags(sample.reasoning or "")
    thoughts = [segment.thought or segment.caption for segment in trace.segments] + [reasoning]
    captions = [s.caption for s in trace.segments] or [without_tags(e.caption) for e in sample.evidence]
    thought = " ".join(text for text in thoughts if text) or " ".join(captions)
    return f"<think>{thought}</think>\n<answer>{without_tags(sample.answer)}</answer>"
