"""The row: one question about one video or image, its answer, and what is known about why. And the prepared
data set.

Everything downstream knows only `Sample`; data sets and benchmarks are adapters into it. Rows come from
strangers, so reading never fails on a row: a bad one comes out as a `RowError` with its line and reason, and
reading goes on.

Neither torch nor, at import, pyarrow is needed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import string
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, cast, overload

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from .config import Section, VideoConfig, describe
from .storage import Manifest, Storage
from .video import Clip, EncodedClip, MediaKind

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


def _from_jsonl(file: IO[bytes] | IO[str]) -> Iterator[tuple[int, Sample | RowError]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
        if len(line) > MAX_LINE_BYTES:
            rest: bytes | str = line
            while rest and rest[-1:] not in (b"\n", "\n"):
                rest = file.readline(MAX_LINE_BYTES)
            yield (number, RowError(number, f"longer than {MAX_LINE_BYTES} bytes", _raw(data[:_RAW_CHARACTERS])))
            continue
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if data.strip():
            yield number, _parse_line(data, number)


def _parse_line(data: bytes, number: int) -> Sample | RowError:
    try:
        row = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return RowError(number, f"not JSON ({error.msg}, column {error.colno})", _raw(data))
    except UnicodeDecodeError as error:
        return RowError(number, f"not UTF-8 (byte {error.start + 1})", _raw(data))
    except RecursionError:
        return RowError(number, "JSON nested too deeply", _raw(data))
    except ValueError as error:
        return RowError(number, str(error), _raw(data))
    return parse_row(row, number)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"not JSON ({name} is not a number)")


def _from_parquet(path: Path) -> Iterator[tuple[int, Sample | RowError]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=1024, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    # The first is ours (prepared rows say where their frames are), the others are pandas's.
                    plain = {k: v for k, v in row.items() if k != "media_id" and not k.startswith("__index_level_")}
                    yield number, parse_row(plain, number)
    except (pa.ArrowException, OSError) as error:
        raise SamplesError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def parse_row(row: Any, number: int) -> Sample | RowError:
    """A row as JSON gives it, as a `Sample`; null counts as not there, because Arrow fills what is not there
    with null.

    ``metadata`` may be JSON text, as it is in Parquet files of ours.
    """
    if not isinstance(row, Mapping):
        return RowError(number, f"expected an object, got {type(row).__name__}", _raw(row))
    try:
        plain = {key: _without_nulls(value) for key, value in row.items() if value is not None}
        if isinstance(metadata := plain.get("metadata"), str):
            plain["metadata"] = json.loads(metadata, parse_constant=_refuse_constant)
        return Sample.model_validate(plain)
    except ValidationError as error:
        return RowError(number, describe(error, Sample), _raw(row))
    except json.JSONDecodeError as error:
        return RowError(number, f"metadata is text, but not JSON ({error.msg})", _raw(row))
    except (ValueError, RecursionError) as error:
        return RowError(number, str(error)[:200] or type(error).__name__, _raw(row))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def _raw(row: Any) -> str:
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
    questions."""
    import pyarrow as pa

    return pa.schema(
        [
            ("media_id", pa.string()),
            ("kind", pa.string()),
            ("uri", pa.string()),
            ("sha256", pa.string()),
            ("frames", pa.list_(pa.binary())),
            ("times_s", pa.list_(pa.float64())),
            ("duration_s", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
    )


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


class PreparedSet:
    """What data preparation made, on this machine: rows, and frames that are decoded once.

    The folder is a Hugging Face data set with the configurations ``rows`` and ``media``. Decoded clips are
    kept in memory up to ``cache_bytes``, the longest unused going first. May be pickled and used after a
    fork.
    """

    def __init__(self, folder: Path, manifest: Manifest, cache_bytes: int = 2**30):
        self.folder = folder
        self.manifest = manifest
        self.video = VideoConfig.load(manifest.details["video"], manifest.manifest_uri)
        self._clips = _Clips(sorted((folder / "media").glob("*.parquet")), cache_bytes)
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, storage: Storage, manifest_uri: str, cache_dir: str | Path, cache_bytes: int = 2**30) -> PreparedSet:
        """Fetch the set (once, verified) to ``cache_dir`` and open it.

        Raises:
            StorageError: missing, unfinished or damaged.
        """
        manifest = Manifest.read(storage, manifest_uri)
        folder = Path(cache_dir) / manifest.fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one of several processes fetches, the others find it there
            storage.download_dir(manifest.uri, folder)
        return cls(folder, manifest, cache_bytes)

    @property
    def split_names(self) -> list[str]:
        """The splits there are."""
        return sorted({path.name.rsplit("-", 1)[0] for path in (self.folder / "rows").glob("*.parquet")})

    def split(self, name: str) -> Split:
        """The rows of a split, in the order of the source.

        Raises:
            SamplesError: there is no such split.
        """
        if name not in self._splits:
            paths = sorted((self.folder / "rows").glob(f"{name}-*.parquet"))
            if not paths:
                raise SamplesError(
                    f"no split '{name}' in {self.manifest.uri}; there are: {', '.join(self.split_names)}"
                )
            self._splits[name] = self._read_split(paths)
        return self._splits[name]

    def _read_split(self, paths: Sequence[Path]) -> Split:
        import pyarrow.parquet as pq

        samples: list[Sample] = []
        media_ids: list[str] = []
        for path in paths:
            media_ids += pq.read_table(path, columns=["media_id"])["media_id"].to_pylist()
            for row in read_samples(path):
                if isinstance(row, RowError):
                    raise SamplesError(f"{path}: {row}")
                samples.append(row)
        return Split(samples, media_ids, self._clips)


class Split(Sequence[PreparedSample]):
    """Rows with their frames; frames are decoded when a row is taken out."""

    def __init__(self, samples: list[Sample], media_ids: list[str], clips: _Clips):
        self.samples = samples
        """The rows without frames."""
        self._media_ids = media_ids
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
        return PreparedSample(self.samples[index], self._clips.get(self._media_ids[index]))

    def select(self, indices: Iterable[int]) -> Split:
        """Some of the rows, in the given order; frames and cache are shared."""
        chosen = [int(index) for index in indices]
        return Split([self.samples[i] for i in chosen], [self._media_ids[i] for i in chosen], self._clips)


class _Clips:
    """Frames by media id, read from memory-mapped Parquet files, with a cache of decoded clips."""

    def __init__(self, paths: Sequence[Path], cache_bytes: int):
        import pyarrow.parquet as pq

        self._paths = list(paths)
        self._cache_bytes = cache_bytes
        self._where: dict[str, tuple[int, int, int]] = {}
        for number, path in enumerate(self._paths):
            with pq.ParquetFile(path, memory_map=True) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, columns=["media_id"], use_threads=False)["media_id"].to_pylist()
                    self._where.update((media_id, (number, group, row)) for row, media_id in enumerate(ids))
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[int, Any] = {}
        self._cache: OrderedDict[str, Clip] = OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_paths", "_cache_bytes", "_where")}

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
            encoded = self._read(media_id)
        clip = encoded.decode()
        clip.frames.setflags(write=False)  # shared by everyone who asks
        with self._lock:
            if media_id not in self._cache:
                self._cache[media_id] = clip
                self._cached_bytes += clip.frames.nbytes
            while self._cached_bytes > self._cache_bytes and self._cache:
                self._cached_bytes -= self._cache.popitem(last=False)[1].frames.nbytes
        return clip

    def _read(self, media_id: str) -> EncodedClip:
        import pyarrow.parquet as pq

        number, group, row = self._where[media_id]
        if number not in self._files:
            self._files[number] = pq.ParquetFile(self._paths[number], memory_map=True)
        columns = ["frames", "times_s", "duration_s", "height", "width", "kind"]
        table = self._files[number].read_row_group(group, columns=columns, use_threads=False)
        record = table.slice(row, 1).to_pylist()[0]
        times_s = np.asarray(record["times_s"], dtype=np.float64)
        kind = cast(MediaKind, record["kind"])
        return EncodedClip(record["frames"], times_s, record["duration_s"], record["height"], record["width"], kind)
