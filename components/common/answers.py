"""Answers: reading a model's response, grading it, and writing the response that a sample should get.

Two formats (facts of the papers; the code is ours):

- Video-R1 (arXiv 2503.21776): one ``<think>…</think>``, then ``<answer>…</answer>``.
- Video-Thinker (arXiv 2510.23473): segments of ``<time>00:01-00:03</time><caption>…</caption>
  <think>…</think>``, free reasoning in between or behind, then ``<answer>…</answer>``.

One parser reads both. A response comes from a model, so anything may be in it: nothing here raises because of
a response, and all work is linear in its length.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from .prompts import AnswerFormat
from .samples import ProblemType, Sample

Span = tuple[float, float]
GradingMode = Literal["strict", "paper"]
"""``strict``: ours, for rewards and for evaluation. ``paper``: Video-R1's published rules, to compare with its
figures."""

MAX_ANSWER_CHARS = 10_000
"""A longer answer is graded 0 (in ``strict``)."""
MAX_SEGMENTS = 1_000
"""Further segments of a response are not read."""

CORRECT_AT: dict[ProblemType, float] = {
    "multiple_choice": 1.0,
    "numerical": 1.0,
    "ocr": 1.0,
    "free_form": 0.6,
    "regression": 0.95,
}
"""The grade from which an answer counts as correct. 0.6 is Video-R1's threshold for keeping a trace; 0.95 is
a relative error of 5 %, the strictest step of MRA."""

_TAG = re.compile(r"<(/?)(time|caption|think|answer)>", re.IGNORECASE)
_POINT = r"(?:(?:[0-9]{1,4}:)?[0-9]{1,4}:[0-9]{1,2}(?:\.[0-9]{1,6})?|[0-9]{1,6}(?:\.[0-9]{1,6})?)"
_RANGE = re.compile(
    rf"(?<![0-9.:])({_POINT})\s{{0,4}}(?:s|sec|seconds)?\s{{0,4}}(?:-|–|—|~|to)\s{{0,4}}({_POINT})(?![0-9:])",
    re.IGNORECASE,
)
_FINAL_ANSWER = re.compile(r"final answer[\s*_]{0,4}(?:is\s{0,4})?[:：]", re.IGNORECASE)
_EXAMPLE = re.compile(r"for example[\s:,]{0,4}\Z", re.IGNORECASE)

# Letters. The lead-in may name the kind of answer; "option A is …" is then no article.
_LETTER = re.compile(
    r"[^\w]{0,8}(?:(?:so|i (?:choose|pick|think|would say)|it is|it's)[\s:,]{1,2})?"
    r"(?:(?:the |my )?(?:(?:correct|final|best|right) )?(?:answer|(option|choice|letter)) ?(?:is)? ?:? ?){0,2}"
    r"[^\w]{0,8}([A-Z])(?![\w'’])",
    re.IGNORECASE,
)
_OTHER_LETTER = re.compile(r"(?<!\w)(\w{0,10})[^\w]{0,4}(?<![\w'’])([A-Z])(?![\w'’])(?= ?(.?))", re.IGNORECASE)
_IS_RIGHT = re.compile(r" is (?:the )?(?:correct|right|best|final|answer)", re.IGNORECASE)

# Numbers.
_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40})"
_NUMBER = re.compile(
    rf"(?<![\w.,:/^'])(?:(?P<minus>minus|negative) )?(?P<sign>[-+−])?(?P<digits>{_DIGITS})"
    r"(?:[eE](?P<e>[-+]?[0-9]{1,3})| ?[×x*·] ?10 ?(?:\^|\*\*) ?[({]?(?P<power>[-+−]?[0-9]{1,3})[)}]?"
    r"|/(?P<over>[0-9]{1,15}))?(?!_|[0-9]|[:/,.^'][0-9]|[×xX*][0-9])",
    re.IGNORECASE,
)
_NOT_A_VALUE = re.compile(
    r"[<>≤≥≠!]|- *$|\b(?:not|no|never|nor|than|least|most|under|over|below|above|except|between|without|"
    r"isn't|wasn't|aren't)\b",
    re.IGNORECASE,
)
"""In front of a number: a bound, a range or a denial, not a value. A lone dash is a sign or a bullet."""
_SEVERAL = re.compile(
    r"\A ?(?:[^\W\d_]{1,12}[.²³]? ?){0,2}"
    r"(?:\(?(?:[,;/|&~+*×÷=–—−'-]|\.\.+|\b(?:or|and|to|vs|versus|through|till|until)\b))?"
    r"[^\w.:(]{0,6}(?:about |maybe |perhaps |possibly )?\Z",
    re.IGNORECASE,
)
"""Between two numbers: they are alternatives, a range, a list or a sum, so that neither is the answer."""
_SCALE = re.compile(r"\A ?(?:hundred|thousand|million|billion|trillion|dozen|k\b)", re.IGNORECASE)
_LATEX = re.compile(
    r"\A[-+]?(?:[0-9]{1,12}+(?:\.[0-9]{1,12}+)?(?![0-9])|\\[dt]?frac|\\sqrt|\\times|\\cdot|\\pi|[{}() +*/-]){1,32}+"
    r"(?:\^(?:[0-9]|\{-?[0-9]{1,2}\}))?\Z"
)
"""What is handed to math-verify: nothing that could grow (one power at most, of two digits)."""
_WRAPPERS = (
    ("<answer>", "</answer>"),
    ("\\boxed{", "}"),
    ("\\text{", "}"),
    ("\\mathrm{", "}"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("(", ")"),
    ("[", "]"),
    ("{", "}"),
    *((mark, mark) for mark in ("**", "*", "__", "_", "`", '"', "'", "$")),
    ("“", "”"),
    ("‘", "’"),
    ("「", "」"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class ResponseError(ValueError):
    """A sample from which no response can be written, in one line that names it."""


# --------------------------------------------------------------------------------------------------- reading


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


class _Block(NamedTuple):
    """A tag with its content, or text between tags (``tag`` empty), or a tag without its partner ("?")."""

    tag: str
    content: str


def _blocks(text: str, tags: frozenset[str]) -> Iterator[_Block]:
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
            yield _Block(name, content.strip())
            open_tag = ""
        else:
            if content.strip():
                yield _Block("", content.strip())
            if open_tag or closing:
                yield _Block("?", name)
            open_tag = "" if closing else name
    if text[position:].strip():
        yield _Block("", text[position:].strip())
    if open_tag:
        yield _Block("?", open_tag)


_ALL_TAGS = frozenset({"time", "caption", "think", "answer"})
_VIDEO_R1_TAGS = frozenset({"think", "answer"})


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

    for block in _blocks(text, _ALL_TAGS):
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


def parse_spans(text: str) -> list[Span]:
    """The time ranges in ``text``, in seconds: ``00:01-00:03``, ``1:02:03 - 1:02:10``, ``0.0-5.0 seconds``.

    Ranges that end before they start, and impossible times such as ``00:75``, are left out.
    """
    spans = []
    for match in _RANGE.finditer(text[:1000]):
        start, end = _seconds(match[1]), _seconds(match[2])
        if start is not None and end is not None and start <= end:
            spans.append((start, end))
    return spans


def _seconds(point: str) -> float | None:
    parts = [float(part) for part in point.split(":")]
    if any(part >= 60 for part in parts[1:]):
        return None
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def format_span(start_s: float, end_s: float) -> str:
    """``00:01-00:03`` (from an hour on ``01:00:01-01:00:03``) for whole seconds, else ``0.5-2.25 seconds``.

    Fractions are rounded to hundredths.
    """
    if start_s == int(start_s) and end_s == int(end_s):
        return f"{_clock(int(start_s))}-{_clock(int(end_s))}"
    return f"{_decimal(start_s)}-{_decimal(end_s)} seconds"


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def _decimal(seconds: float) -> str:
    text = f"{seconds:.2f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


# --------------------------------------------------------------------------------------------------- formats


def is_video_r1_format(text: str | None) -> bool:
    """Whether the whole text is one ``<think>…</think>`` and one ``<answer>…</answer>``, neither empty."""
    if not isinstance(text, str):
        return False
    blocks = list(_blocks(text, _VIDEO_R1_TAGS))
    return [block.tag for block in blocks] == ["think", "answer"] and all(block.content for block in blocks)


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
    blocks = list(_blocks(text, _ALL_TAGS))
    tags = [block.tag for block in blocks]
    if "?" in tags or tags.count("answer") != 1 or tags[-1] != "answer" or "think" not in tags:
        return False
    if any(block.tag and not block.content for block in blocks):
        return False
    for place, block in enumerate(blocks):
        if block.tag == "time" and (blocks[place + 1].tag != "caption" or not parse_spans(block.content)):
            return False
        if block.tag == "caption" and (place == 0 or blocks[place - 1].tag != "time"):
            return False
    return tags.count("time") >= min_segments


def follows_format(sample: Sample, text: str | None, style: AnswerFormat) -> bool:
    """Whether a response to ``sample`` has the shape that ``style`` asks for; a picture needs no segments."""
    if style == "video_r1":
        return is_video_r1_format(text)
    return is_video_thinker_format(text, min_segments=1 if sample.media.kind == "video" else 0)


# --------------------------------------------------------------------------------------------------- grading


def grade(sample: Sample, answer: str | None, mode: GradingMode = "strict") -> float:
    """How good an answer is, in [0, 1], by problem type (the accuracy reward of Video-R1).

    multiple_choice: the right letter; numerical: equal at two decimals; ocr: 1 − word error rate; free_form:
    mean of ROUGE-1, ROUGE-2 and ROUGE-L F; regression: 1 − relative error. Whatever the answer is, this does
    not raise.

    ``strict`` reads an answer as a person would: spaces, case and wrapping (``**B**``, ``\boxed{3}``) do not
    matter, 1,000 and 1000 are equal; and gives nothing for what decides nothing: several answers, a range, a
    repeated question, more than `MAX_ANSWER_CHARS`. ``paper`` is what Video-R1's code does (``grpo.py``): the
    letter alone and equal, numbers only by Python's ``float`` and with a decimal point where the truth has one.
    """
    if not isinstance(answer, str):
        return 0.0
    if mode == "paper":
        return _grade_as_published(sample, answer)
    if len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    answer = _bare(_without_question(answer, sample.question))
    if not answer:
        return 0.0
    if sample.problem_type == "multiple_choice":
        letter = extract_letter(answer, len(sample.options), sample.options)
        return float(letter == sample.answer.strip().upper())
    if sample.problem_type == "ocr":
        return max(0.0, 1.0 - word_error_rate(answer.lower(), _bare(sample.answer).lower()))
    if sample.problem_type == "free_form":
        return rouge_f(answer, sample.answer)
    predicted, truth = extract_number(answer), float(sample.answer.replace(",", ""))
    if predicted is None:
        return 0.0
    if sample.problem_type == "numerical":
        return float(round(predicted, 2) == round(truth, 2))
    return 1.0 - min(1.0, _relative_error(predicted, truth))


def is_correct(sample: Sample, answer: str | None, mode: GradingMode = "strict") -> bool:
    """Whether an answer counts as correct: its grade reaches `CORRECT_AT` of its problem type."""
    return grade(sample, answer, mode) >= CORRECT_AT[sample.problem_type] - 1e-9


def published_answer(text: str | None) -> str | None:
    """The answer as Video-R1's evaluation reads it (``eval_bench.py``): the first ``<answer>``, else all of the
    text."""
    if not isinstance(text, str):
        return None
    start = text.find("<answer>")
    end = text.find("</answer>", start)
    found = text[start + len("<answer>") : end].strip() if 0 <= start < end else ""
    return found or text


def _grade_as_published(sample: Sample, answer: str) -> float:
    answer, truth = answer.strip(), sample.answer.strip()
    if sample.problem_type == "multiple_choice":
        return float(answer == truth)
    if sample.problem_type == "ocr":
        return min(max(1.0 - word_error_rate(answer, truth), 0.0), 1.0)
    if sample.problem_type == "free_form":
        scores = _rouge_scorer().score(truth[:MAX_ANSWER_CHARS], answer[:MAX_ANSWER_CHARS])
        return float(sum(score.fmeasure for score in scores.values()) / len(scores))
    try:
        said, true = float(answer.replace(",", "")), float(truth.replace(",", ""))
        if sample.problem_type == "regression":
            return 1.0 - min(1.0, max(0.0, (abs(said - true) + 1e-9) / (abs(true) + 1e-9)))
        pointed = [any(mark in text for mark in ".,") for text in (answer, truth)]
        return float(pointed[0] == pointed[1] and round(said, 2) == round(true, 2))
    except (ValueError, OverflowError):  # not a number; an infinity cannot be rounded
        return 0.0


def _bare(text: str) -> str:
    """The text with single spaces and without what is merely wrapped around all of it: ``**B**``, ``$3$``."""
    text = " ".join(text.split())
    for _ in range(16):
        for left, right in _WRAPPERS:
            if len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : len(text) - len(right)]
                if _encloses(inner, left if len(right) > 1 else left[-1], right):
                    text = inner.strip()
                    break
        else:
            break
    return text


def _encloses(inner: str, left: str, right: str) -> bool:
    """Whether marks left and right of ``inner`` belong together: ``(A) or (B)`` is not wrapped."""
    if left == right:
        return right not in inner or (inner.startswith(left) and inner.endswith(right))
    depth = 0
    for match in re.finditer(f"({re.escape(left)})|{re.escape(right)}", inner):
        depth += 1 if match[1] else -1
        if depth < 0:
            return False
    return depth == 0


def _without_question(answer: str, question: str) -> str:
    """What is left of an answer when it repeats the question: nothing, where it does no more than that."""
    words = question.split()
    if len(words) < 3 or words[0].lower() not in answer.lower():
        return answer
    echo = r"\s+".join(map(re.escape, words))
    return re.sub(echo, " ", answer, flags=re.IGNORECASE)


def extract_letter(text: str | None, num_options: int = 26, options: Sequence[str] = ()) -> str | None:
    """The option letter that an answer begins with: ``A``, ``a``, ``A.``, ``(A)``, ``B) left``, ``Answer: C``.

    None when there is none, when it is not one of the first ``num_options``, or when another option's letter
    follows: who names several has chosen none.

    Args:
        text: the answer.
        num_options: how many letters are options.
        options: their texts; a letter inside the text of the chosen option ("vitamin C") is no second answer.
    """
    if not isinstance(text, str):
        return None
    text = _bare(text[:MAX_ANSWER_CHARS])
    match = _LETTER.match(text)
    if match is None:
        return None
    letter, rest = match[2].upper(), text[match.end() :]
    if letter in "AI" and not match[1] and re.match(r" \w", rest) and not _IS_RIGHT.match(rest):
        return None  # an article or a pronoun
    letters = string.ascii_uppercase[:num_options]
    if letter not in letters:
        return None
    place = letters.index(letter)
    if place < len(options):
        chosen = " ".join(options[place].split())
        at = rest.lower().find(chosen.lower())
        if 0 <= at <= 4:  # behind ". " or ") "
            rest = rest[at + len(chosen) :]
    for other in _OTHER_LETTER.finditer(rest):
        word, name = other[1].lower(), other[2].upper()
        article = name in "AI" and other[3].isalnum() and word not in ("or", "and", "option", "choice", "answer")
        if name != letter and name in letters and not article:
            return None
    return letter


def extract_number(text: str | None) -> float | None:
    """The number in an answer: ``3``, ``1,000``, ``about 2.5 s``, ``3/4``, ``2×10^3``, ``\frac{3}{4}``.

    Units are not converted and number words not read. None when there is no number, when it is not finite, when
    it is a bound, a range or one of several ("2 or 3", "less than 5"), or when there are several and the answer
    does not begin with one. LaTeX is read by math-verify.
    """
    if not isinstance(text, str):
        return None
    text = _bare(text[:MAX_ANSWER_CHARS]).replace("{,}", ",")
    if "\\" in text:
        text = _bare(re.sub(r"\\[,;! ]", "", text).replace("\\%", "%"))
        text = re.sub(r"\\(?:text|mathrm)\{([^{}]{0,40})\}", r" \1", text)
    if "\\" in text:
        return _latex_number(text)
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    first, before = numbers[0], text[: numbers[0].start()]
    if _NOT_A_VALUE.search(before) or (len(numbers) > 1 and re.search(r"\w", before)):
        return None
    behind = text[first.end() :]
    if _SCALE.match(behind) or (len(numbers) > 1 and _SEVERAL.match(text[first.end() : numbers[1].start()])):
        return None
    value = float(first["digits"].replace(",", ""))
    if first["over"] and float(first["over"]) == 0:
        return None
    value = value / float(first["over"]) if first["over"] else value
    exponent = int((first["e"] or first["power"] or "0").replace("−", "-"))
    value = float(f"{value!r}e{exponent}") if exponent else value
    if (first["sign"] or "") in ("-", "−"):
        value = -value
    value = -value if first["minus"] else value
    return value if math.isfinite(value) else None


def _latex_number(text: str) -> float | None:
    text = re.sub(r"\A[a-zA-Z] ?= ?", "", text.rstrip(". "))
    text = re.sub(r" [a-zA-Z²³]{1,12}\Z", "", text)  # a unit
    if len(text) > 80 or not _LATEX.match(text):
        return None
    value = _read_latex(text)
    return value if value is not None and math.isfinite(value) else None


@lru_cache(maxsize=1024)
def _read_latex(text: str) -> float | None:
    import logging

    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)  # it warns that no alarm is set
    from math_verify import LatexExtractionConfig, parse

    try:
        # No timeout: its alarm works in the main thread only, and `_LATEX` admits nothing that takes long.
        found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
        return float(found[0].evalf()) if found and not isinstance(found[0], str) else None
    except Exception:  # sympy and the parser raise whatever they like; a text that they cannot read is no number
        return None


def _relative_error(predicted: float, truth: float) -> float:
    if predicted == truth:
        return 0.0
    return abs(predicted - truth) / abs(truth) if truth else math.inf


def mean_relative_accuracy(
    predicted: float | str | None, truth: float | str | None, *, inclusive: bool = False
) -> float:
    """MRA of VSI-Bench: the share of θ in 0.5, 0.55 … 0.95 for which the relative error is below 1 − θ.

    Args:
        predicted: a number, or an answer that holds one.
        truth: the same.
        inclusive: compare with ``<=`` (lmms-eval) instead of ``<`` (Video-R1).
    """
    predicted = extract_number(predicted) if isinstance(predicted, str) else predicted
    truth = extract_number(truth) if isinstance(truth, str) else truth
    if predicted is None or truth is None or not (math.isfinite(predicted) and math.isfinite(truth)):
        return 0.0
    # Rounded, so that 10 against 9.5 (an error of 0.05 and some rounding) is on the threshold, not beside it.
    error = round(_relative_error(predicted, truth), 12)
    limits = [step / 20 for step in range(1, 11)]
    return sum(error < limit or (inclusive and error == limit) for limit in limits) / len(limits)


def word_error_rate(predicted: str, truth: str) -> float:
    """Word edits that turn ``truth`` into ``predicted``, per word of ``truth``; above 1 when it is longer."""
    import jiwer

    if not truth.split():
        return 0.0 if not predicted.split() else math.inf
    return float(jiwer.wer(" ".join(truth.split()), " ".join(predicted.split())))


def rouge_f(predicted: str, truth: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L F (stemmed; only the first `MAX_ANSWER_CHARS` are compared).

    A truth of one word has no bigrams: ROUGE-2 is left out. ROUGE knows only a-z and 0-9: a truth without any
    of them is compared as it stands.
    """
    words = len(re.findall(r"[a-z0-9]+", truth.lower()))
    if not words:
        return float(predicted.strip() == truth.strip())
    scores = _rouge_scorer().score(truth[:MAX_ANSWER_CHARS], predicted[:MAX_ANSWER_CHARS])
    counted = [score.fmeasure for name, score in scores.items() if words > 1 or name != "rouge2"]
    return float(sum(counted) / len(counted))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # 1.5 s to import: only where free text is graded

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


# ------------------------------------------------------------------------------------------------- grounding


def span_iou(a: Span, b: Span) -> float:
    """Intersection over union of two time spans (seconds)."""
    if not all(map(math.isfinite, (*a, *b))) or a[0] > a[1] or b[0] > b[1]:
        return 0.0
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
    return intersection / union if union > 0 else 0.0


def grounding_scores(predicted: Sequence[Span], truth: Sequence[Span]) -> dict[str, float]:
    """How well predicted spans cover the true ones: per true span the best IoU over the predictions, then
    averaged.

    Returns:
        ``miou`` and ``r@0.3``, ``r@0.5``, ``r@0.7``: the share of true spans whose best IoU reaches that.

    Raises:
        ValueError: there is no true span.
    """
    if not truth:
        raise ValueError("grounding needs at least one true span")
    best = [max((span_iou(span, guess) for guess in predicted), default=0.0) for span in truth]
    recall = {f"r@{k}": sum(iou >= k for iou in best) / len(best) for k in (0.3, 0.5, 0.7)}
    return {"miou": sum(best) / len(best)} | recall


# --------------------------------------------------------------------------------------------------- writing


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
