"""What a response answers to its question, inside ``<answer>`` or, where it is unambiguous, outside of it.

For evaluation: rewards read tagged answers alone (`grpo.rewards`). Read outside of tags, behind the reasoning if there
is any: a conclusion in words ("the answer is B", "Final answer: 4"), one boxed or bold value at the end, a last line
that is an answer, or a text that is nothing else. What is left open ("A or B") or was cut off is no answer.
"""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

from ..rows.sample import Sample
from .grading import MAX_ANSWER_CHARS, bare, extract_letter, extract_number
from .responses import ParsedResponse, blocks

GRADER_VERSION = "3"
"""Of reading and grading together: results of two versions are not compared. 1 read outside of tags letters alone, 2
took "3到4" for 3."""

_STATEMENT = re.compile(
    r"(?:\b(?:final |correct |right |best )?(?:answer|option|choice)(?: to (?:the|this) question| here)?"
    r"[*_]{0,2}\s?(?:is|would be|should be|must be|[:：=])|答案(?:应该|应)?(?:是|为|[:：])|"
    r"\bi (?:choose|pick|select)\b)"
    r"[\s:：*_]{0,8}",
    re.IGNORECASE,
)
_FINAL = re.compile(r"\Afinal", re.IGNORECASE)
# In front of a conclusion, or of a bold value: that it is none.
_SUPPOSED = re.compile(
    r"\b(?:whether|if|unless|suppose|assuming|wrong|incorrect|possible|other|another|not|isn't|nor|neither)\s+"
    r"(?:(?:that|the|an?|my|your|it|is)\s+)*\W*\Z",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!。](?=\s+[^\W\d_]{2}|\s*\Z)|(?:,? (?:because|since|as) )")
_BOXED = re.compile(r"\\boxed\{([^{}]{1,200})\}")
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_LISTED = re.compile(r"\s*[0-9]+[.)]\s+\D")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_CJK_BOUND = re.compile("[到至或和不非]|超过|少于|至少|至多|小于|大于|以上|以下|[百千万亿]")

Reader = Callable[[str], str | None]


def read_answer(sample: Sample, response: ParsedResponse, *, cut_off: bool = False) -> str | None:
    """What the response answers; None where it is nothing, or not clear what. ``cut_off``: it reached its longest
    length. Inside of tags everything counts, as it stands where `grading` reads it, else as the letter or number that
    it means: an option's own text, "four", "约4米", full-width letters."""
    read = _READERS.get(sample.problem_type, _text)
    if response.tagged:
        return response.answer and (read(sample, response.answer) or response.answer)
    tail = _behind_reasoning(response.text, cut_off)
    if not tail:
        return None
    whole = tail if len(tail) <= MAX_ANSWER_CHARS else ""
    tail = tail[-MAX_ANSWER_CHARS:]
    concluded = _concluded(tail, lambda text: read(sample, text))
    if concluded is not None:
        return concluded or None
    return (
        _marked(tail, lambda text: read(sample, text))
        or _last_line(sample, tail, read)
        or (_whole(sample, whole) if whole else None)
    )


def _behind_reasoning(text: str, cut_off: bool) -> str:
    """What stands outside of tags behind the last reasoning; of an ``<answer>`` left open its beginning."""
    parts: list[str] = []
    for tag, content in blocks(text):
        if tag in ("time", "caption", "think") or (tag == "?" and content != "answer"):
            parts = []
        elif tag == "?":
            parts = [] if cut_off else parts[-1:]
        elif tag == "":
            parts.append(content)
    return "\n".join(parts).strip()


def _concluded(text: str, read: Reader) -> str | None:
    """What "the answer is …" says: the last of them where it is final, or ends the text; else that of all, "" where
    they differ."""
    matches = [match for match in _STATEMENT.finditer(text) if not _SUPPOSED.search(text[: match.start()][-60:])]
    if not matches:
        return None
    answers = [_statement(text[match.end() :][:400], read) for match in matches]
    last = text.rstrip().rfind("\n")
    if answers[-1] is None or _FINAL.match(matches[-1][0]) or matches[-1].end() > last:
        return answers[-1]
    return answers[-1] if len({answer for answer in answers if answer is not None}) == 1 else ""


def _statement(text: str, read: Reader) -> str | None:
    line = text.split("\n", 1)[0].strip()
    first = _SENTENCE.split(line, maxsplit=1)[0]
    return None if line[len(first) :].startswith("?") or first.endswith("?") else read(line) or read(first)


def _marked(text: str, read: Reader) -> str | None:
    """The one value that is boxed, or bold in the last line."""
    lines = text.splitlines()
    for pattern, where in ((_BOXED, text), (_BOLD, lines[-1])):
        matches = [
            match for match in pattern.finditer(where) if not _SUPPOSED.search(where[: match.start()][-60:] + " ")
        ]
        answers = {read(match[1]) for match in matches}
        if len(answers) == 1 and (answer := answers.pop()) is not None:
            return answer
    return None


def _last_line(sample: Sample, text: str, read: Callable[[Sample, str], str | None]) -> str | None:
    """The last of several lines, where it is an answer and nothing else."""
    *before, line = text.splitlines()
    if not before or sample.problem_type in ("ocr", "free_form"):
        return None
    if sample.problem_type == "multiple_choice":
        alone = re.fullmatch(r"\W{0,4}(?:option |choice )?([A-Z])\W{0,4}", line.translate(_FULL_WIDTH), re.IGNORECASE)
        return read(sample, line) if alone or _by_text(line, sample.options) else None
    return read(sample, line) if len(line) <= 40 and not _LISTED.match(line) else None


def _whole(sample: Sample, text: str) -> str | None:
    """A text that is an answer, and no more than that."""
    if sample.problem_type == "multiple_choice":
        return _letter(sample, text.split("\n", 1)[0]) or _letter(sample, text)
    if sample.problem_type in ("ocr", "free_form"):
        return text
    numbers = re.findall(r"[0-9][0-9.,/:^]*", text.translate(_FULL_WIDTH))
    return _number(sample, text) if len(numbers) < 2 or (not _LISTED.match(text) and len(text) <= 80) else None


# --- one answer, by problem type: as it stands where `grading` reads it, else what it means


def _letter(sample: Sample, text: str) -> str | None:
    if extract_letter(text, len(sample.options), sample.options) is not None:
        return text
    text = text.translate(_FULL_WIDTH)
    chinese = (
        re.sub(rf"\A\W*[{_CJK}]{{0,6}}\W*(?=[A-Za-z](?![\w]))", "", text) if re.search(f"[{_CJK}]", text) else text
    )
    return extract_letter(chinese, len(sample.options), sample.options) or _by_text(text, sample.options)


def _by_text(text: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text this is, with its letter or without."""
    wanted = _folded(text)
    same = [
        letter
        for letter, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options, strict=False)
        if (plain := _folded(option))
        and wanted in (plain, *(f"{letter.lower()}{mark} {plain}" for mark in ("", ".", ")", ":")))
    ]
    return same[0] if len(same) == 1 else None


def _folded(text: str) -> str:
    return bare(bare(text).rstrip(".。!")).casefold()


def _number(sample: Sample, text: str) -> str | None:
    plain = bare(text).translate(_FULL_WIDTH)
    if re.search(f"[{_CJK}]", plain):
        if _CJK_BOUND.search(plain):
            return None
        plain = re.sub(f"[{_CJK}]+", " ", plain)
    if extract_number(text) is not None:
        return text
    if any(char.isdigit() for char in plain):
        return plain if extract_number(plain) is not None else None
    return _spelled_number(plain)


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_WORDS = {word: number for number, word in enumerate(_SMALL.split())} | {
    word: 10 * number
    for number, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_NOT_ALONE = frozenset(
    [
        "hundred",
        "thousand",
        "million",
        "billion",
        "dozen",
        "half",
        "quarter",
        "point",
        "or",
        "to",
        "than",
        "least",
        "most",
        "not",
        "no",
        "without",
        "except",
        "between",
        "under",
        "over",
        "below",
        "above",
        "third",
        "fourth",
        "fifth",
    ]
)


def _spelled_number(text: str) -> str | None:
    """The one number below a hundred that is written in words: "four", "There are twenty-one chairs."."""
    words = re.findall(r"[a-z]+", text.lower())
    if not words or len(words) > 20 or _NOT_ALONE & set(words):
        return None
    runs = [list(run) for is_number, run in groupby(words, key=_WORDS.__contains__) if is_number]
    if len(runs) != 1:
        return None
    values = [_WORDS[word] for word in runs[0]]
    if values == [1] and words[0] != "one" and "is" not in words[: words.index("one")][-1:]:
        return None  # a pronoun
    tens = len(values) == 2 and values[0] >= 20 and 1 <= values[1] <= 9
    return str(sum(values)) if len(values) == 1 or tens else None


def _text(sample: Sample, text: str) -> str | None:
    return text.strip() or None


_READERS = {"multiple_choice": _letter, "numerical": _number, "regression": _number}
