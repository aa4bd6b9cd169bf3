"""Rows of a table with plain columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...common.rows.files import to_line
from ...common.rows.sample import Sample
from .fields import _BadRowError, media_kind, plain_answer, plain_options, problem_type_of

_PLAIN = {"id", "video", "image", "path", "question", "options", "problem_type", "answer", "start_s", "end_s"}


_PLAIN |= {"reasoning", "evidence", "source", "split"}


def _read_plain(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any]]:
    row = {key: value for key, value in row.items() if value is not None and value != ""}
    places = [key for key in ("video", "image", "path") if key in row]
    if len(places) != 1:
        raise _BadRowError("a row needs exactly one of video, image and path")
    path = str(row[places[0]]).strip()
    kind = media_kind(None, path) if places == ["path"] else places[0]
    options = plain_options(row.get("options"))
    problem_type = problem_type_of(row.get("problem_type", "multiple_choice" if options else "free_form"))
    part = {key: float(row[key]) for key in ("start_s", "end_s") if key in row and _is_number(row[key], key)}
    known: dict[str, Any] = {key: row[key] for key in ("reasoning", "evidence", "source", "split") if key in row}
    yield {
        "id": str(row.get("id", f"row-{number}")),
        "media": {"kind": kind, "uri": path, **part},
        "question": row["question"],
        "options": options,
        "problem_type": problem_type,
        "answer": plain_answer(row["answer"], problem_type, options),
        **known,
        "metadata": {key: value for key, value in row.items() if key not in _PLAIN and key != "metadata"}
        | dict(row.get("metadata", {})),
    }


def _is_number(value: Any, name: str) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        raise _BadRowError(f"{name} is no number: '{str(value)[:40]}'") from None
    return True


def _write_plain(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        row = json.loads(to_line(sample))
        media = row.pop("media")
        yield {**row, media["kind"]: media["uri"], **{k: media[k] for k in ("start_s", "end_s") if k in media}}
