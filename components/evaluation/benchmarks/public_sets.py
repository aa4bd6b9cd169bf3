"""The published sets: how rows of each are read, and how its scores are defined; the rest: ``public_sets.yaml``."""

import ast
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import Field

from ...common.answers.grading import MAX_ANSWER_CHARS
from ...common.answers.responses import parse_spans
from ...common.config import Section
from ...common.errors import UserError
from ...common.rows.sample import Sample
from ..item import Item
from ..metrics import Rule
from ..scores import ACCURACY, Part, Score, accuracy, accuracy_of_choices, accuracy_of_open, kind_part, metric_value
from .benchmark import Benchmark, Entry, Question, Reader, distinct, folded


class PublicSet(Section):
    """What ``public_sets.yaml`` says of a set, as `Benchmark` has it."""

    title: str
    asks: str
    source: str
    hub: str
    files: tuple[tuple[str, ...], ...] = ()
    traps: tuple[str, ...] = ()
    folders: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of MVBench: where the published archives put the videos of each task."""


@cache
def _described() -> Mapping[str, PublicSet]:
    described = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    return {name: PublicSet.load(fields, f"public_sets.yaml, {name}") for name, fields in described.items()}


def public_set(name: str, read: Reader, scores: Mapping[str, Score], grade: Rule | None = None) -> Benchmark:
    """A set that ``public_sets.yaml`` describes, with the reader of its rows and its scores."""
    described = dict(_described()[name])
    folders = described.pop("folders")
    if folders:
        described["files"] = (tuple(f"{task}.json" for task in folders), tuple(f"{task}/*.parquet" for task in folders))
    return Benchmark(name=name, read=read, scores=scores, grade=grade, **described)


def _video_holmes(entry: Entry) -> Iterator[Question]:
    video = entry.text("video ID")
    yield entry.question(
        [f"videos/{video}.mp4", f"{video}.mp4"],
        identity=f"{video}-{entry.text('Question ID')}",
        text=entry.text("Question"),
        **entry.choice("Options", "Answer"),
        kind=entry.text("Question Type"),
    )


VIDEO_HOLMES = public_set("video-holmes", _video_holmes, {"accuracy": ACCURACY})


def _videomme(entry: Entry) -> Iterator[Question]:
    video = entry.text("videoID")
    yield entry.question(
        [f"data/{video}.mp4", f"{video}.mp4"],
        identity=entry.text("question_id"),
        text=entry.text("question"),
        **entry.choice("options", "answer"),
        kind=entry.text("duration"),
        groups={name: entry.maybe(name) for name in ("task_type", "domain", "sub_category")},
    )


VIDEOMME = public_set("videomme", _videomme, {"accuracy": ACCURACY})


def _mmvu(entry: Entry) -> Iterator[Question]:
    path = entry.text("video_path", "video").split("/resolve/main/", 1)[-1].removeprefix("./").lstrip("/")
    about = entry.data.get("metadata", {})
    subject = about.get("subject") if isinstance(about, Mapping) else None
    choice = entry.text("question_type") == "multiple-choice"
    yield entry.question(
        [path, path.removeprefix("videos/")],
        identity=entry.text("id"),
        text=entry.text("question"),
        **(entry.choice("choices", "answer") if choice else {"answer": entry.text("answer")}),
        kind="multiple-choice" if choice else "open-ended",
        groups={"subject": str(subject) if subject else None},
    )


MMVU = public_set(
    "mmvu",
    _mmvu,
    {
        "accuracy_choice": Score(
            "share of the multiple-choice questions answered right (Video-R1's MMVU)", accuracy_of_choices
        ),
        "accuracy_open": Score(
            "share of the open questions answered right: numbers to 2 decimals, words by ROUGE (the benchmark asks "
            "GPT-4o: not comparable)",
            accuracy_of_open,
        ),
    },
)

_TRACKS = ("Perception", "Comprehension", "Adaptation")


def _videommmu(entry: Entry) -> Iterator[Question]:
    identity = entry.text("id")
    named = (entry.maybe("track", "category", "subset") or entry.file).lower()
    track = next((track for track in _TRACKS if track.lower() in named), None)
    if track is None:
        raise entry.error("track", f"neither the row nor the file's name says which of {', '.join(_TRACKS)} this is")
    answer = entry.data.get("answer")
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # several spellings of one open answer
        entry = Entry(entry.file, entry.number, {**entry.data, "answer": next(iter(answer), None)})
    choice = entry.options("options") and "open" not in (entry.maybe("question_type") or "")
    yield entry.question(
        [f"{identity}.mp4"],
        identity=f"{track.lower()}-{identity}",
        text=entry.text("question"),
        **(entry.choice("options", "answer") if choice else {"answer": entry.text("answer")}),
        kind=track,
        groups={"subject": "_".join(identity.split("_")[1:-1]) or None},
    )


VIDEOMMMU = public_set("videommmu", _videommmu, {"accuracy": ACCURACY})

# -- MVBench: files or folders named for their task ------------------------------------------------------------

_FOLDERS = _described()["mvbench"].folders


def _mvbench(entry: Entry) -> Iterator[Question]:
    file = PurePosixPath(entry.file)
    names = [named] if (named := entry.maybe("task_type")) else [file.stem, *file.parts]
    plain = (re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names)
    task = next((name for name in plain if name in _FOLDERS), None)
    if task is None:
        raise UserError(f"{entry.file}: named for none of the 20 tasks ({', '.join(sorted(_FOLDERS))})")
    video = entry.text("video")
    yield entry.question(
        [f"{folder}/{video}" for folder in _FOLDERS[task]],
        identity=f"{task}-{entry.number}",
        text=entry.text("question"),
        **entry.choice("candidates", "answer", by_text=True),
        kind=task,
        start_s=entry.seconds("start"),
        end_s=entry.seconds("end"),
    )


MVBENCH = public_set(
    "mvbench",
    _mvbench,
    {
        "accuracy": ACCURACY,
        "accuracy_by_task": Score("mean over the tasks of their accuracies", accuracy, kind_part),
    },
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
    yield entry.question(
        [f"{entry.text('dataset')}/{scene}.mp4", f"{scene}.mp4"],
        identity=entry.text("id"),
        text=entry.text("question"),
        **(entry.choice("options", "ground_truth") if choice else {"answer": entry.text("ground_truth")}),
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

VSI_BENCH = public_set(
    "vsi-bench",
    _vsi_bench,
    {
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
)

# -- sets that say where in the video the evidence is ----------------------------------------------------------


def _cg_bench(entry: Entry, reasoning: bool = False) -> Iterator[Question]:
    category = entry.text("sub_category")
    if reasoning and not category.endswith("Cognition"):
        return
    clues: Any = entry.data.get("clue_intervals")
    if not _is_list(clues) or not all(_is_list(clue) and len(clue) == 2 for clue in clues):
        raise entry.error("clue_intervals", "expected a list of [start, end]")
    yield entry.question(
        [f"{entry.text('video_uid')}.mp4"],
        identity=entry.text("qid"),
        text=entry.text("question"),
        **entry.choice("choices", "right_answer"),
        kind=category,
        groups={"domain": entry.maybe("domain")},
        evidence=[{"start_s": start, "end_s": end, "caption": "(clue)"} for start, end in clues],
        captioned=False,
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


CG_BENCH = public_set(
    "cg-bench",
    _cg_bench,
    {
        "accuracy": ACCURACY,
        "clue_iou": Score(
            "mean IoU of the union of clue intervals with the union of the first five segments that the response "
            "names (CG-Bench's mIoU asks for the intervals in a prompt of its own: not comparable)",
            metric_value("clue_iou"),
        ),
    },
)
CG_BENCH_REASONING = public_set("cg-bench-reasoning", partial(_cg_bench, reasoning=True), CG_BENCH.scores)

_VRBENCH_STEP = re.compile(r"\[\s*([0-9:.]+)\s*-+>\s*([0-9:.]+)\s*\]")


def _vrbench(entry: Entry, summary: bool = False) -> Iterator[Question]:
    video, questions = entry.text("video_id"), entry.data.get("mcq")
    if not isinstance(questions, Mapping) or not questions:
        raise entry.error("mcq", "expected an object of questions")
    places = [path] if (path := entry.maybe("video_path")) else []
    before = f"Summary of the video: {entry.text('video_summary')}\n" if summary else ""
    for key, value in questions.items():
        one = entry.inner(f"mcq.{key}", value)
        yield one.question(
            [place.removeprefix("./").lstrip("/") for place in (*places, f"{video}.mp4")],
            identity=f"{video}-{key}",
            text=before + one.text("question"),
            **one.choice("options", "answer"),
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


VRBENCH = public_set(
    "vrbench", _vrbench, {"accuracy": ACCURACY, "miou": Score("see grounding in README.md", metric_value("miou"))}
)
VRBENCH_SUMMARY = public_set("vrbench-summary", partial(_vrbench, summary=True), VRBENCH.scores)


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
