"""Option letters and numbers in what a model answered."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from functools import lru_cache

MAX_ANSWER_CHARS = 10_000
"""A longer answer is graded 0 (in ``strict``)."""

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
    r"[<>≤≥≠]|!=|- *$|\b(?:not|no|never|nor|than|least|most|under|over|below|above|except|between|without|"
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


def bare(text: str) -> str:
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
    text = bare(text[:MAX_ANSWER_CHARS])
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
    r"""The number in an answer: ``3``, ``1,000``, ``about 2.5 s``, ``3/4``, ``2×10^3``, ``\frac{3}{4}``.

    Units are not converted and number words not read. None when there is no number, when it is not finite, when
    it is a bound, a range or one of several ("2 or 3", "less than 5"), or when there are several and the answer
    does not begin with one. LaTeX is read by math-verify.
    """
    if not isinstance(text, str):
        return None
    text = bare(text[:MAX_ANSWER_CHARS]).replace("{,}", ",")
    if "\\" in text:
        text = bare(re.sub(r"\\[,;! ]", "", text).replace("\\%", "%"))
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
        parsed = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
        return float(parsed[0].evalf()) if parsed and not isinstance(parsed[0], str) else None
    except Exception:  # sympy and the parser raise whatever they like; a text that they cannot read is no number
        return None
