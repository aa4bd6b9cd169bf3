"""VSI-Bench."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..item import Item
from ..scores import Part, Score, accuracy, accuracy_of_choices, metric_value
from .benchmark import Benchmark
from .entries import Entry, Question, choice, open_answer

VSI_CHOICES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)


VSI_NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")


def _vsi_bench(entry: Entry) -> Iterator[Question]:
    kind = entry.text("question_type")
    scene = entry.text("scene_name")
    videos = [f"{entry.text('dataset')}/{scene}.mp4", f"{scene}.mp4"]
    question, identity = entry.text("question"), entry.text("id")
    if kind in VSI_CHOICES:
        options = entry.options("options")
        answer = entry.letter("ground_truth", options)
        yield choice(entry, videos, identity=identity, question=question, options=options, answer=answer, kind=kind)
    elif kind in VSI_NUMBERS:
        answer = entry.text("ground_truth")
        yield open_answer(
            entry, videos, identity=identity, question=question, answer=answer, kind=kind, problem_type="regression"
        )
    else:
        raise entry.error("question_type", f"expected one of {', '.join((*VSI_CHOICES, *VSI_NUMBERS))}")


def _vsi_value(mra: str) -> Callable[[Item], float | None]:
    return lambda item: accuracy(item) if item.kind in VSI_CHOICES else item.metrics.get(mra)


def _vsi_task(item: Item) -> Part:
    direction = "object_rel_direction"
    kind = str(item.kind)
    return (direction, kind) if kind.startswith(direction) else (kind, "")


def _vsi_half(item: Item) -> Part:
    return ("accuracy" if item.kind in VSI_CHOICES else "mra"), ""


_MRA = "mean over the number questions of the share of θ in 0.5, 0.55 … 0.95 with relative error {} 1 − θ"


VSI_BENCH = Benchmark(
    name="vsi-bench",
    title="VSI-Bench",
    asks="space in 288 indoor tours: 5,130 questions, 6 types with options, 4 with numbers",
    source="arXiv 2412.14171; nyu-visionx/VSI-Bench; lmms-eval tasks/vsibench; Video-R1 src/eval_bench.py",
    hub="nyu-visionx/VSI-Bench",
    files=(("test.jsonl",), ("test-*.parquet", "test.parquet"), ("*vsi*bench*.json", "*vsi*bench*.jsonl")),
    read=_vsi_bench,
    scores={
        "overall": Score(
            "mean over 8 tasks of accuracy or MRA (<=), direction being the mean of easy, medium and hard (the "
            "benchmark's own score, as in lmms-eval)",
            _vsi_value("mra_inclusive"),
            _vsi_task,
        ),
        "overall_video_r1": Score(
            "mean of the mean accuracy and the mean MRA (<), over questions (Video-R1)", _vsi_value("mra"), _vsi_half
        ),
        "accuracy": Score("share of the questions with options answered right", accuracy_of_choices),
        "mra": Score(_MRA.format("<") + " (Video-R1)", metric_value("mra")),
        "mra_inclusive": Score(_MRA.format("<=") + " (lmms-eval)", metric_value("mra_inclusive")),
    },
    traps=("overall and overall_video_r1 differ by several points on the same answers: never compare across them",),
)
