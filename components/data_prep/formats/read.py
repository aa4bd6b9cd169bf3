"""A file of rows in any format as samples, row by row; a row that cannot be right is a `RowError` with its line."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.rows.files import RowError, parse_row, raw_text
from ...common.rows.sample import Sample
from .fields import ROW_FAULTS
from .format import Format
from .objects import read_objects
from .registry import FORMATS, recognise
from .vthink import VTHINK

_LOOKED_AT = 100
"""Rows that are looked at, at most, to recognise a format."""


@dataclass
class SourceRows:
    """The rows of a file as samples, read once."""

    path: Path
    format: Format
    roots: Mapping[str, str]
    """Folder or prefix that relative media paths of a source count from; ``*``: of every other source."""
    _objects: Iterator[tuple[int, Any]]

    def __iter__(self) -> Iterator[tuple[int, Sample | RowError]]:
        for number, (line, value) in enumerate(self._objects, 1):
            if isinstance(value, RowError):
                yield line, value
                continue
            for sample in self._samples(value, line, number):
                yield line, sample

    def _samples(self, value: Any, line: int, number: int) -> Iterator[Sample | RowError]:
        if not isinstance(value, Mapping):
            yield RowError(line, f"expected an object, got {type(value).__name__}", raw_text(value))
            return
        try:
            for row in self.format.read(value, number):
                if isinstance(row, Exception):
                    yield self._error(row, value, line)
                    continue
                sample = parse_row(row, line)
                if isinstance(sample, RowError):
                    yield RowError(line, sample.reason, raw_text(value))
                else:
                    yield self._rooted(sample)
        except ROW_FAULTS as error:
            yield self._error(error, value, line)

    def _error(self, error: Exception, value: Any, line: int) -> RowError:
        reason = str(error) if isinstance(error, ValueError) else f"not a row of {self.format.name} ({error!r})"
        return RowError(line, " ".join(reason.split())[:200], raw_text(value))

    def _rooted(self, sample: Sample) -> Sample:
        uri = sample.media.uri
        root = self.roots.get(sample.source, self.roots.get("*"))
        if root is None or "://" in uri or posixpath.isabs(uri):
            return sample
        return sample.model_copy(update={"media": sample.media.model_copy(update={"uri": posixpath.join(root, uri)})})


def read_rows(path: Path, format_name: str | None = None, roots: Mapping[str, str] | None = None) -> SourceRows:
    """Open a file of rows.

    Args:
        path: the file.
        format_name: a name of `FORMATS`, or ``my_module:FORMAT``; None: as the first rows look.
        roots: see `SourceRows`.

    Raises:
        UserError: the format is unknown, or none fits.
        UserError: the file cannot be read at all.
    """
    objects = read_objects(path)
    first: list[tuple[int, Any]] = []
    row_format = FORMATS.get(format_name) if format_name else None
    while row_format is None and len(first) < _LOOKED_AT and (entry := next(objects, None)) is not None:
        first.append(entry)
        row_format = recognise(entry[1])
    if row_format is None:
        keys = next((sorted(value) for _, value in first if isinstance(value, Mapping)), None)
        if keys is not None and not set(keys) & {"media", "id", "question", "answer"}:
            raise UserError(
                f"{path}: no format fits rows with the fields {', '.join(map(str, keys))[:200]}; "
                f"known formats: {', '.join(FORMATS)} (--format)"
            )
        row_format = VTHINK  # bad rows alone: as our own they get their reasons
    return SourceRows(path, row_format, roots or {}, chain(first, objects))
