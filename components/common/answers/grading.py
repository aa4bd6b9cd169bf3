"""Grades of answers by problem type: the accuracy reward and the accuracy of evaluation (Video-R1 §3.2)."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, Literal

from ..rows.sample import ProblemType, Sample
from .values import MAX_ANSWER_CHARS, bare, extract_letter, extract_number

GradingMode = Literal["strict", "paper"]
"""``strict``: ours, for rewards and for evaluation. ``paper``: Video-R1's published rules, to compare with its
figures."""

CORRECT_AT: dict[ProblemType, float] = {
    "multiple_choice": 1.0,
    "numerical": 1.0,
    "ocr": 1.0,
    "free_form": 0.6,
    "regression": 0.95,
}
"""The grade from which an answer counts as correct. 0.6 is Video-R1's threshold for keeping a trace; 0.95 is
a relative error of 5 %, the strictest step of MRA."""


def grade(sample: Sample, answer: str | None, mode: GradingMode = "strict") -> float:
    r"""How good an answer is, in [0, 1], by problem type (the accuracy reward of Video-R1).

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
        scores = _rouge_scorer().score(truth[:MAX_ANSWER_CHARS], answer[:MAX_ANSWER_CHARS])
        return float(sum(score.fmeasure for score in scores.values()) / len(scores))
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
    echo = r"\s+".join(map(re.escape, words))
    return re.sub(echo, " ", answer, flags=re.IGNORECASE)


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
