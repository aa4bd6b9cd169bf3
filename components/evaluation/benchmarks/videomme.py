"""Video-MME."""

from __future__ import annotations

from collections.abc import Iterator

from ..scores import ACCURACY
from .benchmark import Benchmark
from .entries import Entry, Question, choice


def _videomme(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("videoID"), entry.options("options")
    yield choice(
        entry,
        [f"data/{video}.mp4", f"{video}.mp4"],
        identity=entry.text("question_id"),
        question=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options),
        kind=entry.text("duration"),
        groups={name: entry.maybe(name) for name in ("task_type", "domain", "sub_category")},
    )


VIDEOMME = Benchmark(
    name="videomme",
    title="VideoMME",
    asks="900 videos from 11 seconds to an hour: 2,700 questions with 4 options, by length, domain and task",
    source="arXiv 2405.21075; lmms-lab/Video-MME",
    hub="lmms-lab/Video-MME",
    files=(("test-*.parquet",), ("*videomme*.json", "*Video-MME*.json", "*videomme*.jsonl", "*Video-MME*.jsonl")),
    read=_videomme,
    scores={"accuracy": ACCURACY},
    traps=("subtitles are not shown; published figures come with and without them",),
)
