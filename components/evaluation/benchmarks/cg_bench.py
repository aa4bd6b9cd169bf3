"""CG-Bench."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ..scores import ACCURACY, Score, metric_value
from .benchmark import Benchmark
from .entries import Entry, Question, choice


def _cg_bench(entry: Entry, reasoning: bool = False) -> Iterator[Question]:
    category = entry.text("sub_category")
    if reasoning and not category.endswith("Cognition"):
        return
    video, options = entry.text("video_uid"), entry.options("choices")
    clues = entry.data.get("clue_intervals")
    if not isinstance(clues, Sequence) or isinstance(clues, str):
        raise entry.error("clue_intervals", "expected a list of [start, end]")
    evidence = []
    for clue in clues:
        if not isinstance(clue, Sequence) or isinstance(clue, str) or len(clue) != 2:
            raise entry.error("clue_intervals", "expected a list of [start, end]")
        evidence.append({"start_s": clue[0], "end_s": clue[1], "caption": "(clue)"})
    yield choice(
        entry,
        [f"{video}.mp4"],
        identity=entry.text("qid"),
        question=entry.text("question"),
        options=options,
        answer=entry.letter("right_answer", options),
        kind=category,
        groups={"domain": entry.maybe("domain")},
        evidence=evidence,
        captioned=False,
    )


_CG_SCORES = {
    "accuracy": ACCURACY,
    "clue_iou": Score(
        "mean IoU of the union of clue intervals with the union of the first five segments that the response "
        "names (CG-Bench's mIoU asks for the intervals in a prompt of its own: not comparable)",
        metric_value("clue_iou"),
    ),
}


_CG_TRAPS = (
    "published accuracies are with 32 to 128 frames, some with subtitles; clue accuracy shows only the clues",
    "a clue's mIoU compares unions of intervals, the papers' grounding mIoU takes the best span per truth",
)


CG_BENCH = Benchmark(
    name="cg-bench",
    title="CG-Bench",
    asks="needles in long videos: 12,129 questions on 1,219 videos (mini: 3,000), 5 to 8 options, with clue intervals",
    source="arXiv 2412.12075; CG-Bench/CG-Bench, run/utils.py",
    hub="CG-Bench/CG-Bench",
    files=(("cgbench.json",), ("cgbench_mini.json",)),
    read=_cg_bench,
    scores=_CG_SCORES,
    traps=_CG_TRAPS,
)


CG_BENCH_REASONING = Benchmark(
    name="cg-bench-reasoning",
    title="CG-Bench-Reasoning",
    asks="the questions of CG-Bench whose sub_category ends in Cognition",
    source="arXiv 2510.23473 (Video-Thinker), which does not say which questions; CG-Bench/CG-Bench",
    hub="CG-Bench/CG-Bench",
    files=CG_BENCH.files,
    read=partial(_cg_bench, reasoning=True),
    scores=_CG_SCORES,
    traps=("the choice of questions is inferred, not published", *_CG_TRAPS),
)
