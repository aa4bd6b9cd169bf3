"""An object of the store as a file that is read in ranges."""

from __future__ import annotations

import io
import os

from ..storage.s3 import Storage


class RemoteFile(io.RawIOBase):
    """An object in the store, read in ranges."""

    def __init__(self, storage: Storage, uri: str, size: int):
        self._storage, self._uri, self._size, self._position = storage, uri, size, 0

    def __reduce__(self) -> tuple[type[RemoteFile], tuple[Storage, str, int]]:
        return RemoteFile, (self._storage, self._uri, self._size)

    def __str__(self) -> str:
        return self._uri

    def reopened(self) -> RemoteFile:
        """The same object with a position of its own."""
        return RemoteFile(self._storage, self._uri, self._size)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset; nothing is read."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes in one request, or all that are left."""
        rest = self._size - self._position
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted <= 0:
            return b""
        data = self._storage.read_bytes(self._uri, self._position, wanted)
        self._position += len(data)
        return data
