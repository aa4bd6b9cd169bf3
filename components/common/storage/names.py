"""URIs, prefixes and fingerprints of what is stored."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..context import RunContext
from ..errors import UserError

COMPLETE = "_COMPLETE.json"  # marker of a finished folder; written after everything it lists
SEAL = "sealed.json"  # a checkpoint's list of files on the machine that trains, written last
JOURNAL = "_UPLOAD.json"  # what an unfinished upload has sent so far; gone once the folder is complete
MANIFEST = "manifest.json"  # marker of a finished stage


class StorageError(UserError):
    """The store cannot be reached, refuses the credentials, or lacks or holds damaged data."""


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` as ``("bucket", "a/b")``; another URI is a `StorageError`."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not separator or not bucket:
        raise StorageError(f"'{uri}' is not an S3 URI; expected s3://bucket/key")
    return bucket, key


def join(prefix_uri: str, *parts: str) -> str:
    """Append parts to a prefix with single slashes; a trailing slash of the last part is kept."""
    uri = prefix_uri
    for part in parts:
        uri = f"{uri.rstrip('/')}/{part.lstrip('/')}"
    return uri


def as_prefix(uri: str) -> str:
    """The URI with a trailing slash, so that ``…/7`` never also means ``…/70``."""
    return uri if uri.endswith("/") else uri + "/"


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values, with sorted keys. A float without a fraction is written as an integer:
    KFP turns the integers inside lists into floats, and a fingerprint must not notice."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("keys of a fingerprinted mapping must be strings")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def digest(value: Any) -> str:
    """SHA-256, in hex, of a value's `canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint(*parts: Any) -> str:
    """16 hex digits that identify what the parts (sections, mappings, lists, strings, numbers) say."""
    return digest(list(parts))[:16]


def stage_prefix(context: RunContext, stage: str, fp: str) -> str:
    """Where the stage with this fingerprint keeps its output: ``s3://…/<stage>/<fingerprint>/``."""
    return join(context.storage.root_uri, stage, fp + "/")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
