"""Questions with options about long videos: LVBench, LongVideoBench and MLVU."""

import re
import string
from collections.abc import Iterator
from pathlib import PurePosixPath

from ...common.answers.responses import parse_spans
from ..scores import ACCURACY, Score, accuracy, kind_part
from .benchmark import Entry, Question
from .public_sets import public_set


def _lvbench(entry: Entry) -> Iterator[Question]:
    """A row is a video with its questions, whose options stand behind the question as ``(A) …`` lines."""
    video, questions = entry.text("key"), entry.data.get("qa")
    if not isinstance(questions, list):
        raise entry.error("qa", "expected a list of questions")
    for number, data in enumerate(questions):
        asked = entry.inner(f"qa.{number}", data)
        text, *parts = re.split(r"\n\s*\(([A-Z])\)\s*", asked.text("question"))
        options = {letter: option.strip() for letter, option in zip(parts[::2], parts[1::2], strict=True)}
        kinds = asked.data.get("question_type")
        kinds = kinds if isinstance(kinds, list) else [asked.text("question_type")]
        spans = parse_spans(asked.maybe("time_reference") or "")
        yield asked.question(
            [f"all_videos/{video}.mp4", f"videos/{video}.mp4", f"{video}.mp4"],
            identity=asked.text("uid"),
            text=text.strip(),
            options=options,
            answer=asked.letter("answer", options),
            kind=" + ".join(sorted(map(str, kinds))),
            groups={"type": entry.maybe("type")},
            evidence=[{"start_s": start, "end_s": end, "caption": "(reference)"} for start, end in spans],
            captioned=False,
        )


LVBENCH = public_set("lvbench", _lvbench, {"accuracy": ACCURACY})


def _longvideobench(entry: Entry) -> Iterator[Question]:
    options = entry.options("candidates")
    place = entry.data.get("correct_choice")
    if not isinstance(place, int) or not 0 <= place < len(options):
        raise entry.error("correct_choice", f"expected the place of one of {len(options)} candidates")
    video = entry.text("video_path")
    yield entry.question(
        [f"videos/{video}", video],
        identity=entry.text("id"),
        text=entry.text("question"),
        options=options,
        answer=string.ascii_uppercase[place],
        kind=entry.text("question_category"),
        groups={"duration": entry.maybe("duration_group"), "topic": entry.maybe("topic_category")},
    )


LONGVIDEOBENCH = public_set("longvideobench", _longvideobench, {"accuracy": ACCURACY})


def _mlvu(entry: Entry) -> Iterator[Question]:
    """Of the files by task (``1_plotQA.json``), whose videos lie in a folder of that name."""
    video, task = entry.text("video"), PurePosixPath(entry.file).stem
    yield entry.question(
        [f"video/{task}/{video}", f"{task}/{video}", video],
        identity=f"{task}-{entry.number}",
        text=entry.text("question"),
        **entry.choice("candidates", "answer", by_text=True),
        kind=entry.text("question_type"),
    )


MLVU = public_set(
    "mlvu",
    _mlvu,
    {
        "m_avg": Score("mean of the accuracies of the tasks with options (the benchmark's M-Avg)", accuracy, kind_part),
        "accuracy": ACCURACY,
    },
)
