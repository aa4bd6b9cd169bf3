"""Files of rows in any format as samples, one at a time; a row that cannot be right is a `RowError` with its line."""

import codecs
import csv
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ...common.errors import UserError
from ...common.rows.files import MAX_LINE_BYTES, RowError, numbered_objects, parse_row, raw_text, refuse_constant
from ...common.rows.sample import Sample
from ..source import root_of
from .columns import Columns, by_field, check_columns, columns_of
from .format import ROW_FAULTS, Format
from .registry import FORMATS

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")  # kinds of files that rows come in
_CHUNK_CHARACTERS = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file as Python values (a `RowError` for one that cannot be read), each with its line (the row's
    number in Parquet), from 1. Raises UserError: missing, of another kind, or damaged."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: rows come as {', '.join(SUFFIXES)}, not as '{suffix}'")
    if suffix in (".csv", ".tsv"):
        yield from _from_table(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".json":
        with path.open("rb") as file, path.open(encoding="utf-8-sig") as text:
            yield from _List(path, text) if begins_with(file) == b"[" else numbered_objects(file)
    else:
        yield from numbered_objects(path)


def begins_with(file: IO[bytes]) -> bytes:
    """The first character of a file that is no white space; the file is read from its start afterwards."""
    first = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    file.seek(0)
    return first


class _List:
    """The objects of one JSON list, read piece by piece: the list is never in memory as a whole."""

    def __init__(self, path: Path, file: IO[str]):
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._buffer, self._position, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            self._expect("[")
            more = self._next() != "]"
            while more:
                self._next()
                yield self._line, self._value()
                if more := self._next() != "]":
                    self._expect(",")
            self._skip(1)
            if self._next():
                raise self._error("there is something behind the end of the list")
        except UnicodeDecodeError:
            raise self._error("not UTF-8") from None
        except RecursionError:
            raise self._error("nested too deeply") from None

    def _error(self, reason: str) -> UserError:
        return UserError(f"{self._path}:{self._line}: {reason}; a JSON list cannot be read beyond a mistake")

    def _more(self) -> bool:
        """Read on; what has been used goes."""
        rest = self._buffer[self._position :]
        piece = self._file.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._position = rest + piece, 0
        return bool(piece)

    def _skip(self, count: int) -> None:
        end = self._position + count
        self._line += self._buffer.count("\n", self._position, end)
        self._position = end

    def _next(self) -> str:
        """The next character that is no white space, which stays; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            self._skip(len(space[0]) if space else 0)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        actual = self._next()
        if actual != character:
            raise self._error(f"expected '{character}', found " + (f"'{actual}'" if actual else "the end of the file"))
        self._skip(1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
                if end < len(self._buffer):  # else it may be the beginning of a longer number
                    self._skip(end - self._position)
                    return value
                reason = "the list is not closed"
            except json.JSONDecodeError as error:
                reason = error.msg
            except ValueError as error:
                raise self._error(str(error)) from None
            if len(self._buffer) - self._position > MAX_LINE_BYTES:
                raise self._error(f"not JSON ({reason}), or a row of more than {MAX_LINE_BYTES} characters")
            if not self._more():
                raise self._error(f"not JSON ({reason})")


NESTED = ("media", "options", "evidence", "metadata")  # columns of a table whose cells are JSON, as we write them
_NESTED_CELL = re.compile(r"\s*[\[{]")


def _from_table(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:1: not UTF-8 ({error.reason}); save the table as UTF-8") from None
        file.seek(0)
        if delimiter not in first and ";" in first:
            delimiter = ";"  # as spreadsheets write it where the comma is the decimal point
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{line}: not a readable table ({error})") from None
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if twice := [name for name in header if header.count(name) > 1]:
                    raise UserError(f"{path}:{line}: two columns have the name '{twice[0]}'; rename one")
            elif len(cells) != len(header):
                hint = f"put a text with '{delimiter}' in quotes"
                reason = f"{len(cells)} cells, where the header has {len(header)}: {hint}"
                yield line, RowError(line, reason, raw_text(cells))
            else:
                yield line, _table_row(dict(zip(header, cells, strict=True)), line)


def _table_row(cells: Mapping[str, str], line: int) -> Any:
    row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
    for name in NESTED:
        if name in row and _NESTED_CELL.match(row[name]):
            try:
                row[name] = json.loads(row[name], parse_constant=refuse_constant)
            except (ValueError, RecursionError) as error:
                if name != "options":  # of which there may be a Python list
                    return RowError(line, f"the cell '{name}' is not JSON ({error})", raw_text(cells))
    return row


_LOOKED_AT = 100  # rows that are looked at, at most, to recognise a format


@dataclass
class SourceRows:
    """The rows of a file as samples, read once. ``roots``: folder or prefix that relative media paths of a source count
    from; ``*``: of every other source. ``columns``: of a table of one's own, what each field was read from."""

    format: Format
    roots: Mapping[str, str]
    _objects: Iterator[tuple[int, Any]]
    columns: Columns = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[int, Sample | RowError]]:
        for number, (line, value) in enumerate(self._objects, 1):
            for sample in (value,) if isinstance(value, RowError) else self._samples(value, line, number):
                yield line, sample

    def _samples(self, value: Any, line: int, number: int) -> Iterator[Sample | RowError]:
        if not isinstance(value, Mapping):
            yield RowError(line, f"expected an object, got {type(value).__name__}", raw_text(value))
            return
        try:
            for row in self.format.read(by_field(value, self.columns) if self.columns else value, number):
                sample = self._error(row, value, line) if isinstance(row, Exception) else parse_row(row, line)
                if isinstance(sample, RowError):
                    sample = RowError(line, sample.reason, raw_text(value))
                yield sample if isinstance(sample, RowError) else self._rooted(sample)
        except ROW_FAULTS as error:
            yield self._error(error, value, line)

    def _error(self, error: Exception, value: Any, line: int) -> RowError:
        reason = str(error) if isinstance(error, ValueError) else f"not a row of {self.format.name} ({error!r})"
        return RowError(line, " ".join(reason.split())[:200], raw_text(value))

    def _rooted(self, sample: Sample) -> Sample:
        uri = sample.media.uri
        root = root_of(sample, self.roots)
        if root is None or "://" in uri or posixpath.isabs(uri):
            return sample
        return sample.model_copy(update={"media": sample.media.model_copy(update={"uri": posixpath.join(root, uri)})})


def read_rows(
    path: Path,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
    columns: Columns | None = None,
) -> SourceRows:
    """Open a file of rows.

    Args:
        format_name: a name of `FORMATS`, or ``my_module:FORMAT``; None: as the first rows look.
        roots: see `SourceRows`.
        columns: `DataPrepConfig.columns`; where there are any the file is a table of one's own.

    Raises:
        UserError: the format is unknown, or none fits; there is no such column; the file cannot be read at all."""
    objects = read_objects(path)
    first: list[tuple[int, Any]] = []
    row_format = FORMATS.get(format_name or "plain") if format_name or columns else None
    names = dict[str, None]()
    while len(first) < _LOOKED_AT and (entry := next(objects, None)) is not None:
        first.append(entry)
        if isinstance(entry[1], Mapping):
            names |= dict.fromkeys(name for name in entry[1] if isinstance(name, str))
            if row_format is None:
                row_format = next((f for _, f in FORMATS.items() if f.fits(entry[1])), None)
    if row_format is None:
        if names and not set(names) & {"media", "id", "question", "answer"}:
            listed, known = ", ".join(sorted(names))[:200], ", ".join(FORMATS)
            raise UserError(
                f"{path}: no format fits rows with the fields {listed}; known formats: {known} (--format); or say "
                "which column is which: --column video=NAME --column question=NAME --column answer=NAME (data.columns)"
            )
        row_format = FORMATS.get("vthink")  # bad rows alone: as our own they get their reasons
    check_columns(columns or {}, names, str(path))
    own = columns_of(names, columns) if row_format is FORMATS.get("plain") else {}
    return SourceRows(row_format, roots or {}, chain(first, objects), own)
