"""The object store: objects, and folders that are complete or do not count."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .config import StorageConfig
from .connection import PARALLEL_FILES
from .names import COMPLETE, JOURNAL, StorageError, as_prefix, digest, join, sha256_file
from .objects import FileInfo, ObjectStore

_JOURNAL_INTERVAL_S = 1.0


@dataclass(frozen=True)
class TreeInfo:
    """A folder in the store."""

    uri: str
    files: dict[str, FileInfo]
    """By path relative to the folder, with ``/`` between parts."""
    transferred_bytes: int = 0
    """Bytes that had to be sent or fetched; the rest was already there."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


class Storage(ObjectStore):
    """An S3-compatible store. Thread-safe; a copy in another process connects by itself.

    A folder counts as there once its marker is, which is written last and lists every file with its checksum.
    """

    def __reduce__(self) -> tuple[type[Storage], tuple[StorageConfig]]:
        return Storage, (self.config,)

    def is_complete(self, prefix_uri: str) -> bool:
        """Whether a folder has been uploaded to the end."""
        return self._read_tree(join(as_prefix(prefix_uri), COMPLETE)) is not None

    def tree(self, prefix_uri: str) -> TreeInfo:
        """What a complete folder holds.

        Raises:
            StorageError: it is not complete.
        """
        prefix = as_prefix(prefix_uri)
        files = self._read_tree(join(prefix, COMPLETE))
        if files is None:
            raise StorageError(f"{prefix} is missing or its upload was never finished (no valid {COMPLETE})")
        return TreeInfo(prefix, files)

    def upload_dir(self, path: Path | str, prefix_uri: str) -> TreeInfo:
        """Send the files of a folder, several at once, then the marker that vouches for them.

        Repeated after an interruption it sends only what had not arrived. Where the prefix holds another
        version of the folder, its marker goes first and the objects it listed that are no longer there go
        too.

        Raises:
            StorageError: the folder is missing, empty, or changes meanwhile; or the store fails.
        """
        prefix, paths = as_prefix(prefix_uri), _files_below(Path(path))
        before = {name: _state(file) for name, file in paths.items()}
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            shas = pool.map(sha256_file, paths.values())
            wanted = {name: FileInfo(before[name][0], sha) for name, sha in zip(paths, shas, strict=True)}

        sealed = self._read_tree(join(prefix, COMPLETE))
        arrived = sealed or self._read_tree(join(prefix, JOURNAL)) or {}
        sizes = self._sizes(prefix)
        kept = {
            name: file for name, file in arrived.items() if wanted.get(name) == file and sizes.get(name) == file.size
        }
        if sealed == wanted == kept:
            return TreeInfo(prefix, wanted)
        # From here on the prefix is unfinished, and nothing may vouch for an object that is about to change.
        self._write_tree(join(prefix, JOURNAL), kept)
        self.delete(join(prefix, COMPLETE))

        done, lock, journal_s = dict(kept), threading.Lock(), time.monotonic()

        def send(name: str) -> None:
            nonlocal journal_s
            self.upload_file(paths[name], join(prefix, name))
            if _state(paths[name]) != before[name]:
                raise StorageError(f"{paths[name]} changed while it was being uploaded")
            # Written under the lock, so that an older journal never replaces a newer one.
            with lock:
                done[name] = wanted[name]
                if time.monotonic() - journal_s >= _JOURNAL_INTERVAL_S:
                    self._write_tree(join(prefix, JOURNAL), done)
                    journal_s = time.monotonic()

        try:
            _in_parallel(send, [name for name in wanted if name not in kept])
        except StorageError:
            # What has arrived need not be sent again. The store may be away, and has been waited for already.
            with contextlib.suppress(StorageError):
                Storage(self.config.model_copy(update={"outage_s": 0.0}))._write_tree(join(prefix, JOURNAL), done)
            raise
        sizes = self._sizes(prefix)
        for name, file in wanted.items():
            if sizes.get(name) != file.size:
                got = sizes.get(name, "no")
                raise StorageError(f"{join(prefix, name)} has {got} bytes after its upload, not {file.size}")
        self._write_tree(join(prefix, COMPLETE), wanted)
        for name in [*(set(sealed or {}) - set(wanted)), JOURNAL]:
            self.delete(join(prefix, name))
        return TreeInfo(prefix, wanted, sum(f.size for name, f in wanted.items() if name not in kept))

    def _sizes(self, prefix: str) -> dict[str, int]:
        return {item.uri.removeprefix(prefix): item.size for item in self.list(prefix)}

    def download_dir(self, prefix_uri: str, path: Path | str, names: Iterable[str] | None = None) -> TreeInfo:
        """Fetch a complete folder; files that are already here and right are kept.

        Args:
            prefix_uri: the folder in the store.
            path: where to; made when missing.
            names: only these of its files; null: all.

        Raises:
            StorageError: the folder is not complete, a file is missing or damaged, or a name would leave ``path``.
        """
        tree, folder = self.tree(prefix_uri), Path(path)
        if names is not None:
            tree = TreeInfo(tree.uri, {name: tree.files[name] for name in names})
        folder.mkdir(parents=True, exist_ok=True)
        targets = {name: _inside(folder, name, tree.uri) for name in tree.files}
        fetched: list[int] = []

        def fetch(name: str) -> None:
            file, target = tree.files[name], targets[name]
            here = target.is_file() and target.stat().st_size == file.size
            if not (here and sha256_file(target) == file.sha256):
                self.download_file(join(tree.uri, name), target, file)
                fetched.append(file.size)

        _in_parallel(fetch, list(tree.files))
        return TreeInfo(tree.uri, tree.files, sum(fetched))

    def mark_complete(self, prefix_uri: str, files: dict[str, FileInfo]) -> None:
        """Vouch for files that were sent one by one, for example by several tasks; the last thing to do."""
        self._write_tree(join(as_prefix(prefix_uri), COMPLETE), files)

    def _write_tree(self, uri: str, files: dict[str, FileInfo]) -> None:
        listing = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(files.items())}
        self.write_json(uri, {"files": listing, "sha256": digest(listing)})

    def _read_tree(self, uri: str) -> dict[str, FileInfo] | None:
        """The listing of a marker or journal; None where there is none or it was cut off."""
        if not self.exists(uri):
            return None
        data = self.read_bytes(uri)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            tree = json.loads(data)
            listing = tree["files"]
            if listing and tree["sha256"] == digest(listing):
                return {name: FileInfo(int(file["size"]), str(file["sha256"])) for name, file in listing.items()}
        return None


def _in_parallel(action: Callable[[str], None], names: list[str]) -> None:
    """Do it for every name, several at once; the first error ends it, without beginning what has not begun."""
    pool = ThreadPoolExecutor(PARALLEL_FILES)
    try:
        for future in as_completed([pool.submit(action, name) for name in names]):
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change of a file, by which a change is noticed."""
    try:
        stat = path.stat()
    except OSError as error:
        raise StorageError(f"cannot upload {path}: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns


def _files_below(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative POSIX path, sorted; links to files are followed."""
    if not folder.is_dir():
        raise StorageError(f"cannot upload {folder}: no such folder")
    files = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not (file.name.startswith(".") and file.name.endswith(".part"))
    }
    for reserved in (COMPLETE, JOURNAL):
        files.pop(reserved, None)
    if not files:
        raise StorageError(f"cannot upload {folder}: it holds no files")
    return files


def _inside(folder: Path, name: str, uri: str) -> Path:
    """Where a name of a listing goes below ``folder``; a name that would leave it is refused."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name
    target = folder / name if plain else folder
    if not plain or not target.resolve().is_relative_to(folder.resolve()):
        raise StorageError(f"{uri}{COMPLETE} lists {name!r}, which would be written outside of {folder}; refused")
    return target
