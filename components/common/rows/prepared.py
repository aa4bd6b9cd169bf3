"""A prepared set: rows and frames, read when they are asked for."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from ..errors import UserError
from ..storage.manifest import Manifest
from ..storage.s3 import Storage
from ..video.clip import Clip
from ..video.config import VideoConfig
from .clips import _Clips
from .row_groups import _RowFiles
from .sample import Sample


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A row and the frames it is about."""

    sample: Sample
    clip: Clip


INDEX = "index"
"""Key in a manifest's details: name of the file that says where each medium stands."""


_VERIFIED = ".verified.json"


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
            UserError: there is no such split.
        """
        if name not in self._splits:
            paths = [path for path in self._row_paths() if path.name.split("-", 1)[0] == name]
            if not paths:
                raise UserError(f"no split '{name}' in {self.manifest.uri}; there are: {', '.join(self.split_names)}")
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
