"""MMVU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..scores import Score, accuracy_of_choices, accuracy_of_open
from .benchmark import Benchmark
from .entries import Entry, Question, choice, open_answer


def _mmvu(entry: Entry) -> Iterator[Question]:
    identity, question = entry.text("id"), entry.text("question")
    path = entry.text("video_path", "video")
    path = path.split("/resolve/main/", 1)[-1].removeprefix("./").lstrip("/")
    paths = [path, path.removeprefix("videos/")]
    subject = entry.data.get("metadata", {})
    subject = subject.get("subject") if isinstance(subject, Mapping) else None
    groups = {"subject": str(subject) if subject else None}
    if entry.text("question_type") == "multiple-choice":
        options = entry.options("choices")
        answer = entry.letter("answer", options)
        yield choice(
            entry,
            paths,
            identity=identity,
            question=question,
            options=options,
            answer=answer,
            kind="multiple-choice",
            groups=groups,
        )
    else:
        answer = entry.text("answer")
        yield open_answer(
            entry, paths, identity=identity, question=question, answer=answer, kind="open-ended", groups=groups
        )


MMVU = Benchmark(
    name="mmvu",
    title="MMVU",
    asks="expert questions on videos of 27 subjects: 1,000 in validation, 625 of them with 5 options",
    source="arXiv 2501.12380; yale-nlp/MMVU, data/validation.json",
    hub="yale-nlp/MMVU",
    files=(("validation.json",), ("validation*.parquet",), ("*mmvu*.json", "*MMVU*.json")),
    read=_mmvu,
    scores={
        "accuracy_choice": Score(
            "share of the multiple-choice questions answered right (Video-R1's MMVU)", accuracy_of_choices
        ),
        "accuracy_open": Score(
            "share of the open questions answered right: numbers to 2 decimals, words by ROUGE (the benchmark asks "
            "GPT-4o: not comparable)",
            accuracy_of_open,
        ),
    },
    traps=("the benchmark's own score mixes both kinds, the open ones judged by a language model",),
)
