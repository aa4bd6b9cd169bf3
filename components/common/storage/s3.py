"""The object store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .config import StorageConfig
from .connection import (
    _BAD_KEYS,
    _BUSY,
    _MISSING,
    _PARALLEL_FILES,
    _UNEXPLAINED,
    _cause,
    _code,
    _connect,
    _first_line,
    _session,
    _transfer,
)
from .names import COMPLETE, JOURNAL, MANIFEST, StorageError, as_prefix, canonical_json, join, sha256_file, split_uri

T = TypeVar("T")


_log = logging.getLogger(__name__)


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


_JOURNAL_INTERVAL_S = 1.0


_LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    uri: str
    size: int
    modified: datetime
    """When it was written, as the store says."""


@dataclass(frozen=True)
class FileInfo:
    """Size and checksum of one file."""

    size: int
    sha256: str


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


class Storage:
    """An S3-compatible store. Thread-safe; a copy in another process connects by itself."""

    def __init__(self, config: StorageConfig):
        self.config = config
        self._lock = threading.Lock()
        self._connected: Any = None
        self._reached = False
        """Whether the store has answered anything yet."""
        self._worked = False
        """Whether it has taken our keys yet."""

    def __reduce__(self) -> tuple[type[Storage], tuple[StorageConfig]]:
        return Storage, (self.config,)

    # --- objects --------------------------------------------------------------------------------------------

    def exists(self, uri: str) -> bool:
        """Whether the object is there; for a URI that ends in ``/``, whether anything is below it."""
        bucket, key = split_uri(uri)
        if key.endswith("/") or not key:
            return next(self.list(uri), None) is not None
        return self._do(uri, lambda client: client.head_object(Bucket=bucket, Key=key), missing_ok=True) is not None

    def read_bytes(self, uri: str, start: int = 0, size: int | None = None) -> bytes:
        """The object, or ``size`` (> 0) of its bytes from ``start``."""
        bucket, key = split_uri(uri)
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        return bytes(self._do(uri, lambda client: client.get_object(Bucket=bucket, Key=key, **part)["Body"].read()))

    def read_json(self, uri: str) -> Any:
        """The object parsed as JSON."""
        data = self.read_bytes(uri)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"{uri} is not JSON ({error}); damaged, or cut off while written") from None

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write one small object."""
        bucket, key = split_uri(uri)
        self._do(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data))

    def write_json(self, uri: str, obj: Any) -> None:
        """Write an object as indented JSON."""
        self.write_bytes(uri, json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """The objects below a prefix, in the order of their keys."""
        bucket, prefix = split_uri(as_prefix(prefix_uri))
        asked = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._do(prefix_uri, lambda client: client.list_objects_v2(**asked))
            for item in page.get("Contents", []):
                yield ObjectInfo(f"s3://{bucket}/{item['Key']}", int(item["Size"]), item["LastModified"])
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, uri: str) -> None:
        """Delete one object; nothing happens where there is none."""
        bucket, key = split_uri(uri)
        self._do(uri, lambda client: client.delete_object(Bucket=bucket, Key=key), missing_ok=True)

    def delete_prefix(self, uri: str) -> None:
        """Delete everything below a prefix, markers first, so that what is left is never taken for complete.

        Raises:
            StorageError: the prefix is a whole bucket.
        """
        if not split_uri(uri)[1].strip("/"):
            raise StorageError(f"refusing to delete the whole bucket {uri}")
        found = [item.uri for item in self.list(uri)]
        for name in sorted(found, key=lambda name: (not name.endswith((f"/{COMPLETE}", f"/{MANIFEST}")), name)):
            self.delete(name)

    # --- files ----------------------------------------------------------------------------------------------

    def upload_file(self, path: Path | str, uri: str, progress: Callable[[int], None] | None = None) -> None:
        """Send a file, large ones in parts; ``progress`` gets the bytes sent since its last call."""
        bucket, key = split_uri(uri)
        if not Path(path).is_file():
            raise StorageError(f"cannot upload {path}: no such file")
        self._do(uri, lambda client: client.upload_file(str(path), bucket, key, Config=_transfer(), Callback=progress))

    def download_file(self, uri: str, path: Path | str, progress: Callable[[int], None] | None = None) -> None:
        """Fetch an object to a file that appears under its name only when it is whole."""
        self._download(uri, Path(path), None, progress)

    def _download(
        self, uri: str, path: Path, expected: FileInfo | None, progress: Callable[[int], None] | None
    ) -> None:
        bucket, key = split_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self._do(
                uri,
                lambda client: client.download_file(bucket, key, str(partial), Config=_transfer(), Callback=progress),
            )
            if expected is not None:
                _check_file(partial, expected, uri)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    # --- folders --------------------------------------------------------------------------------------------

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

    def upload_dir(self, path: Path | str, prefix_uri: str, progress: Progress | None = None) -> TreeInfo:
        """Send the files of a folder, several at once, then the marker that vouches for them.

        Repeated after an interruption it sends only what had not arrived. Where the prefix holds another
        version of the folder, its marker goes first and the objects it listed that are no longer there go
        too.

        Raises:
            StorageError: the folder is missing, empty, or changes meanwhile; or the store fails.
        """
        prefix, paths = as_prefix(prefix_uri), _files_below(Path(path))
        before = {name: _state(file) for name, file in paths.items()}
        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            shas = pool.map(sha256_file, paths.values())
            wanted = {name: FileInfo(before[name][0], sha) for name, sha in zip(paths, shas, strict=True)}
        meter = _Meter(progress, sum(file.size for file in wanted.values()))

        sealed = self._read_tree(join(prefix, COMPLETE))
        arrived = sealed or self._read_tree(join(prefix, JOURNAL)) or {}
        sizes = self._sizes(prefix)
        kept = {
            name: file for name, file in arrived.items() if wanted.get(name) == file and sizes.get(name) == file.size
        }
        meter.add(sum(file.size for file in kept.values()))
        if sealed == wanted == kept:
            return TreeInfo(prefix, wanted)
        # From here on the prefix is unfinished, and nothing may vouch for an object that is about to change.
        self._write_tree(join(prefix, JOURNAL), kept)
        self.delete(join(prefix, COMPLETE))

        done, lock, journal_s = dict(kept), threading.Lock(), time.monotonic()

        def send(name: str) -> None:
            nonlocal journal_s
            self.upload_file(paths[name], join(prefix, name), meter.add)
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

    def download_dir(
        self,
        prefix_uri: str,
        path: Path | str,
        verify: bool = True,
        progress: Progress | None = None,
        names: Iterable[str] | None = None,
    ) -> TreeInfo:
        """Fetch a complete folder; files that are already here and right are kept.

        Args:
            prefix_uri: the folder in the store.
            path: where to; made when missing.
            verify: check every file's SHA-256 (else only its size), both the fetched and the kept ones.
            progress: called with (bytes done, bytes in all).
            names: only these of its files; null: all.

        Raises:
            StorageError: the folder is not complete, a file is missing or damaged, or a name would leave
            ``path``.
        """
        tree, folder = self.tree(prefix_uri), Path(path)
        if names is not None:
            tree = TreeInfo(tree.uri, {name: tree.files[name] for name in names})
        folder.mkdir(parents=True, exist_ok=True)
        targets = {name: _inside(folder, name, tree.uri) for name in tree.files}
        meter = _Meter(progress, tree.total_bytes)
        fetched: list[int] = []

        def fetch(name: str) -> None:
            file, target = tree.files[name], targets[name]
            here = target.is_file() and target.stat().st_size == file.size
            if here and (not verify or sha256_file(target) == file.sha256):
                meter.add(file.size)
                return
            expected = file if verify else FileInfo(file.size, "")
            self._download(join(tree.uri, name), target, expected, meter.add)
            fetched.append(file.size)

        _in_parallel(fetch, list(tree.files))
        return TreeInfo(tree.uri, tree.files, sum(fetched))

    def mark_complete(self, prefix_uri: str, files: dict[str, FileInfo]) -> None:
        """Vouch for files that were sent one by one, for example by several tasks; the last thing to do."""
        self._write_tree(join(as_prefix(prefix_uri), COMPLETE), files)

    def _write_tree(self, uri: str, files: dict[str, FileInfo]) -> None:
        listing = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(files.items())}
        self.write_json(uri, {"files": listing, "sha256": _digest(listing)})

    def _read_tree(self, uri: str) -> dict[str, FileInfo] | None:
        """The listing of a marker or journal; None where there is none or it was cut off."""
        if not self.exists(uri):
            return None
        data = self.read_bytes(uri)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            tree = json.loads(data)
            listing = tree["files"]
            if listing and tree["sha256"] == _digest(listing):
                return {name: FileInfo(int(file["size"]), str(file["sha256"])) for name, file in listing.items()}
        return None

    # --- the connection -------------------------------------------------------------------------------------

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        bucket, uri = self.config.bucket, f"s3://{self.config.bucket}/"
        if self._do(uri, lambda client: client.head_bucket(Bucket=bucket), missing_ok=True) is not None:
            return
        extra: dict[str, Any] = {}
        if self.config.region != "us-east-1":
            extra["CreateBucketConfiguration"] = {"LocationConstraint": self.config.region}
        self._do(uri, lambda client: client.create_bucket(Bucket=bucket, **extra), ok={"BucketAlreadyOwnedByYou"})

    def check(self) -> None:
        """Write, read and delete a small object under the configured prefix.

        Raises:
            StorageError: in one line, what does not work and what to look at.
        """
        uri = join(self.config.root_uri, f".vthink-probe-{secrets.token_hex(4)}")
        data = secrets.token_bytes(16)
        self.write_bytes(uri, data)
        if self.read_bytes(uri) != data:
            raise StorageError(f"{uri}: the store gave back other bytes than were written")
        self.delete(uri)

    @property
    def _client(self) -> Any:
        """The boto3 client. Its first use fails within seconds when the endpoint is down or the keys are missing."""
        if self._connected is None:
            with self._lock:
                if self._connected is None:
                    from botocore.exceptions import ClientError

                    session = _session()
                    with contextlib.suppress(ClientError):
                        probe = _connect(session, self.config, attempts=2, connect_timeout_s=3, read_timeout_s=5)
                        probe.head_bucket(Bucket=self.config.bucket)
                    self._connected = _connect(
                        session, self.config, attempts=3, connect_timeout_s=10, read_timeout_s=60
                    )
                    self._reached = True
        return self._connected

    def _do(self, uri: str, action: Callable[[Any], T], missing_ok: bool = False, ok: Collection[str] = ()) -> T | Any:
        """Ask the store for something, again and again while it is out of order; what boto3 raises becomes one line.

        Args:
            uri: what it is about, for the message.
            action: gets the boto3 client. Whatever it does may happen twice, which no request here minds.
            missing_ok: None is returned when the object is not there.
            ok: error codes for which None is returned as well.
        """
        import boto3.exceptions
        from botocore.exceptions import BotoCoreError, ClientError

        accepted = {*ok, *(_MISSING - {"NoSuchBucket"} if missing_ok else ())}
        failing_since, pause_s = 0.0, 0.5
        while True:
            try:
                result = action(self._client)
            except (ClientError, BotoCoreError, boto3.exceptions.Boto3Error, ValueError, OSError) as error:
                cause = _cause(error)
                if isinstance(cause, ClientError) and _code(cause) in accepted:
                    self._worked = True
                    return None
                now = time.monotonic()
                failing_since = failing_since or now
                left_s = failing_since + self.config.outage_s - now
                if left_s <= 0 or not self._passing(cause):
                    raise StorageError(self._describe(cause, uri)) from error
                if failing_since == now:
                    _log.warning("%s; trying for another %.0f s", self._describe(cause, uri), left_s)
                time.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._worked = True
                return result

    def _passing(self, error: BaseException) -> bool:
        """Whether an error may go away by itself. Refused keys are read anew: somebody may renew them."""
        from botocore import exceptions as boto

        if isinstance(error, boto.ClientError):
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if self._worked and (code in _BAD_KEYS or (code in _UNEXPLAINED and self._keys_are_refused())):
                self._connected = None
                return True
            return self._reached and (status >= 500 or status == 429 or code in _BUSY)
        if isinstance(error, boto.NoCredentialsError | boto.CredentialRetrievalError):
            self._connected = None
            return self._worked
        away = boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | boto.ResponseStreamingError
        return self._reached and isinstance(error, away) and not isinstance(error, boto.SSLError)

    def _keys_are_refused(self) -> bool:
        """Why a HEAD request failed, which has no body to say so."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1)
        except ClientError as error:
            return _code(error) in _BAD_KEYS
        except BotoCoreError:
            return False
        return False

    def _describe(self, error: BaseException, uri: str) -> str:
        from botocore import exceptions as boto

        endpoint = self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or "of AWS"
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            return (
                f"no usable S3 credentials ({_first_line(error)}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the pod an identity"
            )
        if isinstance(error, boto.SSLError):
            return f"TLS with the S3 endpoint {endpoint} failed ({_first_line(error)}); see storage.ca_bundle"
        if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
            return (
                f"cannot reach the S3 endpoint {endpoint} ({_first_line(error)}); is it running, and is "
                "storage.endpoint_url right?"
            )
        if isinstance(error, boto.ClientError):
            code = _code(error)
            if code in _BAD_KEYS:
                return (
                    f"the S3 endpoint {endpoint} refused the credentials ({code}); check AWS_ACCESS_KEY_ID, "
                    "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile or identity in use"
                )
            if code == "RequestTimeTooSkewed":
                return f"the S3 endpoint {endpoint} finds this machine's clock wrong; set the clock"
            if code in {"403", "AccessDenied", "Forbidden"}:
                return f"the S3 endpoint {endpoint} denied access to {uri}; check the keys and their rights"
            if code == "NoSuchBucket":
                return f"the bucket of {uri} does not exist at the S3 endpoint {endpoint}"
            if code in _MISSING:
                return f"{uri} does not exist"
            message = error.response["Error"].get("Message", "")
            return f"{uri}: the S3 endpoint {endpoint} answered {code}: {message}"
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{uri}: {_first_line(error)}" + ("; free space on this machine's disk" if full else "")
        return f"{uri}: S3 endpoint {endpoint}: {_first_line(error)}"


class _Meter:
    """Adds up the bytes that several threads report and passes the sum on."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done, self._lock = progress, total, 0, threading.Lock()

    def add(self, count: int) -> None:
        if self._progress is not None:
            with self._lock:
                # A part that is sent again after an error is reported again.
                self._done = min(self._done + count, self._total)
                self._progress(self._done, self._total)


def _in_parallel(action: Callable[[str], None], names: list[str]) -> None:
    """Do it for every name, several at once; the first error ends it, without beginning what has not begun."""
    pool = ThreadPoolExecutor(_PARALLEL_FILES)
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


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


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


def _check_file(path: Path, expected: FileInfo, uri: str) -> None:
    size = path.stat().st_size
    if size != expected.size:
        raise StorageError(f"{uri} is damaged: {size} bytes instead of {expected.size}")
    if expected.sha256 and sha256_file(path) != expected.sha256:
        raise StorageError(f"{uri} is damaged: its SHA-256 is not the one recorded when it was uploaded")
