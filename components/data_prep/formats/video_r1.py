"""Rows of Video-R1 and Video-Thinker."""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...common.answers.responses import parse_response
from ...common.rows.sample import Sample
from .fields import _BadRowError, _first_folder, media_kind, plain_answer, plain_options, problem_type_of

_R1_FIELDS = {"problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "data_source"}


_R1_FIELDS |= {"process"}


def _read_r1(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any]]:
    path = row["path"]
    if not isinstance(path, str) or not path.strip():
        raise _BadRowError("there is no path to a video or image")
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
        "source": str(row.get("data_source") or "").strip() or _first_folder(path),
        "metadata": {key: value for key, value in row.items() if key not in _R1_FIELDS and value is not None},
    }


def _trace(process: Any) -> tuple[str | None, list[dict[str, Any]]]:
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


def _write_r1(samples: Iterable[Sample], with_ids: bool = True) -> Iterator[dict[str, Any]]:
    names = {"multiple_choice": "multiple choice", "free_form": "free-form", "ocr": "OCR"}
    for sample in samples:
        reasoning = sample.reasoning
        if reasoning is not None and not parse_response(reasoning).segments:
            reasoning = f"<think>{reasoning}</think>"
        yield {
            **({"problem_id": int(sample.id) if sample.id.isdecimal() else sample.id} if with_ids else {}),
            "problem": sample.question,
            "data_type": sample.media.kind,
            "problem_type": names.get(sample.problem_type, sample.problem_type),
            "options": [f"{a}. {o}" for a, o in zip(string.ascii_uppercase, sample.options, strict=False)],
            "solution": f"<answer>{sample.answer}</answer>",
            "path": sample.media.uri if posixpath.isabs(sample.media.uri) else f"./{sample.media.uri}",
            "data_source": sample.source,
            **({"process": reasoning} if reasoning is not None else {}),
            **sample.metadata,
        }
