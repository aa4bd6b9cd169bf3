"""Objects of the store, one by one: read, write, list, delete, and whole files."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .config import StorageConfig
from .connection import Connection, transfer_config
from .names import COMPLETE, MANIFEST, StorageError, as_prefix, join, sha256_file, split_uri


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


class ObjectStore:
    """The objects of an S3-compatible store. Every method raises `StorageError`, in one line, where it fails."""

    def __init__(self, config: StorageConfig):
        self.config = config
        self._connection = Connection(config)

    def exists(self, uri: str) -> bool:
        """Whether the object is there; for a URI that ends in ``/``, whether anything is below it."""
        bucket, key = split_uri(uri)
        if key.endswith("/") or not key:
            return next(self.list(uri), None) is not None
        return (
            self._connection.request(uri, lambda client: client.head_object(Bucket=bucket, Key=key), missing_ok=True)
            is not None
        )

    def read_bytes(self, uri: str, start: int = 0, size: int | None = None) -> bytes:
        """The object, or ``size`` (> 0) of its bytes from ``start``."""
        bucket, key = split_uri(uri)
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        return bytes(
            self._connection.request(
                uri, lambda client: client.get_object(Bucket=bucket, Key=key, **part)["Body"].read()
            )
        )

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
        self._connection.request(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data))

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
        bucket, key = split_uri(uri)
        self._connection.request(uri, lambda client: client.delete_object(Bucket=bucket, Key=key), missing_ok=True)

    def delete_prefix(self, uri: str) -> None:
        """Delete everything below a prefix, markers first, so that what is left is never taken for complete.

        Raises:
            StorageError: the prefix is a whole bucket.
        """
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
        self._connection.request(
            uri, lambda client: client.upload_file(str(path), bucket, key, Config=transfer_config())
        )

    def download_file(self, uri: str, path: Path | str, expected: FileInfo | None = None) -> None:
        """Fetch an object to a file that appears under its name only when it is whole, and ``expected``."""
        bucket, key = split_uri(uri)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self._connection.request(
                uri, lambda client: client.download_file(bucket, key, str(partial), Config=transfer_config())
            )
            if expected is not None:
                _check_file(partial, expected, uri)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        bucket, uri = self.config.bucket, f"s3://{self.config.bucket}/"
        if self._connection.request(uri, lambda client: client.head_bucket(Bucket=bucket), missing_ok=True) is not None:
            return
        extra: dict[str, Any] = {}
        if self.config.region != "us-east-1":
            extra["CreateBucketConfiguration"] = {"LocationConstraint": self.config.region}
        self._connection.request(
            uri, lambda client: client.create_bucket(Bucket=bucket, **extra), ok={"BucketAlreadyOwnedByYou"}
        )

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


def _check_file(path: Path, expected: FileInfo, uri: str) -> None:
    size = path.stat().st_size
    if size != expected.size:
        raise StorageError(f"{uri} is damaged: {size} bytes instead of {expected.size}")
    if sha256_file(path) != expected.sha256:
        raise StorageError(f"{uri} is damaged: its SHA-256 is not the one recorded when it was uploaded")
