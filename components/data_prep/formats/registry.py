"""The formats of rows by name: our own, tables with plain columns, and those of published data sets."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from ...common.answers.responses import parse_response, parse_spans
from ...common.registry import Registry
from . import format as fields
from .format import ROW_FAULTS, BadRowError, Format, Row

_MEDIA = ("video", "image", "path")
_KEPT = ("reasoning", "evidence", "source", "split")
_PLAIN = {*_MEDIA, *_KEPT, "id", "question", "options", "problem_type", "answer", "start_s", "end_s", "metadata"}
_VIDEO_R1 = {"problem_id", "problem", "data_type", "problem_type", "options", "solution", "path"}
_VIDEO_R1 |= {"data_source", "process"}
_STEP = re.compile(r"\s*\[([0-9:.]+)\s*->\s*([0-9:.]+)\]\s*\.?\s*$")


def _read_plain(row: Row, number: int) -> Iterator[Row]:
    """A row of your own table."""
    row = {key: value for key, value in row.items() if value is not None and value != ""}
    places = [key for key in _MEDIA if key in row]
    if len(places) != 1:
        raise BadRowError("a row needs exactly one of video, image and path")
    path = str(row[places[0]]).strip()
    kind = fields.media_kind(None, path) if places == ["path"] else places[0]
    options = fields.plain_options(row.get("options"))
    problem_type = fields.problem_type_of(row.get("problem_type", "multiple_choice" if options else "free_form"))
    further = {key: value for key, value in row.items() if key not in _PLAIN}
    yield {
        "id": str(row.get("id", f"row-{number}")),
        "media": {"kind": kind, "uri": path, **{k: _seconds(row[k], k) for k in ("start_s", "end_s") if k in row}},
        "question": row["question"],
        "options": options,
        "problem_type": problem_type,
        "answer": fields.plain_answer(row["answer"], problem_type, options),
        **{key: row[key] for key in _KEPT if key in row},
        "metadata": further | dict(row.get("metadata", {})),
    }


def _seconds(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRowError(f"{name} is no number: '{str(value)[:40]}'") from None


def _read_video_r1(row: Row, number: int) -> Iterator[Row]:
    """A row of Video-R1 (arXiv 2503.21776) or Video-Thinker (arXiv 2510.23473): the same fields."""
    path = row["path"]
    if not isinstance(path, str) or not path.strip():
        raise BadRowError("there is no path to a video or image")
    path = posixpath.normpath(path.strip()) if "://" not in path else path.strip()
    problem_type = fields.problem_type_of(row["problem_type"])
    options = fields.plain_options(row.get("options"))
    name = row.get("problem_id")
    reasoning, evidence = _trace(row.get("process"))
    yield {
        "id": f"row-{number}" if name is None or name == "" else str(name),
        "media": {"kind": fields.media_kind(row.get("data_type"), path), "uri": path},
        "question": row["problem"],
        "options": options if problem_type == "multiple_choice" else [],
        "problem_type": problem_type,
        "answer": fields.plain_answer(row["solution"], problem_type, options),
        "reasoning": reasoning,
        "evidence": evidence,
        "source": str(row.get("data_source") or "").strip() or fields.first_folder(path),
        "metadata": {key: value for key, value in row.items() if key not in _VIDEO_R1 and value is not None},
    }


def _trace(process: Any) -> tuple[str | None, list[Row]]:
    """Reasoning and evidence of a published trace. One ``<think>`` is taken off; a trace with segments stays as it is,
    because its order is what is learned."""
    text = "" if process is None else str(process).strip()
    parsed = parse_response(text)
    if parsed.segments:
        captioned = [s for s in parsed.segments if s.caption]
        return text, [{"start_s": s.start_s, "end_s": s.end_s, "caption": s.caption} for s in captioned]
    whole = re.fullmatch(r"<think>(.*)</think>", text, re.DOTALL | re.IGNORECASE)
    return (whole[1].strip() if whole and "<think>" not in whole[1] else text) or None, []


def _read_vrbench(row: Row, number: int) -> Iterator[Row | Exception]:
    """A line of VRBench: a video, and several questions about it."""
    for name, question in row["mcq"].items():
        try:
            yield _vrbench_question(row, name, question)
        except ROW_FAULTS as error:
            yield BadRowError(f"{name}: {error if isinstance(error, ValueError) else repr(error)}")


def _vrbench_question(row: Row, name: str, question: Row) -> Row:
    options = fields.plain_options(question["options"])
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
        "answer": fields.plain_answer(question["answer"], "multiple_choice", options),
        "reasoning": "\n".join(steps) or None,
        "evidence": evidence,
        "source": "VRBench",
        "split": "test",
        "metadata": {"kind": question.get("reasoning_type") or "", "video_id": row["video_id"]},
    }


# Our own rows, as `Sample` writes them.
_VTHINK = Format(name="vthink", fits={"media", "question"}.issubset, read=lambda row, _: [row], unique_ids=True)
_PUBLISHED = (
    # Video-R1-260k and Video-R1-COT-165k (which adds `process`); Video-Thinker-10K, whose `process` holds segments.
    Format(name="video_r1", fits={"problem_id", "solution"}.issubset, read=_read_video_r1),
    Format(name="video_thinker", fits={"problem", "solution"}.issubset, read=_read_video_r1),
    Format(name="vrbench", fits={"mcq", "video_path"}.issubset, read=_read_vrbench),
)
_TABLE = Format(
    name="plain",
    fits=lambda row: "question" in row and any(key in row for key in _MEDIA),
    read=_read_plain,
    unique_ids=True,
)
FORMATS: Registry[Format] = Registry("format", Format, {f.name: f for f in (_VTHINK, *_PUBLISHED, _TABLE)})
"""Formats by name, in the order in which they are tried; ``my_module:FORMAT`` names one from outside."""
