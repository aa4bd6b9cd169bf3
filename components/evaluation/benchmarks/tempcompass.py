"""TempCompass."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...common.answers.values import MAX_ANSWER_CHARS
from ...common.errors import UserError
from ...common.rows.sample import Sample
from ..item import Item
from ..scores import Score, accuracy, kind_part
from .benchmark import Entry, Question, distinct, folded
from .public_sets import public_set

_TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")
_LINE = re.compile(r"\s*(?:(?:option|sentence|caption|information)\s+)?([A-Z1-9])\s*[:.)]\s*(.+)", re.I)


def _tempcompass(entry: Entry) -> Iterator[Question]:
    task = next((t for t in _TASKS if _plain(t) in _plain(entry.file)), None)
    if task is None:
        raise UserError(f"{entry.file}: named for none of the tasks {', '.join(_TASKS)}")
    if "question" in entry.data:  # rows, as on the hub
        yield _question(entry, task, entry.text("video_id"), entry.text("dim"), f"{entry.number}")
        return
    for video, dims in entry.data.items():  # one object by video and dimension, as in the repository
        for dim, questions in entry.inner(video, dims).data.items():
            if not isinstance(questions, Sequence) or isinstance(questions, str):
                raise UserError(f"{entry.place}, {video}.{dim}: expected a list of questions")
            for place, question in enumerate(questions, 1):
                part = entry.inner(f"{video}.{dim}[{place}]", question)
                yield _question(part, task, video, dim, f"{dim}-{place}")


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _question(entry: Entry, task: str, video: str, dim: str, place: str) -> Question:
    text = entry.text("question")
    about: dict[str, Any] = {"kind": task, "groups": {"dim": dim}, "identity": f"{_plain(task)}-{video}-{place}"}
    videos = [f"videos/{video}.mp4", f"{video}.mp4"]
    answer = entry.text("answer", "mc_answer") if task == "captioning" else entry.text("answer")
    if task in ("yes_no", "captioning"):
        if task == "yes_no" and (answer := answer.lower()) not in ("yes", "no"):
            raise entry.error("answer", "expected yes or no")
        if task == "captioning" and not re.match(r"[A-D]\.", answer):
            raise entry.error("answer", "expected the letter of an information")
        return entry.question(videos, text=text, answer=answer, rule=task, problem_type="free_form", **about)
    first, *lines = text.splitlines()
    options: dict[str, str] = {}
    heads: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise entry.error("question", f"the line {line[:40]!r} is no option")
        letter = match[1].upper() if match[1].isalpha() else string.ascii_uppercase[int(match[1]) - 1]
        options[letter], heads[letter] = match[2].strip(), folded(line)
    wanted = folded(answer)
    matching = [letter for letter in options if wanted in (heads[letter], folded(options[letter]))]
    letter = matching[0] if matching else entry.letter("answer", options)
    return entry.question(videos, text=first, options=distinct(options), answer=letter, **about)


def _grade(sample: Sample, answer: str | None) -> float:
    answer = (answer or "")[:MAX_ANSWER_CHARS]
    if sample.metadata["rule"] == "yes_no":
        words = re.findall(r"[a-z]+", answer.lower())
        return float(bool(words) and words[0] == sample.answer and not {"yes", "no"} <= set(words))
    return float(_nearest_information(sample.question, answer) == sample.answer[0])


def _nearest_information(question: str, caption: str) -> str | None:
    """The information of a captioning question whose words the caption holds the most of; None where two tie."""
    words = set(re.findall(r"[a-z0-9]+", caption.lower()))
    shares = {}
    for line in question.splitlines():
        match = re.fullmatch(r"\s*Information ([A-D]):\s*(\{.*\})\s*", line)
        if match is None:
            continue
        try:
            information = ast.literal_eval(match[2])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            information = match[2]
        values = " ".join(map(str, information.values())) if isinstance(information, Mapping) else str(information)
        wanted = set(re.findall(r"[a-z0-9]+", values.lower()))
        shares[match[1]] = len(wanted & words) / len(wanted) if wanted else 0.0
    best = max(shares.values(), default=0.0)
    winners = [letter for letter, share in shares.items() if share == best > 0]
    return winners[0] if len(winners) == 1 else None


def _value(*tasks: str) -> Callable[[Item], float | None]:
    return lambda item: accuracy(item) if item.kind in [_plain(task) for task in tasks] else None


TEMPCOMPASS = public_set(
    "tempcompass",
    _tempcompass,
    {
        "accuracy": Score(
            "mean of the accuracies of the three tasks that rules can grade: multi-choice, yes_no, caption_matching",
            _value("multi-choice", "yes_no", "caption_matching"),
            kind_part,
        ),
        "multi_choice": Score("share of questions with options answered right", _value("multi-choice")),
        "yes_no": Score("share of answers that begin with the right one of yes and no", _value("yes_no")),
        "caption_matching": Score(
            "share of pairs of captions of which the right one is chosen", _value("caption_matching")
        ),
        "captioning_overlap": Score(
            "share of captions that hold more of the words of the true information than of any other (the benchmark "
            "lets GPT-3.5 judge: not comparable)",
            _value("captioning"),
        ),
    },
    _grade,
)
