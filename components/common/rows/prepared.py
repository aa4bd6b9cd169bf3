"""A prepared set: rows and frames, read when they are asked for."""

from __future__ import annotations

import copy
import fcntl
import io
import json
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast, overload

import numpy as np

from ..config import Section
from ..errors import UserError, first_line
from ..storage.manifest import Manifest
from ..storage.names import join
from ..storage.s3 import Storage
from ..video.clip import Clip, EncodedClip, stored
from ..video.config import MediaKind, VideoConfig
from ..video.workers import Decoder
from .files import RowError, parse_row
from .sample import Sample

_VERIFIED = ".verified.json"
_ROW_GROUPS_KEPT = 64
RemoteSource = tuple[Storage, str, int]  # an object in the store: where, its URI and its size in bytes


class _RemoteFile(io.RawIOBase):
    """An object in the store as a file; each read is a request for a range of it."""

    def __init__(self, storage: Storage, uri: str, size: int):
        self._storage, self._uri, self._size, self._position = storage, uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

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


class PerProcess:
    """What survives pickling and a fork, after which a lock may be held by a thread that is not there. The attributes
    named in ``KEPT`` go along; `_forget` makes the others anew."""

    KEPT: ClassVar[tuple[str, ...]]

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def _forget_after_fork(self) -> None:
        if self._owner != os.getpid():
            self._forget()

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.KEPT}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()


class RowGroups(PerProcess):
    """Row groups of Parquet files, the last used ones kept."""

    KEPT = ("_sources", "_columns", "_keep")

    def __init__(self, sources: Sequence[Path | RemoteSource], columns: Sequence[str] | None, keep: int):
        self._sources, self._columns, self._keep = list(sources), columns, keep
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def table(self, number: int, group: int) -> Any:
        """A row group of file ``number`` as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._forget_after_fork()
        with self._lock:
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
                return self._groups[number, group]
            source = self._sources[number]
            here = isinstance(source, Path)
            try:
                if number not in self._files:
                    file = source if isinstance(source, Path) else pa.PythonFile(_RemoteFile(*source), mode="r")
                    self._files[number] = pq.ParquetFile(
                        file, memory_map=here, pre_buffer=not here, page_checksum_verification=True
                    )
                table = self._files[number].read_row_group(group, columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                name = source if isinstance(source, Path) else source[1]
                raise UserError(f"{name}: damaged ({first_line(error)}); fetch or prepare it again") from None
            self._groups[number, group] = table
            while len(self._groups) > self._keep:
                self._groups.popitem(last=False)
            return table


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A row and the frames it is about."""

    sample: Sample
    clip: Clip


class PreparedFiles(Section):
    """What the manifest of a prepared set says in its ``files``: URIs."""

    data: str  # the set's prefix
    quarantine: str  # every row that is left out, with its reason
    card: str  # what is in it, in numbers
    contamination: str  # what training and evaluation share
    report: str  # all of this as an HTML page


class PreparedDetails(Section):
    """What the manifest of a prepared set says in its ``details``."""

    video: VideoConfig  # how its videos became frames
    index: str  # the file that says where each medium stands
    files: dict[str, tuple[int, str]]  # size and SHA-256 of every file, by its name in the set
    codec: str | None = None  # how frames are stored
    format: str | None = None  # the format of the rows that it was made from
    source_sha256: str | None = None  # of those rows' file


class PreparedSet:
    """What data preparation made: rows and frames, read when they are asked for.

    The set is a Hugging Face data set with the configurations ``rows`` and ``media``. Its rows are always on this
    machine; its frames are too, or they are read from the store in ranges (``stream``). Memory does not grow with the
    number of rows, but for some bytes per row: decoded clips are kept up to ``cache_bytes``, the longest unused going
    first. May be pickled and used after a fork."""

    def __init__(
        self, folder: Path, manifest: Manifest, cache_bytes: int = 2**30, remote: tuple[Storage, str] | None = None
    ):
        """``remote``: store and prefix of the frames, where they are not in ``folder``."""
        self.folder, self.manifest = folder, manifest
        self.details = PreparedDetails.load(manifest.details, manifest.manifest_uri)
        self.video = self.details.video
        self._clips = _ClipReader(folder, self.details.index, self.video, cache_bytes, remote)
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
        """Fetch the set (once, verified) to ``cache_dir`` and open it; a `StorageError` where it is not whole.

        With ``stream`` only the rows are fetched, and frames are read from the store when they are asked for (checked
        by the CRC of each page instead of the file's SHA-256); None: when the set would fill more than half of what is
        free there."""
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

    def _row_paths(self) -> list[Path]:
        """The files of rows that the manifest vouches for; an attempt that was cut off may have left others."""
        return sorted(self.folder / name for name in self.details.files if name.startswith("rows/"))

    @property
    def split_names(self) -> list[str]:
        """The splits there are."""
        return sorted({path.name.split("-", 1)[0] for path in self._row_paths()})

    def split(self, name: str) -> Split:
        """The rows of a split, in the order of the set."""
        if name not in self._splits:
            paths = [path for path in self._row_paths() if path.name.split("-", 1)[0] == name]
            if not paths:
                raise UserError(f"no split '{name}' in {self.manifest.uri}; there are: {', '.join(self.split_names)}")
            self._splits[name] = Split(Rows(paths), self._clips)
        return self._splits[name]


def _found(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of change of those files that are there."""
    states = {name: (folder / name).stat() for name in names if (folder / name).is_file()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in sorted(states.items())}


def _noted(folder: Path) -> Any:
    """What `_found` gave when the files had been verified."""
    try:
        return json.loads((folder / _VERIFIED).read_text())
    except (OSError, ValueError):
        return None


class Rows(Sequence[Sample]):
    """Rows of Parquet files without their frames, parsed when they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        import pyarrow.parquet as pq

        self._folder = paths[0].parent
        self._groups = RowGroups(paths, None, _ROW_GROUPS_KEPT)
        self._places: list[tuple[int, int]] = []  # file and row group
        sizes: list[int] = []
        for number, path in enumerate(paths):
            with pq.ParquetFile(path) as file:
                self._places += [(number, group) for group in range(file.num_row_groups)]
                sizes += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._indices = np.arange(sum(sizes))

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Sample | Rows:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        row = int(self._indices[index])
        table, place = self._find(row)
        return self._parse(table.slice(place, 1).to_pylist()[0], row)

    def __iter__(self) -> Iterator[Sample]:
        if (np.diff(self._indices) <= 0).any():
            yield from (self[index] for index in range(len(self)))
            return
        # In the order of the files: their groups are taken apart once, not row by row.
        last, values = None, []
        for row in map(int, self._indices):
            table, place = self._find(row)
            if table is not last:
                last, values = table, table.to_pylist()
            yield self._parse(values[place], row)

    def _find(self, row: int) -> tuple[Any, int]:
        """The table that holds a row, and its place there."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        table = self._groups.table(*self._places[number])
        return table, row - int(self._ends[number]) + table.num_rows

    def _parse(self, values: dict[str, object], row: int) -> Sample:
        sample = parse_row({key: value for key, value in values.items() if key != "media_id"}, row + 1)
        if isinstance(sample, RowError):
            raise UserError(f"{self._folder}: {sample}")
        return sample

    def select(self, indices: Iterable[int]) -> Rows:
        """Some of the rows, in the given order."""
        chosen = copy.copy(self)
        chosen._indices = self._indices[np.fromiter(indices, dtype=np.int64)]
        return chosen

    def media_id(self, index: int) -> str:
        """The id of what a row is about."""
        table, place = self._find(int(self._indices[index]))
        return str(table["media_id"][place].as_py())


class Split(Sequence[PreparedSample]):
    """Rows (``samples``) with their frames, which are decoded when a row is taken out."""

    def __init__(self, samples: Rows, clips: _ClipReader):
        self.samples = samples
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


class _ClipReader(PerProcess):
    """Frames by media id, from Parquet files here or in the store, with a cache of decoded clips."""

    KEPT = ("_groups", "_video", "_cache_bytes", "_ids", "_places")

    def __init__(
        self, folder: Path, index: str, video: VideoConfig, cache_bytes: int, remote: tuple[Storage, str] | None
    ):
        import pyarrow.parquet as pq

        self._video, self._cache_bytes = video, cache_bytes
        table = pq.read_table(folder / index, memory_map=True)
        names = sorted(set(table["file"].to_pylist()))
        sources: list[Path | RemoteSource] = [folder / name for name in names]
        if remote is not None:
            storage, prefix = remote
            tree = storage.tree(prefix)
            sources = [(storage, join(prefix, name), tree.files[name].size) for name in names]
        columns = ["media_id", "kind", "start_s", "end_s", "frames", "original", "original_id"]
        columns += ["times_s", "duration_s", "height", "width"]
        self._groups = RowGroups(sources, columns, keep=1 if remote is None else 8)
        # 8 bytes and three numbers per medium; a dictionary of texts would take twenty times as much.
        ids = np.fromiter((int(i, 16) for i in table["media_id"].to_pylist()), np.uint64, table.num_rows)
        number = {name: n for n, name in enumerate(names)}
        files = np.fromiter((number[name] for name in table["file"].to_pylist()), np.int32, table.num_rows)
        order = np.argsort(ids)
        self._ids = ids[order]
        self._places = np.stack([files, table["group"].to_numpy(), table["row"].to_numpy()], axis=1)[order]
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._cache: OrderedDict[str, Clip] = OrderedDict()
        self._cached_bytes = 0
        self._decoder: Decoder | None = None

    def get(self, media_id: str) -> Clip:
        """The frames of a medium; those used last are kept. They are shared: not to be written to."""
        self._forget_after_fork()
        with self._lock:
            if media_id in self._cache:
                self._cache.move_to_end(media_id)
                return self._cache[media_id]
        clip = self._read(media_id)
        clip.frames.setflags(write=False)
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
            raise UserError(f"the index of the prepared set names another medium than {media_id}; prepare it again")
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
