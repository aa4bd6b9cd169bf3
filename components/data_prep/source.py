"""Where rows and media are: here, in a store, or on the hub."""

import os
import posixpath
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.rows.sample import Sample
from ..common.storage.names import split_uri
from ..common.storage.s3 import Storage
from .records import Reason

HUB = "hf://"


class MissingMediaError(Exception):
    """A video or image that is not there, or cannot be fetched or read, and why."""

    def __init__(self, detail: str, reason: Reason = "missing_media"):
        super().__init__(detail)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Source:
    """A file of rows, brought to this machine."""

    path: Path  # where it is on this machine
    base: str  # what relative media count from: a folder, ``s3://…/`` or ``hf://…/``


def open_source(name: str, storage: Storage | None, folder: Path) -> Source:
    """Find the rows, and fetch them to ``folder`` where they are in a store or on the hub. Raises UserError: there is
    no such file, or it cannot be fetched; StorageError: the store cannot be reached."""
    if name.startswith("s3://"):
        if storage is None:
            raise UserError(f"{name} is in a store; say which one (storage section, AWS_ENDPOINT_URL_S3)")
        path = folder / posixpath.basename(name)
        storage.download_file(name, path)
        return Source(path, posixpath.dirname(name) + "/")
    if name.startswith(HUB):
        return Source(fetch_from_hub(name), posixpath.dirname(name) + "/")
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{name}: there is no such file")
    return Source(path, str(path.parent))


def fetch_from_hub(uri: str) -> Path:
    """A file of a data set on the Hugging Face hub, ``hf://datasets/<owner>/<name>[@<revision>]/<path>``, in the hub's
    cache on this machine. Raises UserError: another kind of URI, or the hub cannot be reached or refuses."""
    from huggingface_hub import hf_hub_download

    match = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/([^@]+)", uri)
    if match is None:
        raise UserError(f"{uri}: expected hf://datasets/<owner>/<name>[@<revision>]/<file>")
    try:
        return Path(hf_hub_download(match[1], match[3], repo_type="dataset", revision=match[2]))
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSError
        lines = str(error).strip().splitlines()
        problem = f"cannot be fetched from the hub ({lines[0][:150] if lines else type(error).__name__})"
        raise UserError(f"{uri}: {problem}; see HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE") from None


def fetch_media(uri: str, storage: Storage | None, target: Path) -> Path:
    """A video or image on this machine: where it is, in the hub's cache, or fetched to ``target``. Raises
    MissingMediaError: it is not there; StorageError: the store cannot be reached."""
    if uri.startswith(HUB):
        try:
            return fetch_from_hub(uri)
        except UserError as error:
            raise MissingMediaError(str(error)) from None
    if uri.startswith("s3://") and storage is not None:
        if not storage.exists(uri):
            raise MissingMediaError("there is no such object")
        storage.download_file(uri, target)
        return target
    if problem := local_problem(uri):
        raise MissingMediaError(problem[1], problem[0])
    return Path(uri)


def local_problem(path: str) -> tuple[Reason, str] | None:
    """Why a file on this machine cannot be read, without waiting for a pipe; None: its first byte can."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            return "unreadable_media", f"{'a folder' if is_folder else 'a pipe, socket or device'}, not a file"
        if not status.st_size and not path.startswith("/proc/"):
            return "damaged_media", "the file is empty"
        with open(path, "rb") as file:
            file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        return "missing_media", "there is no such file"
    except OSError as error:
        return "unreadable_media", f"cannot read the file: {error.strerror}"
    except ValueError as error:  # a path with a null byte, for example
        return "missing_media", f"not a path: {error}"
    return None


def media_name(row: Sample, base: str, roots: Mapping[str, str]) -> str:
    """What the rows call a medium, wherever they lie: its path from its root or, where it has none, from the rows; its
    full path or URI where it is elsewhere. ``row``: as it was read; ``base``: see `resolve_uri`."""
    uri = row.media.uri.removeprefix("file://")
    for top in (root_of(row, roots), base):
        if top and uri.startswith(inside := top.rstrip("/") + "/"):
            return posixpath.normpath(uri.removeprefix(inside))
    return uri if "://" in uri else posixpath.normpath(uri)


def root_of(row: Sample, roots: Mapping[str, str]) -> str | None:
    """The folder or prefix that relative media paths of a row count from (`DataPrepConfig.roots`); None: the rows'."""
    return roots.get(row.source, roots.get("*"))


def resolve_uri(uri: str, base: str) -> str:
    """The full path, ``s3://`` or ``hf://`` URI of a row's media; relative ones count from ``base``, where the rows
    are. Raises ValueError: another scheme, or a path that leaves the bucket or the repository."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme not in ("s3", "hf", "file"):
        raise ValueError(f"media are read from paths, s3:// and hf://, not from {scheme}://")
    if separator or posixpath.isabs(uri):
        return rest if scheme == "file" else uri
    scheme, separator, _ = base.partition("://")
    if not separator:
        return posixpath.normpath(posixpath.join(base, uri))
    top = f"s3://{split_uri(base)[0]}" if scheme == "s3" else "/".join(base.split("/")[:5])
    path = posixpath.normpath(posixpath.join(base.removeprefix(top).strip("/"), uri))
    if path.startswith(".."):
        raise ValueError(f"{uri} leaves {'the bucket ' if scheme == 's3' else ''}{top}")
    return f"{top}/{path}"
