"""What a response says, in either paper's format or in none: segments, reasoning, answer; and spans of time."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from .grading import MAX_ANSWER_CHARS, extract_letter

MAX_SEGMENTS = 1_000  # further segments of a response are not read
TAGS = frozenset({"time", "caption", "think", "answer"})  # every tag of either format

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
    reasoning: str  # everything thought outside the segments, tagged or not
    answer: str | None
    text: str  # the response itself
    tagged: bool = False  # whether the answer comes from `<answer>` tags, not from a fallback


def blocks(text: str, tags: frozenset[str] = TAGS) -> Iterator[tuple[str, str]]:
    """The text as a flat row of tags with their content; text between tags has the tag "". A tag that opens inside
    another ends that one. One without its partner is the content of a "?"."""
    open_tag, position = "", 0
    for match in _TAG.finditer(text):
        closing, name = bool(match[1]), match[2].lower()
        if name not in tags:
            continue
        content = text[position : match.start()].strip()
        position = match.end()
        if open_tag and closing and name == open_tag:
            yield name, content
            open_tag = ""
        else:
            if content:
                yield "", content
            if open_tag or closing:
                yield "?", name
            open_tag = "" if closing else name
    if text[position:].strip():
        yield "", text[position:].strip()
    if open_tag:
        yield "?", open_tag


def without_tags(text: str) -> str:
    """Text without our tags, so that it cannot break the response that it is put into."""
    return _TAG.sub("", text).strip()


def parse_response(text: str | None) -> ParsedResponse:
    """Segments, reasoning and answer of a response in either paper's format, or in neither. The answer is the content
    of the last ``<answer>``; else the line behind the last "Final answer:"; else a leading option letter
    (Video-Thinker's evaluator); else None."""
    if not isinstance(text, str):
        return ParsedResponse((), "", None, "")
    segments: list[Segment] = []
    thoughts: list[str] = []
    spans: list[Span] = []
    caption: str | None = None
    answer: str | None = None
    before = ""
    for tag, content in chain(blocks(text), [("time", "")]):
        # A segment is complete with its <think>, where the next one begins, and at the end.
        if tag == "time" or (tag == "think" and spans):
            thought = content if tag == "think" else ""
            segments += [Segment(start, end, caption or "", thought) for start, end in spans]
            spans = parse_spans(content) if tag == "time" and len(segments) < MAX_SEGMENTS else []
            caption = None
        elif tag in ("think", ""):
            thoughts.append(content)
        elif tag == "caption" and caption is None:
            caption = content
        elif tag == "answer" and not _EXAMPLE.search(before[-20:]):  # a repeated prompt brings its own example
            answer = content
        before = "" if tag else content
    reasoning = "\n".join(filter(None, thoughts))
    final = _untagged_answer(text) if answer is None else answer
    return ParsedResponse(tuple(segments), reasoning, final, text, tagged=answer is not None)


def _untagged_answer(text: str) -> str | None:
    ends = [match.end() for match in _FINAL_ANSWER.finditer(text)]
    if not ends:
        if text.lstrip().startswith("<"):
            return None
        return extract_letter(text.strip().split("\n", 1)[0]) or extract_letter(text)
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


# --- time spans

Span = tuple[float, float]  # start and end in seconds

_POINT = r"(?:(?:[0-9]{1,4}:)?[0-9]{1,4}:[0-9]{1,2}(?:\.[0-9]{1,6})?|[0-9]{1,6}(?:\.[0-9]{1,6})?)"
_RANGE = re.compile(
    rf"(?<![0-9.:])({_POINT})\s{{0,4}}(?:s|sec|seconds)?\s{{0,4}}(?:-|–|—|~|to)\s{{0,4}}({_POINT})(?![0-9:])",
    re.IGNORECASE,
)


def parse_spans(text: str) -> list[Span]:
    """The time ranges in ``text``, in seconds: ``00:01-00:03``, ``1:02:03 - 1:02:10``, ``0.0-5.0 seconds``. Ranges that
    end before they start, and impossible times such as ``00:75``, are left out."""
    spans = [(_seconds(match[1]), _seconds(match[2])) for match in _RANGE.finditer(text[:1000])]
    return [(start, end) for start, end in spans if start is not None and end is not None and start <= end]


def _seconds(point: str) -> float | None:
    parts = [float(part) for part in point.split(":")]
    if any(part >= 60 for part in parts[1:]):
        return None
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def format_span(start_s: float, end_s: float) -> str:
    """``00:01-00:03`` (from an hour on ``01:00:01-01:00:03``) for whole seconds, else ``0.5-2.25 seconds``, rounded to
    hundredths."""
    if start_s == int(start_s) and end_s == int(end_s):
        return f"{_clock(int(start_s))}-{_clock(int(end_s))}"
    return f"{round(float(start_s), 2)}-{round(float(end_s), 2)} seconds"


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def span_iou(a: Span, b: Span) -> float:
    """Intersection over union of two time spans (seconds)."""
    if not all(map(math.isfinite, (*a, *b))) or a[0] > a[1] or b[0] > b[1]:
        return 0.0
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def grounding_scores(predicted: Sequence[Span], truth: Sequence[Span]) -> dict[str, float]:
    """How well predicted spans cover the true ones, of which there must be one: the best IoU of each true span.
    ``miou`` is their mean; ``r@0.3``, ``r@0.5``, ``r@0.7`` the share of true spans whose best IoU reaches that."""
    if not truth:
        raise ValueError("grounding needs at least one true span")
    best = [max((span_iou(span, guess) for guess in predicted), default=0.0) for span in truth]
    recall = {f"r@{k}": sum(iou >= k for iou in best) / len(best) for k in (0.3, 0.5, 0.7)}
    return {"miou": sum(best) / len(best)} | recall
