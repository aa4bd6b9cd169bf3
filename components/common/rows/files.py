"""Files of rows, JSONL and Parquet: read one row at a time, and written.

Rows come from strangers, so reading never fails on a row: a bad one comes out as a `RowError` with its line and reason,
and reading goes on. Neither torch nor, at import, pyarrow is needed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from ..config import describe
from ..errors import UserError, first_line
from ..whole_file import whole_file
from .sample import Sample

MAX_LINE_BYTES = 16 * 2**20  # a longer line of JSONL is not a row
_RAW_CHARACTERS = 2000
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that is not a `Sample`: its line of the JSONL file or row of the Parquet file, from 1; what is wrong; and
    the row as it was found, its first 2,000 characters."""

    line: int
    reason: str
    raw: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def read_samples(source: str | Path | IO[bytes] | IO[str]) -> Iterator[Sample | RowError]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, one at a time; an open file is read as JSONL. A file that is
    missing, of another kind, or damaged Parquet is a `UserError`."""
    for number, value in numbered_objects(source):
        yield value if isinstance(value, RowError) else parse_row(value, number)


def numbered_objects(source: str | Path | IO[bytes] | IO[str]) -> Iterator[tuple[int, Any]]:
    """What the lines or rows of a file (see `read_samples`) hold, as Python values; a `RowError` for a line that is no
    JSON. Each with its line or row, from 1."""
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
            yield number, RowError(number, f"longer than {MAX_LINE_BYTES} bytes", raw_text(data[:_RAW_CHARACTERS]))
            continue
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if data.strip():
            yield number, _parse_line(data, number)


def _parse_line(data: bytes, number: int) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start + 1})"
    except RecursionError:
        reason = "JSON nested too deeply"
    except ValueError as error:
        reason = str(error)
    return RowError(number, reason, raw_text(data))


def refuse_constant(name: str) -> float:
    """``parse_constant`` of a strict JSON parser: NaN and Infinity are no JSON."""
    raise ValueError(f"not JSON ({name} is not a number)")


def _from_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    # Prepared rows say where their frames are; pandas writes its index.
                    added = {k for k in row if k == "media_id" or k.startswith("__index_level_")}
                    yield number, {k: v for k, v in row.items() if k not in added}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def parse_row(row: Any, number: int) -> Sample | RowError:
    """A row as JSON gives it, as a `Sample`. Null counts as not there: Arrow fills with it. ``metadata`` may be JSON
    text."""
    try:
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object, got {type(row).__name__}")
        plain = _without_nulls(row)
        if isinstance(metadata := plain.get("metadata"), str):
            plain["metadata"] = json.loads(metadata, parse_constant=refuse_constant)
        return Sample.model_validate(plain)
    except ValidationError as error:
        reason = describe(error, Sample)
    except json.JSONDecodeError as error:
        reason = f"metadata is text, but not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
    return RowError(number, reason, raw_text(row))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def raw_text(row: Any) -> str:
    """A row as it was found, for a person: its first 2,000 characters."""
    if isinstance(row, bytes):
        return row[: 4 * _RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:_RAW_CHARACTERS]
    try:
        return json.dumps(row, default=repr)[:_RAW_CHARACTERS]
    except (ValueError, RecursionError):
        return type(row).__name__


def write_samples(path: str | Path, samples: Iterable[Sample]) -> int:
    """Write rows as ``.jsonl`` (equal rows: equal bytes) or ``.parquet``, whole or not at all; returns their number."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise UserError(f"{path}: rows are written as .jsonl or .parquet, not as '{path.suffix}'")
    with whole_file(path) as partial:
        return _write_parquet(partial, samples) if suffix == ".parquet" else _write_jsonl(partial, samples)


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

    count, records = 0, (to_record(sample, None) for sample in samples)
    with pq.ParquetWriter(path, rows_schema()) as writer:
        while batch := list(islice(records, _BATCH_ROWS)):
            write_records(writer, batch)
            count += len(batch)
    return count


def to_record(sample: Sample, media_id: str | None) -> dict[str, object]:
    """A row of `rows_schema`."""
    metadata = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
    return {**sample.model_dump(mode="json"), "media_id": media_id, "metadata": metadata}


def write_records(writer: Any, records: Sequence[dict[str, object]]) -> None:
    """Write records of the writer's schema as one row group."""
    import pyarrow as pa

    writer.write_table(pa.Table.from_pylist(records, schema=writer.schema))


def rows_schema() -> Any:
    """Arrow schema of rows. The columns are fixed, so that no row gains keys that only others have."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    media = pa.struct([("kind", text), ("uri", text), ("sha256", text), ("start_s", number), ("end_s", number)])
    evidence = pa.list_(pa.struct([("start_s", number), ("end_s", number), ("caption", text)]))
    names = ["id", "media_id", "media", "question", "options", "problem_type", "answer", "reasoning", "evidence"]
    special = {"media": media, "options": pa.list_(text), "evidence": evidence}
    return pa.schema([(name, special.get(name, text)) for name in [*names, "source", "split", "metadata"]])


def media_schema() -> Any:
    """Arrow schema of prepared media: frames once per video or image, whatever the number of its questions. Where the
    frames would be larger than the file that they are from, ``frames`` is empty and the file itself is kept: in
    ``original``, or, for a further part of the same video, in ``original`` of the entry ``original_id``."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int32()
    medium = [*((name, text) for name in ("media_id", "kind", "uri", "sha256")), ("start_s", number), ("end_s", number)]
    pictures = [("frames", pa.list_(pa.binary())), ("original", pa.binary()), ("original_id", text)]
    shape = [("times_s", pa.list_(number)), ("duration_s", number), ("height", whole), ("width", whole)]
    return pa.schema([*medium, *pictures, *shape])


def index_schema() -> Any:
    """Arrow schema of the index of a prepared set: in which file and row group, at which place, a medium stands."""
    import pyarrow as pa

    return pa.schema([("media_id", pa.string()), ("file", pa.string()), ("group", pa.int32()), ("row", pa.int32())])
