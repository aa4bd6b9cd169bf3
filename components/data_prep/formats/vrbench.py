"""Rows of VRBench."""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...common.answers.spans import format_span, parse_spans
from ...common.rows.sample import Sample
from .fields import _WRONG, _BadRowError, plain_answer, plain_options

_STEP = re.compile(r"\s*\[([0-9:.]+)\s*->\s*([0-9:.]+)\]\s*\.?\s*$")


def _read_vrbench(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any] | Exception]:
    for name, question in row["mcq"].items():
        try:
            yield _vrbench_question(row, name, question)
        except _WRONG as error:
            yield _BadRowError(f"{name}: {error if isinstance(error, ValueError) else repr(error)}")


def _vrbench_question(row: Mapping[str, Any], name: str, question: Mapping[str, Any]) -> dict[str, Any]:
    options = plain_options(question["options"])
    steps, evidence = [], []
    numbered = sorted((question.get("reasoning_process") or {}).items(), key=lambda item: (len(item[0]), item[0]))
    for _, step in numbered:
        span = _STEP.search(step)
        times = parse_spans(f"{span[1]}-{span[2]}") if span else []
        text = step[: span.start()].strip() if span else step.strip()
        steps.append(text)
        evidence += [{"start_s": start, "end_s": end, "caption": text} for start, end in times if text]
    return {
        "id": f"{row['video_id']}-{name}",
        "media": {"kind": "video", "uri": posixpath.normpath(row["video_path"])},
        "question": question["question"],
        "options": options,
        "problem_type": "multiple_choice",
        "answer": plain_answer(question["answer"], "multiple_choice", options),
        "reasoning": "\n".join(steps) or None,
        "evidence": evidence,
        "source": "VRBench",
        "split": "test",
        "metadata": {"kind": question.get("reasoning_type") or "", "video_id": row["video_id"]},
    }


def _write_vrbench(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    videos: dict[str, dict[str, Any]] = {}
    for sample in samples:
        video = str(sample.metadata["video_id"])
        row = videos.setdefault(video, {"video_id": video, "video_path": sample.media.uri, "mcq": {}})
        steps = {e.caption: format_vrbench_span(e.start_s, e.end_s) for e in sample.evidence}
        texts = (sample.reasoning or "").splitlines()
        row["mcq"][sample.id.removeprefix(f"{video}-")] = {
            "question": sample.question,
            "options": dict(zip(string.ascii_uppercase, sample.options, strict=False)),
            "answer": sample.answer,
            "reasoning_process": {str(n): f"{text} {steps.get(text, '')}".strip() for n, text in enumerate(texts, 1)},
            "reasoning_type": sample.metadata["kind"],
        }
    yield from videos.values()


def format_vrbench_span(start_s: float, end_s: float) -> str:
    """``[00:07:44->00:08:28]``."""
    start, _, end = format_span(int(start_s) + 3600, int(end_s) + 3600).partition("-")
    hours = [f"{int(point[:2]) - 1:02d}{point[2:]}" for point in (start, end)]
    return f"[{hours[0]}->{hours[1]}]"
