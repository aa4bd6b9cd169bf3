"""The checks on what a teacher writes, which is hostile until checked: JSON of exactly the asked shape, no tags and no
control characters, letters among the options, times inside the video and in order, and a row from which the training
target can be written and read back."""

import functools
import random
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from ...common.answers.formats import ResponseError, is_video_r1_format, write_response
from ...common.answers.grading import grade
from ...common.answers.responses import format_span, parse_response
from ...common.config import Section, describe
from ...common.model.prompts import get_template, question_text
from ...common.rows.sample import Evidence, Media, Sample
from ..config import CurationConfig

_MAX_CHARACTERS = {"question": 1000, "option": 300, "caption": 1000, "thought": 2000, "reasoning": 8000}
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# A tag of ours, of HTML, or a special token of a model (<|im_end|>): none has a place in a text that is trained on.
_TAG = re.compile(r"<[/!|?A-Za-z]")
_NAMES_LETTER = re.compile(r"\b(?i:answer|option|choice)s?\b[\s:]*(?:is\b|are\b|letter\b)?[\s:]*[(\"'*]*[A-Z]\b(?!')")
_REFERS_TO_OPTIONS = re.compile(r"(?i)\b((all|none|both|neither) of the (above|others?|options)|options? [A-Z])\b")
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n\s*```\s*", re.DOTALL | re.IGNORECASE)
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_R = TypeVar("_R", bound="_Reply")


class UnusableError(ValueError):
    """A text of a model that cannot be used, and why."""


def _refuse(fault: object, problem: str) -> None:
    """Raise an `UnusableError` where there is a fault."""
    if fault:
        raise UnusableError(problem)


def as_asked(sample: Sample) -> str:
    """A question with its lettered options, and what goes inside ``<answer>``."""
    return question_text(sample.question, sample.options, sample.problem_type, get_template("video_thinker/1"))


def with_options(sample: Sample) -> str:
    """A question with its lettered options."""
    return question_text(sample.question, sample.options, sample.problem_type, get_template("compact/1"))


def numbered_segments(segments: Sequence[Evidence]) -> list[dict[str, object]]:
    """Segments as the prompts list them: number, time, caption."""
    timed = [(format_span(s.start_s, s.end_s), s.caption) for s in segments]
    return [{"number": number, "time": time, "caption": caption} for number, (time, caption) in enumerate(timed, 1)]


class _Reply(Section):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Question(_Reply):
    question: str
    options: tuple[str, ...]
    answer: str
    segments: tuple[int, ...]


class _Caption(_Reply):
    start_s: float = Field(ge=0, allow_inf_nan=False)
    end_s: float = Field(ge=0, allow_inf_nan=False)
    caption: str


class _Captions(_Reply):
    segments: tuple[_Caption, ...]


class _Step(_Reply):
    segment: int
    caption: str
    thought: str


class _Trace(_Reply):
    steps: tuple[_Step, ...]
    reasoning: str


def read_json(text: str, shape: type[_R]) -> _R:
    """A reply that is one JSON object of exactly this shape; fences around it, and thoughts before it, are tolerated.
    Raises UnusableError: it is anything else."""
    text = text.removeprefix(thoughts[0]) if (thoughts := _THOUGHTS.match(text)) else text
    fenced = _FENCED.fullmatch(text)
    try:
        return shape.model_validate_json(fenced[1] if fenced else text)
    except ValidationError as error:
        raise UnusableError(describe(error, shape)) from None
    except ValueError as error:  # half a surrogate pair
        raise UnusableError(f"not JSON: {error}") from None


def clean(text: Any, what: str) -> str:
    """A text as one line, or why it cannot be used."""
    _refuse(not isinstance(text, str), f"a {what} must be text, not {type(text).__name__}")
    for character in text:
        category = unicodedata.category(character)
        if (category in ("Cc", "Cs", "Co") and character not in "\n\r\t") or character in _BIDI:
            raise UnusableError(f"a {what} holds the control character U+{ord(character):04X}")
    if tag := _TAG.search(text):
        raise UnusableError(f"a {what} holds a tag ('{text[tag.start() : tag.start() + 20]}')")
    line = " ".join(text.split())
    most = _MAX_CHARACTERS[what]
    _refuse(not line, f"a {what} is empty")
    _refuse(len(line) > most, f"a {what} has {len(line)} characters; at most {most} are allowed")
    return line


def checked_question(
    text: str, item_id: str, media: Media, segments: Sequence[Evidence], config: CurationConfig
) -> Sample:
    """The question that a teacher wrote, its options in an order of ours: teachers have favourite letters."""
    reply = read_json(text, _Question)
    options = [clean(option, "option") for option in reply.options]
    question = clean(reply.question, "question")
    least, most, needed = config.min_options, config.max_options, set(reply.segments)
    _refuse(not least <= len(options) <= most, f"{len(options)} options; {least} to {most} are asked for")
    _refuse(len({option.casefold() for option in options}) < len(options), "two options are the same")
    for option in options:
        if reference := _REFERS_TO_OPTIONS.search(option):
            raise UnusableError(f"an option refers to others ('{reference[0]}')")
    no_letter = len(reply.answer) != 1 or reply.answer not in string.ascii_uppercase[: len(options)]
    _refuse(no_letter, f"the answer '{reply.answer[:40]}' is not the letter of an option")
    _refuse(needed - _numbers(segments), f"segments {sorted(needed)}: there are 1 to {len(segments)}")
    few = f"the question needs {len(needed)} segments, not {config.min_segments} or more"
    _refuse(len(needed) < config.min_segments, few)
    order = list(range(len(options)))
    random.Random(f"{config.seed} {item_id}").shuffle(order)
    answer = string.ascii_uppercase[order.index(string.ascii_uppercase.index(reply.answer))]
    row = functools.partial(Sample, id=item_id, media=media, source=config.source, split=config.split)
    shuffled = tuple(options[place] for place in order)
    return row(question=question, options=shuffled, problem_type="multiple_choice", answer=answer)


def _numbers(segments: Sequence[Evidence]) -> set[int]:
    return set(range(1, len(segments) + 1))


def checked_captions(text: str, duration_s: float) -> tuple[Evidence, ...]:
    """The segments that a teacher found. Raises UnusableError: a time is outside of the video, or out of order; a
    caption cannot be used."""
    reply = read_json(text, _Captions)
    _refuse(not reply.segments, "there are no segments")
    segments: list[Evidence] = []
    for number, segment in enumerate(reply.segments, 1):
        start_s, end_s = round(segment.start_s, 2), round(segment.end_s, 2)
        _refuse(start_s >= end_s, f"segment {number} does not end after it starts ({start_s:g} to {end_s:g} s)")
        beyond = f"segment {number} ends at {end_s:g} s, behind the video's end at {duration_s:.2f} s"
        _refuse(end_s > round(duration_s, 2), beyond)
        unordered = segments and start_s < segments[-1].start_s
        _refuse(unordered, f"segment {number} starts before segment {number - 1}")
        segments.append(Evidence(start_s=start_s, end_s=end_s, caption=clean(segment.caption, "caption")))
    return tuple(segments)


def checked_trace(text: str, sample: Sample, segments: Sequence[Evidence]) -> Sample:
    """The row with its trace: as reasoning in Video-Thinker's format, and as evidence."""
    reply = read_json(text, _Trace)
    numbers = [step.segment for step in reply.steps]
    unknown = not numbers or set(numbers) - _numbers(segments)
    _refuse(unknown, f"steps at segments {numbers[:20]}: there are 1 to {len(segments)}")
    unordered = sorted(set(numbers)) != numbers
    _refuse(unordered, f"steps at segments {numbers[:20]} are not in the order of the video")
    written, evidence = list[str](), list[Evidence]()
    for step in reply.steps:
        caption, thought = clean(step.caption, "caption"), clean(step.thought, "thought")
        if sample.options and (named := _NAMES_LETTER.search(caption)):
            raise UnusableError(f"a caption names the answer ('{named[0]}')")
        place = segments[step.segment - 1]
        evidence.append(Evidence(start_s=place.start_s, end_s=place.end_s, caption=caption))
        time = format_span(place.start_s, place.end_s)
        written.append(f"<time>{time}</time><caption>{caption}</caption><think>{thought}</think>")
    reasoning = f"{''.join(written)}<think>{clean(reply.reasoning, 'reasoning')}</think>"
    row = sample.model_copy(update={"reasoning": reasoning, "evidence": tuple(evidence)})
    # SFT must be able to learn from it, and get its segments back.
    try:
        target = parse_response(write_response(row, "video_thinker"))
    except ResponseError as error:
        raise UnusableError(str(error)) from None
    spans = [(segment.start_s, segment.end_s, segment.caption) for segment in target.segments]
    same = grade(row, target.answer) >= 1 and spans == [(e.start_s, e.end_s, e.caption) for e in row.evidence]
    _refuse(not same, "a training target written from it does not read back the same")
    return row


def checked_cot(text: str, sample: Sample) -> tuple[float, str]:
    """The reward of a sampled trace, and its thoughts; 0 where its format is wrong."""
    if not is_video_r1_format(text):
        return 0.0, ""
    thoughts, _, answer = text.partition("</think>")
    try:
        reasoning = clean(thoughts.partition("<think>")[2], "reasoning")
    except UnusableError:
        return 0.0, ""
    return grade(sample, parse_response(f"<answer>{answer.partition('<answer>')[2]}").answer), reasoning
