"""Video-Holmes."""

from __future__ import annotations

from collections.abc import Iterator

from ..scores import ACCURACY
from .benchmark import Benchmark
from .entries import Entry, Question, choice


def _video_holmes(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("video ID"), entry.options("Options")
    yield choice(
        entry,
        [f"videos/{video}.mp4", f"{video}.mp4"],
        identity=f"{video}-{entry.text('Question ID')}",
        question=entry.text("Question"),
        options=options,
        answer=entry.letter("Answer", options),
        kind=entry.text("Question Type"),
    )


VIDEO_HOLMES = Benchmark(
    name="video-holmes",
    title="Video-Holmes",
    asks="clues of 270 short suspense films put together: 1,837 questions of 7 types, 6 options",
    source="arXiv 2505.21374; TencentARC/Video-Holmes",
    hub="TencentARC/Video-Holmes",
    files=(("test_Video-Holmes.json",),),
    read=_video_holmes,
    scores={"accuracy": ACCURACY},
)
