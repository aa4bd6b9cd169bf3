"""The row: one question about one video or image, its answer, and what is known about why. And the prepared
data set.

Everything downstream knows only `Sample`; data sets and benchmarks are adapters into it. Rows come from
strangers, so reading never fails on a row: a bad one comes out as a `RowError` with its line and reason, and
reading goes on.

Neither torch nor, at import, pyarrow is needed.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import re
import shutil
import string
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self, cast, overload

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from .config import Section, VideoConfig, describe
from .storage import Manifest, Storage, join
from .video import Clip, Decoder, EncodedClip, MediaKind, stored

ProblemType = Literal["multiple_choice", "numerical", "ocr", "free_form", "regression"]

MAX_LINE_BYTES = 16 * 2**20
"""A longer line of JSONL is not a row."""
_RAW_CHARACTERS = 2000
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")


class SamplesError(ValueError):
    """A file of rows that cannot be read at all: missing, of another format, damaged."""


class Media(Section):
    """The video or image that a question is about."""

    kind: MediaKind
    """``video`` or ``image``."""
    uri: str = Field(min_length=1, max_length=4096)
    """Where it is: a path (relative ones count from the file of rows) or an ``s3://`` URI."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file, in hex; checked where it is given, filled in by preparation."""
    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Only the part of the video from here is shown; null: from its start."""
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Only the part of the video to here is shown; null: to its end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "image" and (self.start_s is not None or self.end_s is not None):
            raise ValueError("an image has no start_s and end_s")
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise ValueError(f"start_s {self.start_s:g} is not before end_s {self.end_s:g}")
        _encodable(self.uri)
        return self


class Evidence(Section):
    """A part of the video that the answer rests on, and what is seen there."""

    start_s: float = Field(ge=0, allow_inf_nan=False)
    """Start in seconds, counted from the start of the part that is shown (``media.start_s``)."""
    end_s: float = Field(ge=0, allow_inf_nan=False)
    """End in seconds, counted likewise."""
    caption: str
    """What is seen there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_s > self.end_s:
            raise ValueError(f"start_s {self.start_s:g} is after end_s {self.end_s:g}")
        _non_empty(self.caption, "caption")
        return self


class Sample(Section):
    """One question about one video or image."""

    id: str = Field(max_length=1024)
    """Unique within a data set."""
    media: Media
    """What it is about."""
    question: str
    """The question, without its options."""
    options: tuple[str, ...] = ()
    """Texts of the options, without letters; for ``multiple_choice`` only, 2 to 26 of them."""
    problem_type: ProblemType
    """How the answer is given and graded."""
    answer: str
    """The true answer; for ``multiple_choice`` its letter, for ``numerical`` and ``regression`` a number."""
    reasoning: str | None = None
    """A line of thought that leads to the answer, where one is known."""
    evidence: tuple[Evidence, ...] = ()
    """The parts of the video that the answer rests on, where they are known."""
    source: str = ""
    """The data set that the row is from."""
    split: str = "train"
    """``train``, ``validation``, ``test`` or another name; a video is in one split only."""
    metadata: dict[str, Any] = Field(default={})
    """Anything else that the source says, as JSON values."""

    @field_validator("split")
    @classmethod
    def _split_name(cls, split: str) -> str:
        if not _SPLIT_NAME.fullmatch(split) or split == "all":
            raise ValueError("a split is named with letters, digits and _, and not 'all'")
        return split

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("id", "question", "answer"):
            _non_empty(getattr(self, name), name)
        _encodable(self.source + (self.reasoning or ""))
        if self.problem_type == "multiple_choice":
            _check_choice(self.options, self.answer)
        elif self.options:
            raise ValueError(f"options are for multiple_choice, not for {self.problem_type}")
        elif self.problem_type in ("numerical", "regression") and _number(self.answer) is None:
            raise ValueError(f"the answer of a {self.problem_type} question must be a number, not '{self.answer[:40]}'")
        try:
            _encodable(json.dumps(self.metadata, allow_nan=False, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"metadata must be plain JSON: {error}") from None
        return self


def _check_choice(options: Sequence[str], answer: str) -> None:
    letters = string.ascii_uppercase[: len(options)]
    if not 2 <= len(options) <= 26:
        raise ValueError(f"multiple_choice needs 2 to 26 options, there are {len(options)}")
    for letter, option in zip(letters, options, strict=True):
        _non_empty(option, f"option {letter}")
    if len(set(options)) < len(options):
        raise ValueError("two options have the same text")
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"the answer must be one of the letters {letters[0]} to {letters[-1]}, not '{answer[:40]}'")


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _non_empty(text: str, name: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} is empty")
    _encodable(text)


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("text with half a surrogate pair (broken UTF-16) in it") from None


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


# -------------------------------------------------------------------------------------------------------- files of rows


def read_samples(source: str | Path | IO[bytes] | IO[str]) -> Iterator[Sample | RowError]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, one at a time; an open file is read as JSONL.

    Raises:
        SamplesError: the file is missing, of another kind, or a damaged Parquet file.
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
        SamplesError: as `read_samples`.
    """
    if not isinstance(source, str | Path):
        yield from _from_jsonl(source)
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise SamplesError(f"{path}: rows come as .jsonl or .parquet, not as '{suffix}'")
    if not path.is_file():
        raise SamplesError(f"{path}: there is no such file")
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
        raise SamplesError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


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
        raise SamplesError(f"{path}: rows are written as .jsonl or .parquet, not as '{path.suffix}'")
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


def rows_schema() -> Any:
    """Arrow schema of rows. The columns are fixed, so that no row gains keys that only others have."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    media = pa.struct([("kind", text), ("uri", text), ("sha256", text), ("start_s", number), ("end_s", number)])
    evidence = pa.struct([("start_s", number), ("end_s", number), ("caption", text)])
    return pa.schema(
        [
            ("id", text),
            ("media_id", text),
            ("media", media),
            ("question", text),
            ("options", pa.list_(text)),
            ("problem_type", text),
            ("answer", text),
            ("reasoning", text),
            ("evidence", pa.list_(evidence)),
            ("source", text),
            ("split", text),
            ("metadata", text),
        ]
    )


def media_schema() -> Any:
    """Arrow schema of prepared media: frames once per video or image, whatever the number of its
    questions.

    Where the frames would be larger than the file that they are from, ``frames`` is empty and the file itself is kept:
    in ``original``, or, for a further part of the same video, in ``original`` of the entry ``original_id``.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("media_id", pa.string()),
            ("kind", pa.string()),
            ("uri", pa.string()),
            ("sha256", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("frames", pa.list_(pa.binary())),
            ("original", pa.binary()),
            ("original_id", pa.string()),
            ("times_s", pa.list_(pa.float64())),
            ("duration_s", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
    )


def index_schema() -> Any:
    """Arrow schema of the index of a prepared set: in which file and row group, at which place, a medium stands."""
    import pyarrow as pa

    place = [("file", pa.string()), ("group", pa.int32()), ("row", pa.int32())]
    return pa.schema([("media_id", pa.string()), *place])


def to_record(sample: Sample, media_id: str | None) -> dict[str, Any]:
    """A row of `rows_schema`."""
    metadata = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
    return {**sample.model_dump(mode="json"), "media_id": media_id, "metadata": metadata}


def write_records(writer: Any, records: list[dict[str, Any]]) -> None:
    """Write records of the writer's schema as one row group."""
    import pyarrow as pa

    writer.write_table(pa.Table.from_pylist(records, schema=writer.schema))


# ------------------------------------------------------------------------------------------------ the prepared data set


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A row and the frames it is about."""

    sample: Sample
    clip: Clip


INDEX = "index"
"""Key in a manifest's details: name of the file that says where each medium stands."""
_VERIFIED = ".verified.json"
_ROW_GROUPS_KEPT = 64


class PreparedSet:
    """What data preparation made: rows and frames, read when they are asked for.

    The set is a Hugging Face data set with the configurations ``rows`` and ``media``. Its rows are always on this
    machine; its frames are too, or they are read from the store in ranges (``stream``). Memory does not grow with the
    number of rows, but for some bytes per row: decoded clips are kept up to ``cache_bytes``, the longest unused going
    first. May be pickled and used after a fork.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, cache_bytes: int = 2**30, remote: tuple[Storage, str] | None = None
    ):
        """Args: ``remote``: store and prefix of the frames, where they are not in ``folder``."""
        self.folder = folder
        self.manifest = manifest
        self.video = VideoConfig.load(manifest.details["video"], manifest.manifest_uri)
        self._clips = _Clips(folder, manifest.details[INDEX], self.video, cache_bytes, remote)
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(
        cls,
        storage: Storage,
        manifest_uri: str,
        cache_dir: str | Path,
        cache_bytes: int = 2**30,
        stream: bool | None = None,
    ) -> PreparedSet:
        """Fetch the set (once, verified) to ``cache_dir`` and open it.

        Args:
            stream: fetch the rows alone, and read frames from the store when they are asked for (checked by the CRC of
                each page instead of the file's SHA-256). None: when the set would fill more than half of what is free
                below ``cache_dir``.

        Raises:
            StorageError: missing, unfinished or damaged.
        """
        manifest = Manifest.read(storage, manifest_uri)
        folder = Path(cache_dir) / manifest.fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one of several processes fetches, the others find it there
            tree = storage.tree(manifest.uri)
            if stream is None:
                missing = sum(file.size for name, file in tree.files.items() if not (folder / name).is_file())
                stream = missing > shutil.disk_usage(folder).free / 2
            names = [name for name in tree.files if not (stream and name.startswith("media/"))]
            # Checking every byte again at each start would take a large set minutes.
            if _found(folder, names) != _noted(folder):
                storage.download_dir(manifest.uri, folder, names=names)
                (folder / _VERIFIED).write_text(json.dumps(_found(folder, names)))
        return cls(folder, manifest, cache_bytes, (storage, manifest.uri) if stream else None)

    @property
    def split_names(self) -> list[str]:
        """The splits there are."""
        return sorted({path.name.split("-", 1)[0] for path in self._row_paths()})

    def _row_paths(self) -> list[Path]:
        """The files of rows that the manifest vouches for; an attempt that was cut off may have left others."""
        return sorted(self.folder / name for name in self.manifest.details["files"] if name.startswith("rows/"))

    def split(self, name: str) -> Split:
        """The rows of a split, in the order of the set.

        Raises:
            SamplesError: there is no such split.
        """
        if name not in self._splits:
            paths = [path for path in self._row_paths() if path.name.split("-", 1)[0] == name]
            if not paths:
                raise SamplesError(
                    f"no split '{name}' in {self.manifest.uri}; there are: {', '.join(self.split_names)}"
                )
            rows = _RowFiles(paths)
            self._splits[name] = Split(Rows(rows, np.arange(rows.count)), self._clips)
        return self._splits[name]


def _found(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of change of those files that are there."""
    states = {name: (folder / name).stat() for name in names if (folder / name).is_file()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in sorted(states.items())}


def _noted(folder: Path) -> dict[str, list[int]] | None:
    """What `_found` gave when the files had been verified."""
    try:
        noted: dict[str, list[int]] = json.loads((folder / _VERIFIED).read_text())
        return noted
    except (OSError, ValueError):
        return None


class Rows(Sequence[Sample]):
    """Rows without their frames, parsed when they are asked for."""

    def __init__(self, files: _RowFiles, indices: np.ndarray):
        self._files = files
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Sample | Rows:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._files.row(int(self._indices[index]))

    def __iter__(self) -> Iterator[Sample]:
        if len(self) and (np.diff(self._indices) > 0).all():
            yield from self._files.ascending(self._indices)
        else:
            yield from (self[index] for index in range(len(self)))

    def select(self, indices: Iterable[int]) -> Rows:
        """Some of the rows, in the given order."""
        return Rows(self._files, self._indices[np.fromiter(indices, dtype=np.int64)])

    def media_id(self, index: int) -> str:
        """The id of what a row is about."""
        return self._files.media_id(int(self._indices[index]))


class Split(Sequence[PreparedSample]):
    """Rows with their frames; frames are decoded when a row is taken out."""

    def __init__(self, samples: Rows, clips: _Clips):
        self.samples = samples
        """The rows without frames."""
        self._clips = clips

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> PreparedSample: ...

    @overload
    def __getitem__(self, index: slice) -> Split: ...

    def __getitem__(self, index: int | slice) -> PreparedSample | Split:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return PreparedSample(self.samples[index], self._clips.get(self.samples.media_id(index)))

    def select(self, indices: Iterable[int]) -> Split:
        """Some of the rows, in the given order; frames and cache are shared."""
        return Split(self.samples.select(indices), self._clips)


class _Groups:
    """Row groups of Parquet files, the last used ones kept. Survives a fork and pickling."""

    def __init__(self, sources: Sequence[Path | _RemoteFile], columns: Sequence[str] | None, keep: int):
        self._sources = list(sources)
        self._columns = None if columns is None else list(columns)
        self._keep = keep
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_sources", "_columns", "_keep")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def table(self, number: int, group: int) -> Any:
        """A row group of file ``number`` as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._owner != os.getpid():  # after a fork: a lock may be held by a thread that is not here
            self._forget()
        with self._lock:
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
                return self._groups[number, group]
            source = self._sources[number]
            try:
                if number not in self._files:
                    self._files[number] = pq.ParquetFile(
                        source if isinstance(source, Path) else pa.PythonFile(source.reopened(), mode="r"),
                        memory_map=isinstance(source, Path),
                        pre_buffer=not isinstance(source, Path),
                        page_checksum_verification=True,
                    )
                table = self._files[number].read_row_group(group, columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise SamplesError(
                    f"{source}: damaged ({str(error).splitlines()[0]}); fetch or prepare it again"
                ) from None
            self._groups[number, group] = table
            while len(self._groups) > self._keep:
                self._groups.popitem(last=False)
            return table


class _RowFiles:
    """The Parquet files of a split's rows, as one row of rows."""

    def __init__(self, paths: Sequence[Path]):
        import pyarrow.parquet as pq

        self._paths = list(paths)
        self._groups = _Groups(paths, None, _ROW_GROUPS_KEPT)
        self._places: list[tuple[int, int]] = []
        sizes: list[int] = []
        for number, path in enumerate(paths):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    self._places.append((number, group))
                    sizes.append(file.metadata.row_group(group).num_rows)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(self._ends[-1]) if sizes else 0

    def _find(self, index: int) -> tuple[Any, int]:
        """The table that holds a row, and its place there."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        table = self._groups.table(*self._places[place])
        return table, index - int(self._ends[place]) + table.num_rows

    def row(self, index: int) -> Sample:
        table, row = self._find(index)
        (values,) = table.slice(row, 1).to_pylist()
        return self._parse(values, index)

    def ascending(self, indices: Iterable[int]) -> Iterator[Sample]:
        """Many rows in the order of the files: their groups are taken apart once, not row by row."""
        last: Any = None
        values: list[dict[str, Any]] = []
        for index in indices:
            table, row = self._find(int(index))
            if table is not last:
                last, values = table, table.to_pylist()
            yield self._parse(values[row], int(index))

    def _parse(self, values: dict[str, Any], index: int) -> Sample:
        sample = parse_row({key: value for key, value in values.items() if key != "media_id"}, index + 1)
        if isinstance(sample, RowError):
            raise SamplesError(f"{self._paths[0].parent}: {sample}")
        return sample

    def media_id(self, index: int) -> str:
        table, row = self._find(index)
        return str(table["media_id"][row].as_py())


class _RemoteFile(io.RawIOBase):
    """An object in the store, read in ranges."""

    def __init__(self, storage: Storage, uri: str, size: int):
        self._storage, self._uri, self._size, self._position = storage, uri, size, 0

    def __reduce__(self) -> tuple[type[_RemoteFile], tuple[Storage, str, int]]:
        return _RemoteFile, (self._storage, self._uri, self._size)

    def __str__(self) -> str:
        return self._uri

    def reopened(self) -> _RemoteFile:
        """The same object with a position of its own."""
        return _RemoteFile(self._storage, self._uri, self._size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = self._size - self._position
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted <= 0:
            return b""
        data = self._storage.read_bytes(self._uri, self._position, wanted)
        self._position += len(data)
        return data


class _Clips:
    """Frames by media id, from Parquet files here or in the store, with a cache of decoded clips."""

    _COLUMNS: ClassVar = [
        *("media_id", "kind", "start_s", "end_s", "frames", "original", "original_id"),
        *("times_s", "duration_s", "height", "width"),
    ]

    def __init__(
        self, folder: Path, index: str, video: VideoConfig, cache_bytes: int, remote: tuple[Storage, str] | None
    ):
        import pyarrow.parquet as pq

        table = pq.read_table(folder / index, memory_map=True)
        names = sorted(set(table["file"].to_pylist()))
        sources: list[Path | _RemoteFile] = [folder / name for name in names]
        if remote is not None:
            storage, prefix = remote
            tree = storage.tree(prefix)
            sources = [_RemoteFile(storage, join(prefix, name), tree.files[name].size) for name in names]
        self._groups = _Groups(sources, self._COLUMNS, keep=1 if remote is None else 8)
        self._video = video
        self._cache_bytes = cache_bytes
        # 8 bytes and three numbers per medium; a dictionary of texts would take twenty times as much.
        ids = np.fromiter((int(i, 16) for i in table["media_id"].to_pylist()), np.uint64, table.num_rows)
        order = np.argsort(ids)
        self._ids = ids[order]
        number = {name: n for n, name in enumerate(names)}
        files = np.fromiter((number[name] for name in table["file"].to_pylist()), np.int32, table.num_rows)
        self._places = np.stack([files, table["group"].to_numpy(), table["row"].to_numpy()], axis=1)[order]
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Clip] = OrderedDict()
        self._cached_bytes = 0
        self._decoder: Decoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_groups", "_video", "_cache_bytes", "_ids", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def get(self, media_id: str) -> Clip:
        if self._owner != os.getpid():  # after a fork: a lock may be held by a thread that is not here
            self._forget()
        with self._lock:
            clip = self._cache.get(media_id)
            if clip is not None:
                self._cache.move_to_end(media_id)
                return clip
        clip = self._read(media_id)
        clip.frames.setflags(write=False)  # shared by everyone who asks
        with self._lock:
            if media_id not in self._cache:
                self._cache[media_id] = clip
                self._cached_bytes += clip.frames.nbytes
            while self._cached_bytes > self._cache_bytes and self._cache:
                self._cached_bytes -= self._cache.popitem(last=False)[1].frames.nbytes
        return clip

    def _record(self, media_id: str) -> dict[str, Any]:
        place = int(np.searchsorted(self._ids, np.uint64(int(media_id, 16))))
        number, group, row = (int(value) for value in self._places[place])
        record: dict[str, Any] = self._groups.table(number, group).slice(row, 1).to_pylist()[0]
        if record["media_id"] != media_id:
            raise SamplesError(f"the index of the prepared set names another medium than {media_id}; prepare it again")
        return record

    def _read(self, media_id: str) -> Clip:
        record = self._record(media_id)
        kind = cast(MediaKind, record["kind"])
        if record["frames"]:
            times_s = np.asarray(record["times_s"], dtype=np.float64)
            height, width = record["height"], record["width"]
            return EncodedClip(record["frames"], times_s, record["duration_s"], height, width, kind).decode()
        original = record["original"] or self._record(record["original_id"])["original"]
        with self._lock:
            self._decoder = self._decoder or Decoder(self._video)
        with tempfile.NamedTemporaryFile(prefix="vthink-original-") as file:
            file.write(original)
            file.flush()
            return stored(self._decoder.read(file.name, kind, record["start_s"], record["end_s"]), self._video)
