"""VRBench."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ...common.answers import responses as spans_module
from ..scores import ACCURACY, Score, metric_value
from .benchmark import Benchmark
from .entries import Entry, Question, choice

_VRBENCH_STEP = re.compile(r"\[\s*([0-9:.]+)\s*-+>\s*([0-9:.]+)\s*\]")


def _vrbench(entry: Entry, summary: bool = False) -> Iterator[Question]:
    video = entry.text("video_id")
    asked = entry.data.get("mcq")
    if not isinstance(asked, Mapping) or not asked:
        raise entry.error("mcq", "expected an object of questions")
    places = [entry.text("video_path"), f"{video}.mp4"] if entry.maybe("video_path") else [f"{video}.mp4"]
    for key, value in asked.items():
        one = entry.inner(f"mcq.{key}", value)
        options = one.options("options")
        question = one.text("question")
        yield choice(
            one,
            [place.removeprefix("./").lstrip("/") for place in places],
            identity=f"{video}-{key}",
            question=f"Summary of the video: {entry.text('video_summary')}\n{question}" if summary else question,
            options=options,
            answer=one.letter("answer", options),
            kind=one.maybe("reasoning_type"),
            evidence=_vrbench_steps(one),
        )


def _vrbench_steps(entry: Entry) -> list[dict[str, Any]]:
    """The reasoning steps that name their time; some do not, and some name an impossible one."""
    steps = entry.data.get("reasoning_process")
    evidence = []
    for step in steps.values() if isinstance(steps, Mapping) else ():
        match = _VRBENCH_STEP.search(str(step))
        spans = spans_module.parse_spans(f"{match[1]}-{match[2]}") if match else []
        caption = _VRBENCH_STEP.sub("", str(step)).strip(" .")
        if spans and caption:
            evidence.append({"start_s": spans[0][0], "end_s": spans[0][1], "caption": caption})
    return evidence


_VRBENCH_TRAP = "with the video's summary in the prompt (vrbench-summary) a model need not see the video: never mix"


VRBENCH = Benchmark(
    name="vrbench",
    title="VRBench",
    asks="several steps of reasoning over long narrative videos: 4 options, with timed reasoning steps",
    source="arXiv 2506.10857; OpenGVLab/VRBench",
    hub="OpenGVLab/VRBench",
    files=(("VRBench_eval.jsonl",), ("VRBench*.jsonl",), ("vrbench*.jsonl",)),
    read=_vrbench,
    scores={"accuracy": ACCURACY, "miou": Score("see grounding in README.md", metric_value("miou"))},
    traps=(_VRBENCH_TRAP, "open-ended and process ratings by a language model are not computed here"),
)


VRBENCH_SUMMARY = Benchmark(
    name="vrbench-summary",
    title="VRBench with the summary",
    asks="VRBench with the published summary of the video before the question",
    source=VRBENCH.source,
    hub="OpenGVLab/VRBench",
    files=VRBENCH.files,
    read=partial(_vrbench, summary=True),
    scores=VRBENCH.scores,
    traps=VRBENCH.traps,
)
