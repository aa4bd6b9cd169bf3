"""Rows of VRBench as it publishes them: a line per video, several questions each."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from ...common.answers.responses import parse_spans
from .fields import ROW_FAULTS, BadRowError, plain_answer, plain_options
from .format import Format, Row

_STEP = re.compile(r"\s*\[([0-9:.]+)\s*->\s*([0-9:.]+)\]\s*\.?\s*$")


def _read(row: Row, number: int) -> Iterator[Row | Exception]:
    for name, question in row["mcq"].items():
        try:
            yield _question(row, name, question)
        except ROW_FAULTS as error:
            yield BadRowError(f"{name}: {error if isinstance(error, ValueError) else repr(error)}")


def _question(row: Row, name: str, question: Row) -> Row:
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


VRBENCH = Format(name="vrbench", fits=lambda row: {"mcq", "video_path"} <= set(row), read=_read)
