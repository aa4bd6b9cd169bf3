"""Letters and numbers in answers, and grades by problem type: accuracy in rewards and evaluation (Video-R1 §3.2)."""

import logging
import math
import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ..rows.sample import ProblemType, Sample

GradingMode = Literal["strict", "paper"]
"""``strict``: ours, for rewards and evaluation. ``paper``: Video-R1's published rules, to compare with its figures."""

CORRECT_AT: dict[ProblemType, float] = {
    "multiple_choice": 1.0, "numerical": 1.0, "ocr": 1.0, "free_form": 0.6, "regression": 0.95,
}  # fmt: skip
"""The grade from which an answer counts as correct. 0.6 is Video-R1's threshold for keeping a trace; 0.95 is a relative
error of 5 %, the strictest step of MRA."""

MAX_ANSWER_CHARS = 10_000  # a longer answer is graded 0 (in ``strict``)

# --- grades


def grade(sample: Sample, answer: str | None, mode: GradingMode = "strict") -> float:
    r"""How good an answer is, in [0, 1], by problem type (the accuracy reward of Video-R1).

    multiple_choice: the right letter; numerical: equal at two decimals; ocr: 1 − word error rate; free_form: mean of
    ROUGE-1, ROUGE-2 and ROUGE-L F; regression: 1 − relative error. It never raises. ``strict`` reads an answer as a
    person would (spaces, case, wrapping such as ``\boxed{3}`` and 1,000 do not matter), and gives nothing for what
    decides nothing: several answers, a range, a repeated question, more than `MAX_ANSWER_CHARS`. ``paper`` is what
    Video-R1's code does (``grpo.py``): the letter alone, numbers by Python's ``float`` and with a decimal point where
    the truth has one."""
    if not isinstance(answer, str):
        return 0.0
    if mode == "paper":
        return _grade_as_published(sample, answer)
    if len(answer) > MAX_ANSWER_CHARS:
        return 0.0
    answer = bare(_without_question(answer, sample.question))
    if not answer:
        return 0.0
    if sample.problem_type == "multiple_choice":
        letter = extract_letter(answer, len(sample.options), sample.options)
        return float(letter == sample.answer.strip().upper())
    if sample.problem_type == "ocr":
        return max(0.0, 1.0 - word_error_rate(answer.lower(), bare(sample.answer).lower()))
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


def _grade_as_published(sample: Sample, answer: str) -> float:
    answer, truth = answer.strip(), sample.answer.strip()
    if sample.problem_type == "multiple_choice":
        return float(answer == truth)
    if sample.problem_type == "ocr":
        return min(max(1.0 - word_error_rate(answer, truth), 0.0), 1.0)
    if sample.problem_type == "free_form":
        return _mean_rouge_f(answer, truth)
    try:
        predicted, true = float(answer.replace(",", "")), float(truth.replace(",", ""))
        if sample.problem_type == "regression":
            return 1.0 - min(1.0, max(0.0, (abs(predicted - true) + 1e-9) / (abs(true) + 1e-9)))
        pointed = [any(mark in text for mark in ".,") for text in (answer, truth)]
        return float(pointed[0] == pointed[1] and round(predicted, 2) == round(true, 2))
    except (ValueError, OverflowError):  # not a number; an infinity cannot be rounded
        return 0.0


def _without_question(answer: str, question: str) -> str:
    """What is left of an answer when it repeats the question: nothing, where it does no more than that."""
    words = question.split()
    if len(words) < 3 or words[0].lower() not in answer.lower():
        return answer
    return re.sub(r"\s+".join(map(re.escape, words)), " ", answer, flags=re.IGNORECASE)


def _relative_error(predicted: float, truth: float) -> float:
    if predicted == truth:
        return 0.0
    return abs(predicted - truth) / abs(truth) if truth else math.inf


def mean_relative_accuracy(
    predicted: float | str | None, truth: float | str | None, *, inclusive: bool = False
) -> float:
    """MRA of VSI-Bench: the share of θ in 0.5, 0.55 … 0.95 for which the relative error is below 1 − θ. ``inclusive``
    compares with ``<=`` (lmms-eval) instead of ``<`` (Video-R1). A text counts as the number in it."""
    predicted, truth = (extract_number(x) if isinstance(x, str) else x for x in (predicted, truth))
    if predicted is None or truth is None or not (math.isfinite(predicted) and math.isfinite(truth)):
        return 0.0
    # Rounded, so that 10 against 9.5 (an error of 0.05 and some rounding) is on the threshold, not beside it.
    error = round(_relative_error(predicted, truth), 12)
    limits = [step / 20 for step in range(1, 11)]
    return sum(error < limit or (inclusive and error == limit) for limit in limits) / len(limits)


def published_mra(answer: str | None, truth: str) -> float:
    """MRA as Video-R1's evaluation (``src/eval_bench.py``) computes it: `float` of the whole answer, errors compared in
    single precision."""
    try:
        predicted, true = (np.float32(text.replace(",", "")) for text in (answer or "", truth))
    except (ValueError, OverflowError):
        return 0.0
    with np.errstate(all="ignore"):
        error = np.abs(predicted - true) / (np.abs(true) + np.float32(1e-8))
    limits = np.float32(1) - np.arange(0.5, 0.975, 0.05).astype(np.float32)
    return float((error < limits).mean())


def word_error_rate(predicted: str, truth: str) -> float:
    """Word edits that turn ``truth`` into ``predicted``, per word of ``truth``; above 1 when it is longer."""
    import jiwer

    if not truth.split():
        return 0.0 if not predicted.split() else math.inf
    return float(jiwer.wer(" ".join(truth.split()), " ".join(predicted.split())))


def rouge_f(predicted: str, truth: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L F (stemmed; only the first `MAX_ANSWER_CHARS` are compared). A truth of one
    word has no bigrams: ROUGE-2 is left out. One without a-z and 0-9, which is all that ROUGE knows, is compared as it
    stands."""
    words = len(re.findall(r"[a-z0-9]+", truth.lower()))
    return _mean_rouge_f(predicted, truth, bigrams=words > 1) if words else float(predicted.strip() == truth.strip())


def _mean_rouge_f(predicted: str, truth: str, bigrams: bool = True) -> float:
    scores = _rouge_scorer().score(truth[:MAX_ANSWER_CHARS], predicted[:MAX_ANSWER_CHARS])
    counted = [score.fmeasure for name, score in scores.items() if bigrams or name != "rouge2"]
    return float(sum(counted) / len(counted))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # 1.5 s to import: only where free text is graded

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


# --- letters and numbers

# The lead-in may name the kind of answer; "option A is …" is then no article.
_LETTER = re.compile(
    r"[^\w]{0,8}(?:(?:so|i (?:choose|pick|think|would say)|it is|it's)[\s:,]{1,2})?"
    r"(?:(?:the |my )?(?:(?:correct|final|best|right) )?(?:answer|(option|choice|letter)) ?(?:is)? ?:? ?){0,2}"
    r"[^\w]{0,8}([A-Z])(?![\w'’])",
    re.IGNORECASE,
)
_OTHER_LETTER = re.compile(r"(?<!\w)(\w{0,10})[^\w]{0,4}(?<![\w'’])([A-Z])(?![\w'’])(?= ?(.?))", re.IGNORECASE)
_IS_RIGHT = re.compile(r" is (?:the )?(?:correct|right|best|final|answer)", re.IGNORECASE)

_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40})"
_NUMBER = re.compile(
    rf"(?<![\w.,:/^'])(?:(?P<minus>minus|negative) )?(?P<sign>[-+−])?(?P<digits>{_DIGITS})"
    r"(?:[eE](?P<e>[-+]?[0-9]{1,3})| ?[×x*·] ?10 ?(?:\^|\*\*) ?[({]?(?P<power>[-+−]?[0-9]{1,3})[)}]?"
    r"|/(?P<over>[0-9]{1,15}))?(?!_|[0-9]|[:/,.^'][0-9]|[×xX*][0-9])",
    re.IGNORECASE,
)
# In front of a number: a bound, a range or a denial, not a value. A lone dash is a sign or a bullet.
_NOT_A_VALUE = re.compile(
    r"[<>≤≥≠]|!=|- *$|\b(?:not|no|never|nor|than|least|most|under|over|below|above|except|between|without|"
    r"isn't|wasn't|aren't)\b|超过|少于|不足|至少|至多|小于|大于|不是",
    re.IGNORECASE,
)
# Between two numbers: they are alternatives, a range, a list or a sum, so that neither is the answer.
_SEVERAL = re.compile(
    r"\A ?(?:[^\W\d_]{1,12}[.²³]? ?){0,2}"
    r"(?:\(?(?:[,;/|&~+*×÷=–—−'-]|\.\.+|\b(?:or|and|to|vs|versus|through|till|until)\b))?"
    r"[^\w.:(]{0,6}(?:about |maybe |perhaps |possibly )?\Z",
    re.IGNORECASE,
)
# Behind a number: what makes it another one, a bound or (where no space parts words) a range.
_SCALE = re.compile(
    r"\A ?(?:hundred|thousand|million|billion|trillion|dozen|k\b|[百千万亿]|[^\W\d_]{0,4}(?:以上|以下)"
    r"|[^\W\d_]{0,4} ?(?:[到至或和]|から) ?第?[0-9])",
    re.IGNORECASE,
)
# What is handed to math-verify: nothing that could grow (one power at most, of two digits).
_LATEX = re.compile(
    r"\A[-+]?(?:[0-9]{1,12}+(?:\.[0-9]{1,12}+)?(?![0-9])|\\[dt]?frac|\\sqrt|\\times|\\cdot|\\pi|[{}() +*/-]){1,32}+"
    r"(?:\^(?:[0-9]|\{-?[0-9]{1,2}\}))?\Z"
)

_WRAPPERS = (
    ("<answer>", "</answer>"), ("\\boxed{", "}"), ("\\text{", "}"), ("\\mathrm{", "}"), ("\\(", "\\)"), ("\\[", "\\]"),
    *((mark, mark) for mark in ("**", "*", "__", "_", "`", '"', "'", "$")), *zip("([{“‘「", ")]}”’」", strict=True),
)  # fmt: skip


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
    """The option letter that an answer begins with: ``A``, ``a``, ``A.``, ``(A)``, ``B) left``, ``Answer: C``. None
    when there is none, when it is not one of the first ``num_options``, or when another option's letter follows: who
    names several has chosen none; a letter inside the text of the chosen option ("vitamin C") is no second answer."""
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

    Units are not converted and number words not read. None when there is no number, or none that is finite; when it is
    a bound, a range or one of several ("2 or 3", "less than 5"); and when there are several and the answer does not
    begin with one. LaTeX is read by math-verify."""
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
    over, exponent = float(first["over"] or 1), int((first["e"] or first["power"] or "0").replace("−", "-"))
    if over == 0:
        return None
    value = float(first["digits"].replace(",", "")) / over
    value = float(f"{value!r}e{exponent}") if exponent else value
    if (first["sign"] in ("-", "−")) != bool(first["minus"]):
        value = -value
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
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)  # it warns that no alarm is set
    from math_verify import LatexExtractionConfig, parse

    try:
        # No timeout: its alarm works in the main thread only, and `_LATEX` admits nothing that takes long.
        parsed = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
        return float(parsed[0].evalf()) if parsed and not isinstance(parsed[0], str) else None
    except Exception:  # sympy and the parser raise whatever they like; a text that they cannot read is no number
        return None
