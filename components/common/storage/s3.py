"""The object store: objects one by one, and folders that are complete or do not count."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from ..whole_file import whole_file
from .config import StorageConfig
from .connection import PARALLEL_FILES, Connection, transfer_config
from .names import COMPLETE, JOURNAL, MANIFEST, StorageError, as_prefix, digest, join, sha256_file, split_uri

_JOURNAL_INTERVAL_S = 1.0


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    uri: str
    size: int
    modified: datetime  # when it was written, as the store says


@dataclass(frozen=True)
class FileInfo:
    """Size and checksum of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class TreeInfo:
    """A folder in the store."""

    uri: str
    files: dict[str, FileInfo]  # by path relative to the folder, with `/` between parts
    transferred_bytes: int = 0  # what had to be sent or fetched; the rest was already there

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


class Storage:
    """An S3-compatible store. Thread-safe; a copy in another process connects by itself. A folder counts as there once
    its marker is, which is written last and lists every file with its checksum. Every method raises `StorageError`, in
    one line, where it fails."""

    def __init__(self, config: StorageConfig):
        self.config = config
        self._connection = Connection(config)

    def __reduce__(self) -> tuple[type[Storage], tuple[StorageConfig]]:
        return Storage, (self.config,)

    def _ask(self, uri: str, action: str, missing_ok: bool = False, **arguments: Any) -> Any:
        """What S3 answers to one request about an object; None where it is ``missing_ok``."""
        bucket, key = split_uri(uri)
        return self._connection.request(
            uri, lambda client: getattr(client, action)(Bucket=bucket, Key=key, **arguments), missing_ok
        )

    def exists(self, uri: str) -> bool:
        """Whether the object is there; for a URI that ends in ``/``, whether anything is below it."""
        key = split_uri(uri)[1]
        if key.endswith("/") or not key:
            return next(self.list(uri), None) is not None
        return self._ask(uri, "head_object", missing_ok=True) is not None

    def read_bytes(self, uri: str, start: int = 0, size: int | None = None) -> bytes:
        """The object, or ``size`` (> 0) of its bytes from ``start``."""
        bucket, key = split_uri(uri)
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}

        def read(client: Any) -> bytes:
            return bytes(client.get_object(Bucket=bucket, Key=key, **part)["Body"].read())

        return bytes(self._connection.request(uri, read))

    def read_json(self, uri: str) -> Any:
        """The object parsed as JSON."""
        try:
            return json.loads(self.read_bytes(uri))
        except ValueError as error:
            raise StorageError(f"{uri} is not JSON ({error}); damaged, or cut off while written") from None

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write one small object."""
        self._ask(uri, "put_object", Body=data)

    def write_json(self, uri: str, obj: Any) -> None:
        """Write an object as indented JSON."""
        self.write_bytes(uri, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """The objects below a prefix, in the order of their keys."""
        bucket, prefix = split_uri(as_prefix(prefix_uri))
        request = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._connection.request(prefix_uri, lambda client: client.list_objects_v2(**request))
            for item in page.get("Contents", []):
                yield ObjectInfo(f"s3://{bucket}/{item['Key']}", int(item["Size"]), item["LastModified"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, uri: str) -> None:
        """Delete one object; nothing happens where there is none."""
        self._ask(uri, "delete_object", missing_ok=True)

    def delete_prefix(self, uri: str) -> None:
        """Delete everything below a prefix, markers first, so that what is left is never taken for complete."""
        if not split_uri(uri)[1].strip("/"):
            raise StorageError(f"refusing to delete the whole bucket {uri}")
        uris = [item.uri for item in self.list(uri)]
        for name in sorted(uris, key=lambda name: (not name.endswith((f"/{COMPLETE}", f"/{MANIFEST}")), name)):
            self.delete(name)

    def upload_file(self, path: Path | str, uri: str) -> None:
        """Send a file, large ones in parts."""
        bucket, key = split_uri(uri)
        if not Path(path).is_file():
            raise StorageError(f"cannot upload {path}: no such file")
        self._connection.request(uri, lambda c: c.upload_file(str(path), bucket, key, Config=transfer_config()))

    def download_file(self, uri: str, path: Path | str, expected: FileInfo | None = None) -> None:
        """Fetch an object to a file that appears under its name only when it is whole, and ``expected``."""
        bucket, key = split_uri(uri)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as partial:
            self._connection.request(
                uri, lambda c: c.download_file(bucket, key, str(partial), Config=transfer_config())
            )
            size = partial.stat().st_size
            if expected is not None and size != expected.size:
                raise StorageError(f"{uri} is damaged: {size} bytes instead of {expected.size}")
            if expected is not None and sha256_file(partial) != expected.sha256:
                raise StorageError(f"{uri} is damaged: its SHA-256 is not the one recorded when it was uploaded")

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        bucket, region, uri = self.config.bucket, self.config.region, f"s3://{self.config.bucket}/"
        if self._connection.request(uri, lambda client: client.head_bucket(Bucket=bucket), missing_ok=True) is None:
            place = {"LocationConstraint": region}
            extra = {} if region == "us-east-1" else {"CreateBucketConfiguration": place}
            self._connection.request(
                uri, lambda client: client.create_bucket(Bucket=bucket, **extra), ok={"BucketAlreadyOwnedByYou"}
            )

    def check(self) -> None:
        """Write, read and delete a small object under the configured prefix."""
        uri = join(self.config.root_uri, f".vthink-probe-{secrets.token_hex(4)}")
        data = secrets.token_bytes(16)
        self.write_bytes(uri, data)
        if self.read_bytes(uri) != data:
            raise StorageError(f"{uri}: the store gave back other bytes than were written")
        self.delete(uri)

    def is_complete(self, prefix_uri: str) -> bool:
        """Whether a folder has been uploaded to the end."""
        return self._read_tree(join(as_prefix(prefix_uri), COMPLETE)) is not None

    def tree(self, prefix_uri: str) -> TreeInfo:
        """What a complete folder holds; one that is not complete is an error."""
        prefix = as_prefix(prefix_uri)
        files = self._read_tree(join(prefix, COMPLETE))
        if files is None:
            raise StorageError(f"{prefix} is missing or its upload was never finished (no valid {COMPLETE})")
        return TreeInfo(prefix, files)

    def upload_dir(self, path: Path | str, prefix_uri: str) -> TreeInfo:
        """Send the files of a folder, several at once, then the marker that vouches for them.

        Repeated after an interruption it sends only what had not arrived. Where the prefix holds another version of the
        folder, its marker goes first and the objects it listed that are no longer there go too. A folder that is
        missing, empty, or changes meanwhile is an error."""
        prefix, paths = as_prefix(prefix_uri), _files_below(Path(path))
        before = {name: _state(file) for name, file in paths.items()}
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            shas = pool.map(sha256_file, paths.values())
            wanted = {name: FileInfo(before[name][0], sha) for name, sha in zip(paths, shas, strict=True)}

        sealed = self._read_tree(join(prefix, COMPLETE))
        arrived = sealed or self._read_tree(join(prefix, JOURNAL)) or {}
        sizes = self._sizes(prefix)
        kept = {name: f for name, f in arrived.items() if wanted.get(name) == f and sizes.get(name) == f.size}
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
            with lock:  # so that an older journal never replaces a newer one
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
            if (size := sizes.get(name, "no")) != file.size:
                raise StorageError(f"{join(prefix, name)} has {size} bytes after its upload, not {file.size}")
        self._write_tree(join(prefix, COMPLETE), wanted)
        for name in [*(set(sealed or {}) - set(wanted)), JOURNAL]:
            self.delete(join(prefix, name))
        return TreeInfo(prefix, wanted, sum(f.size for name, f in wanted.items() if name not in kept))

    def _sizes(self, prefix: str) -> dict[str, int]:
        return {item.uri.removeprefix(prefix): item.size for item in self.list(prefix)}

    def download_dir(self, prefix_uri: str, path: Path | str, names: Iterable[str] | None = None) -> TreeInfo:
        """Fetch a complete folder, or those of its files that are named; what is already here and right is kept. A
        folder that is not complete, a damaged file, and a name that would leave ``path`` are errors."""
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

        _in_parallel(fetch, tree.files)
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


def _in_parallel(action: Callable[[str], None], names: Iterable[str]) -> None:
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
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not (p.name[0] == "." and p.suffix == ".part")]
    files = {name: p for p in paths if (name := p.relative_to(folder).as_posix()) not in (COMPLETE, JOURNAL)}
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
