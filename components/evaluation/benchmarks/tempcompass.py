"""TempCompass."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...common.answers.grading import MAX_ANSWER_CHARS
from ...common.errors import UserError
from ...common.rows.sample import Sample
from ..item import Item
from ..scores import Score, accuracy, kind_part
from .benchmark import Benchmark
from .entries import Entry, Question, choice, distinct, folded, open_answer

_TEMPCOMPASS_TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")


_TEMPCOMPASS_LINE = re.compile(r"\s*(?:(?:option|sentence|caption|information)\s+)?([A-Z1-9])\s*[:.)]\s*(.+)", re.I)


def _tempcompass(entry: Entry) -> Iterator[Question]:
    task = next((t for t in _TEMPCOMPASS_TASKS if _plain(t) in _plain(entry.file)), None)
    if task is None:
        raise UserError(f"{entry.file}: named for none of the tasks {', '.join(_TEMPCOMPASS_TASKS)}")
    if "question" in entry.data:  # rows, as on the hub
        yield _tempcompass_question(entry, task, entry.text("video_id"), entry.text("dim"), f"{entry.number}")
        return
    for video, dims in entry.data.items():  # one object by video and dimension, as in the repository
        for dim, questions in entry.inner(video, dims).data.items():
            if not isinstance(questions, Sequence) or isinstance(questions, str):
                raise UserError(f"{entry.place}, {video}.{dim}: expected a list of questions")
            for place, question in enumerate(questions, 1):
                one = entry.inner(f"{video}.{dim}[{place}]", question)
                yield _tempcompass_question(one, task, video, dim, f"{dim}-{place}")


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _tempcompass_question(entry: Entry, task: str, video: str, dim: str, place: str) -> Question:
    text = entry.text("question")
    about: dict[str, Any] = {"kind": task, "groups": {"dim": dim}, "identity": f"{_plain(task)}-{video}-{place}"}
    videos = [f"videos/{video}.mp4", f"{video}.mp4"]
    answer = entry.text("answer", "mc_answer") if task == "captioning" else entry.text("answer")
    if task == "yes_no":
        if answer.lower() not in ("yes", "no"):
            raise entry.error("answer", "expected yes or no")
        return open_answer(
            entry, videos, question=text, answer=answer.lower(), rule="yes_no", problem_type="free_form", **about
        )
    if task == "captioning":
        if not re.match(r"[A-D]\.", answer):
            raise entry.error("answer", "expected the letter of an information")
        return open_answer(
            entry, videos, question=text, answer=answer, rule="captioning", problem_type="free_form", **about
        )
    first, *lines = text.splitlines()
    options: dict[str, str] = {}
    heads: dict[str, str] = {}
    for line in lines:
        match = _TEMPCOMPASS_LINE.fullmatch(line.rstrip())
        if match is None:
            raise entry.error("question", f"the line {line[:40]!r} is no option")
        letter = match[1].upper() if match[1].isalpha() else string.ascii_uppercase[int(match[1]) - 1]
        options[letter], heads[letter] = match[2].strip(), folded(line)
    wanted = folded(answer)
    matching = [letter for letter in options if wanted in (heads[letter], folded(options[letter]))]
    letter = matching[0] if matching else entry.letter("answer", options)
    return choice(entry, videos, question=first, options=distinct(options), answer=letter, **about)


def _tempcompass_grade(sample: Sample, answer: str | None) -> float:
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


def _tempcompass_value(*tasks: str) -> Callable[[Item], float | None]:
    return lambda item: accuracy(item) if item.kind in [_plain(task) for task in tasks] else None


TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    asks="action, speed, direction, change and order in 410 clips that come in conflicting pairs; 7,540 questions",
    source="arXiv 2403.00476; llyx97/TempCompass, questions/ and eval_*.py",
    hub="lmms-lab/TempCompass",
    files=(
        tuple(f"{task}.json" for task in _TEMPCOMPASS_TASKS),
        tuple(f"{task}/*.parquet" for task in (*_TEMPCOMPASS_TASKS, "multi_choice")),
    ),
    read=_tempcompass,
    scores={
        "accuracy": Score(
            "mean of the accuracies of the three tasks that rules can grade: multi-choice, yes_no, caption_matching",
            _tempcompass_value("multi-choice", "yes_no", "caption_matching"),
            kind_part,
        ),
        "multi_choice": Score("share of questions with options answered right", _tempcompass_value("multi-choice")),
        "yes_no": Score("share of answers that begin with the right one of yes and no", _tempcompass_value("yes_no")),
        "caption_matching": Score(
            "share of pairs of captions of which the right one is chosen", _tempcompass_value("caption_matching")
        ),
        "captioning_overlap": Score(
            "share of captions that hold more of the words of the true information than of any other (the benchmark "
            "lets GPT-3.5 judge: not comparable)",
            _tempcompass_value("captioning"),
        ),
    },
    traps=(
        "which of the tasks stand behind Video-R1's figure is UNVERIFIED",
        "published yes/no and matching answers that no rule reads go to GPT-3.5; here they are wrong",
    ),
    grade=_tempcompass_grade,
)
