"""The row: one question about one video or image, its answer, and what is known about why. And the prepared
data set.

Everything downstream knows only `Sample`; data sets and benchmarks are adapters into it. Rows come from
strangers, so reading never fails on a row: a bad one comes out as a `RowError` with its line and reason, and
reading goes on.

Neither torch nor, at import, pyarrow is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from ..config import describe
from ..errors import UserError
from .arrow import rows_schema, to_record, write_records
from .sample import Sample

MAX_LINE_BYTES = 16 * 2**20
"""A longer line of JSONL is not a row."""


_RAW_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that is not a `Sample`."""

    line: int
    """Line of the JSONL file, or row of the Parquet file, from 1."""
    reason: str
    """What is wrong with it."""
    raw: str
    """The row as it was found, its first 2,000 characters."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read_samples(source: str | Path | IO[bytes] | IO[str]) -> Iterator[Sample | RowError]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, one at a time; an open file is read as JSONL.

    Raises:
        UserError: the file is missing, of another kind, or a damaged Parquet file.
    """
    for _, row in numbered_samples(source):
        yield row


def numbered_samples(source: str | Path | IO[bytes] | IO[str]) -> Iterator[tuple[int, Sample | RowError]]:
    """`read_samples`, each with its line (JSONL) or row (Parquet), from 1."""
    for number, value in numbered_objects(source):
        yield number, value if isinstance(value, RowError) else parse_row(value, number)


def numbered_objects(source: str | Path | IO[bytes] | IO[str]) -> Iterator[tuple[int, Any]]:
    """What the lines of a JSONL or the rows of a Parquet file hold, as Python values; a `RowError` for a line that is
    no JSON. Each with its line or row, from 1.

    Raises:
        UserError: as `read_samples`.
    """
    if not isinstance(source, str | Path):
        yield from _from_jsonl(source)
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise UserError(f"{path}: rows come as .jsonl or .parquet, not as '{suffix}'")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if suffix == ".parquet":
        yield from _from_parquet(path)
        return
    with path.open("rb") as file:
        yield from _from_jsonl(file)


def _from_jsonl(file: IO[bytes] | IO[str]) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
        if len(line) > MAX_LINE_BYTES:
            rest: bytes | str = line
            while rest and rest[-1:] not in (b"\n", "\n"):
                rest = file.readline(MAX_LINE_BYTES)
            yield (number, RowError(number, f"longer than {MAX_LINE_BYTES} bytes", raw_text(data[:_RAW_CHARACTERS])))
            continue
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if data.strip():
            yield number, _parse_line(data, number)


def _parse_line(data: bytes, number: int) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        return RowError(number, f"not JSON ({error.msg}, column {error.colno})", raw_text(data))
    except UnicodeDecodeError as error:
        return RowError(number, f"not UTF-8 (byte {error.start + 1})", raw_text(data))
    except RecursionError:
        return RowError(number, "JSON nested too deeply", raw_text(data))
    except ValueError as error:
        return RowError(number, str(error), raw_text(data))


def refuse_constant(name: str) -> float:
    """``parse_constant`` of a strict JSON parser: NaN and Infinity are no JSON."""
    raise ValueError(f"not JSON ({name} is not a number)")


def _from_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=1024, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    # The first is ours (prepared rows say where their frames are), the others are pandas's.
                    yield (
                        number,
                        {k: v for k, v in row.items() if k != "media_id" and not k.startswith("__index_level_")},
                    )
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def parse_row(row: Any, number: int) -> Sample | RowError:
    """A row as JSON gives it, as a `Sample`; null counts as not there, because Arrow fills what is not there
    with null.

    ``metadata`` may be JSON text, as it is in Parquet files of ours.
    """
    if not isinstance(row, Mapping):
        return RowError(number, f"expected an object, got {type(row).__name__}", raw_text(row))
    try:
        plain = {key: _without_nulls(value) for key, value in row.items() if value is not None}
        if isinstance(metadata := plain.get("metadata"), str):
            plain["metadata"] = json.loads(metadata, parse_constant=refuse_constant)
        return Sample.model_validate(plain)
    except ValidationError as error:
        return RowError(number, describe(error, Sample), raw_text(row))
    except json.JSONDecodeError as error:
        return RowError(number, f"metadata is text, but not JSON ({error.msg})", raw_text(row))
    except (ValueError, RecursionError) as error:
        return RowError(number, str(error)[:200] or type(error).__name__, raw_text(row))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def raw_text(row: Any) -> str:
    """A row as it was found, for a person: its first 2,000 characters."""
    if isinstance(row, bytes):
        return row[: 4 * _RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:_RAW_CHARACTERS]
    try:
        text = json.dumps(row, default=repr)
    except (ValueError, RecursionError):
        text = type(row).__name__
    return text[:_RAW_CHARACTERS]


def write_samples(path: str | Path, samples: Iterable[Sample]) -> int:
    """Write rows as ``.jsonl`` or ``.parquet``; the file appears under its name when it is whole. Returns
    their number.

    Equal rows give equal bytes (JSONL).
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".parquet"):
        raise UserError(f"{path}: rows are written as .jsonl or .parquet, not as '{path.suffix}'")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        count = (
            _write_parquet(partial, samples) if path.suffix.lower() == ".parquet" else _write_jsonl(partial, samples)
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def to_line(sample: Sample) -> str:
    """A row as one line of JSON, without what it does not say."""
    row = sample.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return json.dumps({"split": sample.split, **row}, ensure_ascii=False, sort_keys=True)


def _write_jsonl(path: Path, samples: Iterable[Sample]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(to_line(sample) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, samples: Iterable[Sample]) -> int:
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(path, rows_schema()) as writer:
        batch: list[dict[str, Any]] = []
        for sample in samples:
            count += 1
            batch.append(to_record(sample, None))
            if len(batch) == 1024:
                write_records(writer, batch)
                batch = []
        if batch:
            write_records(writer, batch)
    return count
