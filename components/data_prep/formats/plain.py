"""Rows of a table with plain columns: your own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .fields import BadRowError, media_kind, plain_answer, plain_options, problem_type_of
from .format import Format, Row

_MEDIA = ("video", "image", "path")
_FIELDS = {*_MEDIA, "id", "question", "options", "problem_type", "answer", "start_s", "end_s"}
_FIELDS |= {"reasoning", "evidence", "source", "split"}


def _read(row: Row, number: int) -> Iterator[Row]:
    row = {key: value for key, value in row.items() if value is not None and value != ""}
    places = [key for key in _MEDIA if key in row]
    if len(places) != 1:
        raise BadRowError("a row needs exactly one of video, image and path")
    path = str(row[places[0]]).strip()
    kind = media_kind(None, path) if places == ["path"] else places[0]
    options = plain_options(row.get("options"))
    problem_type = problem_type_of(row.get("problem_type", "multiple_choice" if options else "free_form"))
    yield {
        "id": str(row.get("id", f"row-{number}")),
        "media": {"kind": kind, "uri": path, **{k: _seconds(row[k], k) for k in ("start_s", "end_s") if k in row}},
        "question": row["question"],
        "options": options,
        "problem_type": problem_type,
        "answer": plain_answer(row["answer"], problem_type, options),
        **{key: row[key] for key in ("reasoning", "evidence", "source", "split") if key in row},
        "metadata": {key: value for key, value in row.items() if key not in _FIELDS and key != "metadata"}
        | dict(row.get("metadata", {})),
    }


def _seconds(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRowError(f"{name} is no number: '{str(value)[:40]}'") from None


PLAIN = Format(
    name="plain", fits=lambda row: "question" in row and any(key in row for key in _MEDIA), read=_read, unique_ids=True
)
