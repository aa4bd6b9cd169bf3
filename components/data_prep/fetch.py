"""The files of rows' videos and images, brought to this machine."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path

from ..common.storage.names import sha256_file
from ..common.storage.s3 import Storage
from .records import ShardFile
from .source import MissingMediaError, fetch_media


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine, or why there is none."""

    file: ShardFile
    path: Path | None
    sha256: str = ""
    detail: str = ""
    """Why there is none."""
    temporary: bool = False

    def remove(self) -> None:
        """Delete the file when it was only fetched to be decoded."""
        if self.temporary and self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Fetcher:
    """Brings files to this machine; those of a generated world may be here already."""

    storage: Storage
    world_uri: str
    world_folder: Path
    scratch: Path

    def __call__(self, file: ShardFile) -> FetchedFile:
        """Fetch a file; its failure is what is returned."""
        uri = file.uri
        target = self.scratch / f"{file.parts[0][0]}{posixpath.splitext(uri)[1][:8]}"
        path = self.world_folder / uri.removeprefix(self.world_uri) if uri.startswith(self.world_uri) else target
        try:
            if path == target or not path.is_file():
                path = fetch_media(uri, self.storage, target)
            return FetchedFile(file, path, sha256_file(path), temporary=path == target)
        except MissingMediaError as error:
            return FetchedFile(file, None, detail=str(error))
