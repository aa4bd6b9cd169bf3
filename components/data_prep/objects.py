"""Files of rows as Python values, read piece by piece."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..common.errors import UserError
from ..common.rows.files import MAX_LINE_BYTES, RowError, numbered_objects, raw_text, refuse_constant

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
"""Kinds of files that rows come in."""


_CHUNK_CHARACTERS = 2**20


_SPACE = re.compile(r"[ \t\r\n]*")


class FormatError(ValueError):
    """A source that no adapter fits; one line for a person."""


def read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file as Python values (a `RowError` for one that cannot be read), each with its line (the row's
    number in Parquet), from 1.

    Raises:
        UserError: missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: rows come as {', '.join(SUFFIXES)}, not as '{suffix}'")
    if suffix in (".csv", ".tsv"):
        return _from_table(path, "," if suffix == ".csv" else "\t")
    if suffix == ".json":
        with path.open("rb") as file:
            if file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                return _from_list(path)
        return _lines_of(path)
    return numbered_objects(path)


def _lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        yield from numbered_objects(file)


def _from_list(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _List(path, file)


class _List:
    """The objects of one JSON list, read piece by piece: the list is never in memory as a whole."""

    def __init__(self, path: Path, file: IO[str]):
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._buffer, self._position, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            self._expect("[")
            if self._next() == "]":
                self._skip(1)
            else:
                while True:
                    self._next()
                    yield self._line, self._value()
                    if self._next() == "]":
                        break
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
        found = self._next()
        if found != character:
            raise self._error(f"expected '{character}', found " + (f"'{found}'" if found else "the end of the file"))
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


_NESTED = ("media", "options", "evidence", "metadata")
"""Columns of a table whose cells are JSON."""


def _from_table(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{path}:{line}: not a readable table ({error})") from None
            if None in cells or None in cells.values():
                yield line, RowError(line, f"{reader.line_num} cells do not fit the header", raw_text(cells))
                continue
            row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
            try:
                row |= {name: json.loads(row[name], parse_constant=refuse_constant) for name in _NESTED if name in row}
            except (ValueError, RecursionError):
                yield line, RowError(line, f"one of the cells {', '.join(_NESTED)} is not JSON", raw_text(cells))
                continue
            yield line, row
