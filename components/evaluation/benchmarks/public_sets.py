"""The published sets whose rows are read field by field: how each is laid out, and how its scores are defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ...common.answers.spans import parse_spans
from ...common.errors import UserError
from ..item import Item
from ..scores import ACCURACY, Part, Score, accuracy, accuracy_of_choices, accuracy_of_open, kind_part, metric_value
from .benchmark import Benchmark, Entry, Question


def _video_holmes(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("video ID"), entry.options("Options")
    yield entry.question(
        [f"videos/{video}.mp4", f"{video}.mp4"],
        identity=f"{video}-{entry.text('Question ID')}",
        text=entry.text("Question"),
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


def _videomme(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("videoID"), entry.options("options")
    yield entry.question(
        [f"data/{video}.mp4", f"{video}.mp4"],
        identity=entry.text("question_id"),
        text=entry.text("question"),
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


def _mmvu(entry: Entry) -> Iterator[Question]:
    path = entry.text("video_path", "video").split("/resolve/main/", 1)[-1].removeprefix("./").lstrip("/")
    about = entry.data.get("metadata", {})
    subject = about.get("subject") if isinstance(about, Mapping) else None
    choice = entry.text("question_type") == "multiple-choice"
    options = entry.options("choices") if choice else {}
    yield entry.question(
        [path, path.removeprefix("videos/")],
        identity=entry.text("id"),
        text=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options) if choice else entry.text("answer"),
        kind="multiple-choice" if choice else "open-ended",
        groups={"subject": str(subject) if subject else None},
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

_TRACKS = ("Perception", "Comprehension", "Adaptation")


def _videommmu(entry: Entry) -> Iterator[Question]:
    identity, options = entry.text("id"), entry.options("options")
    named = (entry.maybe("track", "category", "subset") or entry.file).lower()
    track = next((track for track in _TRACKS if track.lower() in named), None)
    if track is None:
        raise entry.error("track", f"neither the row nor the file's name says which of {', '.join(_TRACKS)} this is")
    answer = entry.data.get("answer")
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # several spellings of one open answer
        entry = Entry(entry.file, entry.number, {**entry.data, "answer": next(iter(answer), None)})
    if "open" in (entry.maybe("question_type") or ""):
        options = {}
    yield entry.question(
        [f"{identity}.mp4"],
        identity=f"{track.lower()}-{identity}",
        text=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options) if options else entry.text("answer"),
        kind=track,
        groups={"subject": "_".join(identity.split("_")[1:-1]) or None},
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

# -- MVBench: files or folders named for their task ------------------------------------------------------------

MVBENCH_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "moving_count": ("clevrer/video_validation",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "character_order": ("perception/videos",),
    "object_shuffle": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "moving_direction": ("clevrer/video_validation",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/video_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "moving_attribute": ("clevrer/video_validation",),
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "unexpected_action": ("FunQA_test/test",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "action_count": ("perception/videos",),
}
"""Tasks, and where the published archives put their videos (lmms-eval's first); ``_segment``: cut already."""


def _mvbench(entry: Entry) -> Iterator[Question]:
    file = PurePosixPath(entry.file)
    names = [named] if (named := entry.maybe("task_type")) else [file.stem, *file.parts]
    plain = (re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names)
    task = next((name for name in plain if name in MVBENCH_FOLDERS), None)
    if task is None:
        raise UserError(f"{entry.file}: named for none of the 20 tasks ({', '.join(sorted(MVBENCH_FOLDERS))})")
    video, options = entry.text("video"), entry.options("candidates")
    yield entry.question(
        [f"{folder}/{video}" for folder in MVBENCH_FOLDERS[task]],
        identity=f"{task}-{entry.number}",
        text=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options, by_text=True),
        kind=task,
        start_s=entry.seconds("start"),
        end_s=entry.seconds("end"),
    )


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    asks="20 tasks of 200 questions on short videos, 2 to 5 options",
    source="arXiv 2311.17005; OpenGVLab/MVBench; lmms-eval tasks/mvbench",
    hub="OpenGVLab/MVBench",
    files=(tuple(f"{task}.json" for task in MVBENCH_FOLDERS), tuple(f"{task}/*.parquet" for task in MVBENCH_FOLDERS)),
    read=_mvbench,
    scores={
        "accuracy": ACCURACY,
        "accuracy_by_task": Score("mean over the tasks of their accuracies", accuracy, kind_part),
    },
    traps=(
        "lmms-eval leaves empty answers out of the denominator; here they are wrong",
        "episodic_reasoning is published as folders of frames: convert them to videos (3 fps), or they are missing",
        "with whole videos of STAR, STA and TVQA the part between start and end is shown, with *_segment all",
    ),
)

# -- VSI-Bench: choices and numbers, averaged in two ways ------------------------------------------------------

VSI_CHOICES = (
    *("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard"),
    *("object_rel_distance", "route_planning", "obj_appearance_order"),
)
VSI_NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")


def _vsi_bench(entry: Entry) -> Iterator[Question]:
    kind, scene = entry.text("question_type"), entry.text("scene_name")
    if kind not in (*VSI_CHOICES, *VSI_NUMBERS):
        raise entry.error("question_type", f"expected one of {', '.join((*VSI_CHOICES, *VSI_NUMBERS))}")
    choice = kind in VSI_CHOICES
    options = entry.options("options") if choice else {}
    yield entry.question(
        [f"{entry.text('dataset')}/{scene}.mp4", f"{scene}.mp4"],
        identity=entry.text("id"),
        text=entry.text("question"),
        options=options,
        answer=entry.letter("ground_truth", options) if choice else entry.text("ground_truth"),
        kind=kind,
        problem_type="regression",
    )


def _vsi_value(mra: str) -> Callable[[Item], float | None]:
    return lambda item: accuracy(item) if item.kind in VSI_CHOICES else item.metrics.get(mra)


def _vsi_task(item: Item) -> Part:
    direction, kind = "object_rel_direction", str(item.kind)
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

# -- sets that say where in the video the evidence is ----------------------------------------------------------


def _cg_bench(entry: Entry, reasoning: bool = False) -> Iterator[Question]:
    category = entry.text("sub_category")
    if reasoning and not category.endswith("Cognition"):
        return
    options, clues = entry.options("choices"), entry.data.get("clue_intervals")
    if not _is_list(clues) or not all(_is_list(clue) and len(clue) == 2 for clue in clues):
        raise entry.error("clue_intervals", "expected a list of [start, end]")
    yield entry.question(
        [f"{entry.text('video_uid')}.mp4"],
        identity=entry.text("qid"),
        text=entry.text("question"),
        options=options,
        answer=entry.letter("right_answer", options),
        kind=category,
        groups={"domain": entry.maybe("domain")},
        evidence=[{"start_s": start, "end_s": end, "caption": "(clue)"} for start, end in clues],
        captioned=False,
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


CG_BENCH = Benchmark(
    name="cg-bench",
    title="CG-Bench",
    asks="needles in long videos: 12,129 questions on 1,219 videos (mini: 3,000), 5 to 8 options, with clue intervals",
    source="arXiv 2412.12075; CG-Bench/CG-Bench, run/utils.py",
    hub="CG-Bench/CG-Bench",
    files=(("cgbench.json",), ("cgbench_mini.json",)),
    read=_cg_bench,
    scores={
        "accuracy": ACCURACY,
        "clue_iou": Score(
            "mean IoU of the union of clue intervals with the union of the first five segments that the response "
            "names (CG-Bench's mIoU asks for the intervals in a prompt of its own: not comparable)",
            metric_value("clue_iou"),
        ),
    },
    traps=(
        "published accuracies are with 32 to 128 frames, some with subtitles; clue accuracy shows only the clues",
        "a clue's mIoU compares unions of intervals, the papers' grounding mIoU takes the best span per truth",
    ),
)
CG_BENCH_REASONING = replace(
    CG_BENCH,
    name="cg-bench-reasoning",
    title="CG-Bench-Reasoning",
    asks="the questions of CG-Bench whose sub_category ends in Cognition",
    source="arXiv 2510.23473 (Video-Thinker), which does not say which questions; CG-Bench/CG-Bench",
    read=partial(_cg_bench, reasoning=True),
    traps=("the choice of questions is inferred, not published", *CG_BENCH.traps),
)

_VRBENCH_STEP = re.compile(r"\[\s*([0-9:.]+)\s*-+>\s*([0-9:.]+)\s*\]")


def _vrbench(entry: Entry, summary: bool = False) -> Iterator[Question]:
    video, questions = entry.text("video_id"), entry.data.get("mcq")
    if not isinstance(questions, Mapping) or not questions:
        raise entry.error("mcq", "expected an object of questions")
    places = [path] if (path := entry.maybe("video_path")) else []
    before = f"Summary of the video: {entry.text('video_summary')}\n" if summary else ""
    for key, value in questions.items():
        one = entry.inner(f"mcq.{key}", value)
        options = one.options("options")
        yield one.question(
            [place.removeprefix("./").lstrip("/") for place in (*places, f"{video}.mp4")],
            identity=f"{video}-{key}",
            text=before + one.text("question"),
            options=options,
            answer=one.letter("answer", options),
            kind=one.maybe("reasoning_type"),
            evidence=_vrbench_steps(one),
        )


def _vrbench_steps(entry: Entry) -> list[dict[str, Any]]:
    """The reasoning steps that name their time; some do not, and some name an impossible one."""
    steps, evidence = entry.data.get("reasoning_process"), []
    for step in map(str, steps.values() if isinstance(steps, Mapping) else ()):
        match, caption = _VRBENCH_STEP.search(step), _VRBENCH_STEP.sub("", step).strip(" .")
        spans = parse_spans(f"{match[1]}-{match[2]}") if match else []
        if spans and caption:
            evidence.append({"start_s": spans[0][0], "end_s": spans[0][1], "caption": caption})
    return evidence


VRBENCH = Benchmark(
    name="vrbench",
    title="VRBench",
    asks="several steps of reasoning over long narrative videos: 4 options, with timed reasoning steps",
    source="arXiv 2506.10857; OpenGVLab/VRBench",
    hub="OpenGVLab/VRBench",
    files=(("VRBench_eval.jsonl",), ("VRBench*.jsonl",), ("vrbench*.jsonl",)),
    read=_vrbench,
    scores={"accuracy": ACCURACY, "miou": Score("see grounding in README.md", metric_value("miou"))},
    traps=(
        "with the video's summary in the prompt (vrbench-summary) a model need not see the video: never mix",
        "open-ended and process ratings by a language model are not computed here",
    ),
)
VRBENCH_SUMMARY = replace(
    VRBENCH,
    name="vrbench-summary",
    title="VRBench with the summary",
    asks="VRBench with the published summary of the video before the question",
    read=partial(_vrbench, summary=True),
)
