"""The files of rows' videos and images, brought to this machine."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path

from ..common.storage.names import sha256_file
from ..common.storage.s3 import Storage
from .records import ShardFile
from .source import HUB, HubError, fetch_from_hub


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
        path, temporary = Path(uri), False
        try:
            if uri.startswith(self.world_uri):
                path = self.world_folder / uri.removeprefix(self.world_uri)
            if uri.startswith(HUB):
                path = fetch_from_hub(uri)
            if uri.startswith("s3://") and not path.is_file():
                if not self.storage.exists(uri):
                    return FetchedFile(file, None, detail="there is no such object")
                name = f"{file.parts[0][0]}{posixpath.splitext(uri)[1][:8]}"
                path, temporary = self.scratch / name, True
                self.storage.download_file(uri, path)
            if not path.is_file():
                return FetchedFile(file, None, detail="there is no such file")
            return FetchedFile(file, path, sha256_file(path), temporary=temporary)
        except HubError as error:
            return FetchedFile(file, None, detail=str(error))
        except OSError as error:
            return FetchedFile(file, None, detail=f"cannot read the file: {error.strerror}")
        except ValueError as error:  # a path with a null byte, for example
            return FetchedFile(file, None, detail=f"not a path: {error}")
