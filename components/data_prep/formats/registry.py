"""Rows as other people publish them: files of several kinds, and an adapter per data set into `Sample`.

A format is a few lines: how its first row is recognised, how a row becomes samples, and how samples become its rows.
What is seen in the wild is tolerated where it has one meaning (blank ``data_source``, options with or without letters,
"A." for "A", "1,000"); what cannot be right is a `RowError` with its line. Files are read row by row, whatever their
size.

Formats of the data sets: arXiv 2503.21776 (Video-R1), arXiv 2510.23473 (Video-Thinker), and VRBench's published rows.
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...common.rows.files import RowError, parse_row, raw_text, to_line
from ...common.rows.sample import Sample
from ..objects import _NESTED, FormatError, read_objects
from .fields import _WRONG
from .plain import _read_plain, _write_plain
from .video_r1 import _read_r1, _write_r1
from .vrbench import _read_vrbench, _write_vrbench


@dataclass(frozen=True)
class Format:
    """How a data set writes its rows."""

    name: str
    """Its name, for ``--format`` and ``data.format``."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row looks like one of it."""
    read: Callable[[Mapping[str, Any], int], Iterable[Mapping[str, Any] | Exception]]
    """The samples of a row, as mappings (number of the row → ids where the format has none). Raises, or yields for one
    of several, a `ValueError` that says what is wrong."""
    write: Callable[[Iterable[Sample]], Iterator[dict[str, Any]]]
    """The rows of samples; what the format has no field for is lost."""
    unique_ids: bool = False
    """Whether an id that occurs twice is a mistake; else ids only count rows, and one that is taken gets a number."""


def format_named(name: str) -> Format:
    """The format called ``name``.

    Raises:
        FormatError: naming those there are.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise FormatError(f"unknown format '{name}'; there are: {', '.join(FORMATS)}") from None


def recognise(row: Any) -> Format | None:
    """The format that a row is written in; None where none fits."""
    return next((f for f in FORMATS.values() if isinstance(row, Mapping) and f.fits(row)), None)


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
                    sample = RowError(line, sample.reason, raw_text(value))
                yield self._rooted(sample) if isinstance(sample, Sample) else sample
        except _WRONG as error:
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
        format_name: a name of `FORMATS`; None: as the first rows look.
        roots: see `SourceRows`.

    Raises:
        FormatError: the format is unknown, or none fits.
        UserError: the file cannot be read at all.
    """
    objects = read_objects(path)
    first: list[tuple[int, Any]] = []
    found = format_named(format_name) if format_name else None
    while found is None and len(first) < 100:
        item = next(objects, None)
        if item is None:
            break
        first.append(item)
        found = recognise(item[1])
    if found is None:
        # Bad rows alone: as our own they get their reasons.
        keys = next((sorted(value) for _, value in first if isinstance(value, Mapping)), None)
        if keys is not None and not set(keys) & {"media", "id", "question", "answer"}:
            raise FormatError(
                f"{path}: no format fits rows with the fields {', '.join(map(str, keys))[:200]}; {_KNOWN}"
            )
        found = FORMATS["vthink"]
    return SourceRows(path, found, roots or {}, chain(first, objects))


def write_rows(path: Path, samples: Iterable[Sample], format_name: str) -> int:
    """Write samples as a file of another format (JSON list, JSONL, Parquet or CSV by the file's name); their number.

    Raises:
        FormatError: unknown format, or a kind of file that is not written.
    """
    rows = format_named(format_name).write(samples)
    suffix, count = path.suffix.lower(), 0
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        records = list(rows)
        columns = dict.fromkeys(name for row in records for name in row)
        table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in records])
        pq.write_table(table, path)
        return int(table.num_rows)
    if suffix not in (".json", ".jsonl", ".csv"):
        raise FormatError(f"{path}: rows are written as .json, .jsonl, .csv or .parquet")
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            table_rows = [{k: json.dumps(v) if k in _NESTED else v for k, v in row.items()} for row in rows]
            writer = csv.DictWriter(file, sorted({name for row in table_rows for name in row}))
            writer.writeheader()
            writer.writerows(table_rows)
            return len(table_rows)
        for count, row in enumerate(rows, 1):
            text = json.dumps(row, ensure_ascii=False)
            file.write(f"{'[' if count == 1 else ','}\n{text}" if suffix == ".json" else text + "\n")
        if suffix == ".json":
            file.write("\n]\n" if count else "[]\n")
    return count


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "vthink",
            fits=lambda row: "media" in row and "question" in row,
            read=lambda row, _: [row],
            write=lambda samples: (json.loads(to_line(sample)) for sample in samples),
            unique_ids=True,
        ),
        # Video-R1-260k and Video-R1-COT-165k (which adds `process`).
        Format("video_r1", fits=lambda row: {"problem_id", "solution"} <= set(row), read=_read_r1, write=_write_r1),
        # Video-Thinker-10K: the same fields without an id; `process` holds segments.
        Format(
            "video_thinker",
            fits=lambda row: {"problem", "solution"} <= set(row),
            read=_read_r1,
            write=lambda samples: _write_r1(samples, with_ids=False),
        ),
        Format("vrbench", fits=lambda row: {"mcq", "video_path"} <= set(row), read=_read_vrbench, write=_write_vrbench),
        Format(
            "plain",
            fits=lambda row: "question" in row and bool({"video", "image", "path"} & set(row)),
            read=_read_plain,
            write=_write_plain,
            unique_ids=True,
        ),
    )
}
"""Formats by name, in the order in which they are tried."""


_KNOWN = f"known formats: {', '.join(FORMATS)} (--format)"
