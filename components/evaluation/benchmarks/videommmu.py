"""Video-MMMU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..scores import ACCURACY
from .benchmark import Benchmark
from .entries import Entry, Question, choice, open_answer

_TRACKS = ("Perception", "Comprehension", "Adaptation")


def _videommmu(entry: Entry) -> Iterator[Question]:
    identity, options = entry.text("id"), entry.options("options")
    track = entry.maybe("track", "category", "subset")
    track = next((t for t in _TRACKS if t.lower() in (track or entry.file).lower()), None)
    if track is None:
        raise entry.error("track", f"neither the row nor the file's name says which of {', '.join(_TRACKS)} this is")
    parts = identity.split("_")
    groups = {"subject": "_".join(parts[1:-1]) or None}
    videos = [f"{identity}.mp4"]
    name = f"{track.lower()}-{identity}"
    answer = entry.data.get("answer")
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # several spellings of one open answer
        entry = Entry(entry.file, entry.number, {**entry.data, "answer": next(iter(answer), None)})
    if options and "open" not in (entry.maybe("question_type") or ""):
        letter = entry.letter("answer", options)
        question = entry.text("question")
        yield choice(
            entry, videos, identity=name, question=question, options=options, answer=letter, kind=track, groups=groups
        )
        return
    yield open_answer(
        entry,
        videos,
        identity=name,
        question=entry.text("question"),
        answer=entry.text("answer"),
        kind=track,
        groups=groups,
    )


VIDEOMMMU = Benchmark(
    name="videommmu",
    title="VideoMMMU",
    asks="learning from 300 lectures: 900 questions in the tracks perception, comprehension and adaptation",
    source="arXiv 2501.13826; lmms-lab/VideoMMMU, lmms-eval tasks/videommmu",
    hub="lmms-lab/VideoMMMU",
    files=(
        tuple(f"{t}{end}" for t in _TRACKS for end in ("/*.parquet", ".parquet", ".jsonl", ".json")),
        ("*videommmu*.json", "*VideoMMMU*.json", "*videommmu*.jsonl", "*VideoMMMU*.jsonl"),
    ),
    read=_videommmu,
    scores={"accuracy": ACCURACY},
    traps=(
        "open questions: ours compares numbers to 2 decimals and words by ROUGE; lmms-eval looks whether the truth "
        "occurs in the response",
        "knowledge gain is (after − before) / (1 − before) of the adaptation track, before being without the lecture: "
        "--reliance, then `conditions.blind.by_kind`",
    ),
)
