"""Where a benchmark's files are."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..common.errors import UserError
from ..common.storage.names import as_prefix, join
from ..common.storage.s3 import Storage
from .benchmarks.folder import DataFolder


class LocalFile:
    """A file on this machine; one that was fetched is removed when nobody holds this object any more."""

    def __init__(self, path: Path, fetched: bool = False) -> None:
        self.path = path
        self._fetched = fetched

    def __del__(self) -> None:
        if self._fetched:
            with suppress(OSError):
                self.path.unlink()


@dataclass
class Source:
    """Where a benchmark's files are: a folder, or a prefix in the store."""

    folder: DataFolder
    root: Path | str
    storage: Storage | None
    work_dir: Path

    @classmethod
    def open(cls, where: str, storage: Storage | None, work_dir: Path, hub: str = "") -> Source:
        """List what is there.

        Args:
            where: a folder, ``s3://…/``, or ``hub``.
            storage: for a prefix.
            work_dir: for what is fetched.
            hub: the data set that ``hub`` means.

        Raises:
            UserError: nothing is there.
        """
        if where == "hub":
            where = str(_from_hub(hub, work_dir))
        if where.startswith("s3://"):
            if storage is None:
                raise UserError(f"{where}: no object store to look in")
            prefix = as_prefix(where)
            names = [item.uri.removeprefix(prefix) for item in storage.list(prefix)]
            names = [name for name in names if ".." not in PurePosixPath(name).parts and not name.endswith("/")]
            source = cls(DataFolder(prefix, names), prefix, storage, work_dir)
        else:
            root = Path(where)
            if not root.is_dir():
                raise UserError(f"{where}: there is no such folder")
            source = cls(DataFolder(where, _names_below(root)), root, None, work_dir)
        if not source.folder.names:
            raise UserError(f"{where}: nothing there")
        return source

    def file(self, name: str) -> LocalFile:
        """One of its files, on this machine."""
        if self.storage is None:
            return LocalFile(Path(self.root) / name)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix="fetched-", suffix=PurePosixPath(name).suffix, dir=self.work_dir)
        os.close(descriptor)
        file = LocalFile(Path(path), fetched=True)
        self.storage.download_file(join(str(self.root), name), file.path)
        return file


def _from_hub(name: str, work_dir: Path) -> Path:
    """A folder with a data set of the hub, its archives unpacked; fetched once."""
    if not name:
        raise UserError("a set of your own is not on the hub; give its folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = work_dir / "hub" / name.replace("/", "--")
    try:
        snapshot_download(name, repo_type="dataset", local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the data set {name} cannot be fetched from the hub ({reason}); give the folder it is in"
        ) from None
    for archive in sorted(folder.rglob("*.zip")):
        unpack(archive)
    return folder


def unpack(archive: Path) -> Path:
    """Unpack a zip archive into a folder of its name beside it, once; nothing is written outside of that folder.

    Raises:
        UserError: it is damaged, or there is no room for it.
    """
    target = archive.with_suffix("")
    done = archive.with_name(f".{archive.name}.unpacked")
    if done.exists():
        return target
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted, free = sum(item.file_size for item in opened.infolist()), shutil.disk_usage(archive.parent).free
            if wanted > free:
                raise UserError(f"{archive}: needs {wanted / 2**30:.1f} GiB unpacked, {free / 2**30:.1f} are free")
            opened.extractall(target)  # leaves out leading slashes and ".."
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from None
    done.touch()
    return target


def _names_below(root: Path) -> list[str]:
    """Files below a folder; linked folders are followed, each once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files]
    return names
