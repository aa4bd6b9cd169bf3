"""Rows of Video-R1 (arXiv 2503.21776) and Video-Thinker (arXiv 2510.23473): the same fields, with and without an id."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from ...common.answers.responses import parse_response
from .fields import BadRowError, first_folder, media_kind, plain_answer, plain_options, problem_type_of
from .format import Format, Row

_FIELDS = {
    "problem_id",
    "problem",
    "data_type",
    "problem_type",
    "options",
    "solution",
    "path",
    "data_source",
    "process",
}


def _read(row: Row, number: int) -> Iterator[Row]:
    path = row["path"]
    if not isinstance(path, str) or not path.strip():
        raise BadRowError("there is no path to a video or image")
    path = posixpath.normpath(path.strip()) if "://" not in path else path.strip()
    problem_type = problem_type_of(row["problem_type"])
    options = plain_options(row.get("options"))
    name = row.get("problem_id")
    reasoning, evidence = _trace(row.get("process"))
    yield {
        "id": f"row-{number}" if name is None or name == "" else str(name),
        "media": {"kind": media_kind(row.get("data_type"), path), "uri": path},
        "question": row["problem"],
        "options": options if problem_type == "multiple_choice" else [],
        "problem_type": problem_type,
        "answer": plain_answer(row["solution"], problem_type, options),
        "reasoning": reasoning,
        "evidence": evidence,
        "source": str(row.get("data_source") or "").strip() or first_folder(path),
        "metadata": {key: value for key, value in row.items() if key not in _FIELDS and value is not None},
    }


def _trace(process: Any) -> tuple[str | None, list[Row]]:
    """Reasoning and evidence of a published trace. One ``<think>`` is taken off; a trace with segments stays as it is,
    because its order is what is learned."""
    if process is None or not str(process).strip():
        return None, []
    text = str(process).strip()
    parsed = parse_response(text)
    if parsed.segments:
        evidence = [(s.start_s, s.end_s, s.caption) for s in parsed.segments if s.caption]
        return text, [{"start_s": start, "end_s": end, "caption": caption} for start, end, caption in evidence]
    whole = re.fullmatch(r"<think>(.*)</think>", text, re.DOTALL | re.IGNORECASE)
    return (whole[1].strip() if whole and "<think>" not in whole[1] else text) or None, []


# Video-R1-260k and Video-R1-COT-165k (which adds `process`).
VIDEO_R1 = Format(name="video_r1", fits=lambda row: {"problem_id", "solution"} <= set(row), read=_read)
# Video-Thinker-10K: `process` holds segments.
VIDEO_THINKER = Format(name="video_thinker", fits=lambda row: {"problem", "solution"} <= set(row), read=_read)
