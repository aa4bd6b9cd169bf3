"""Row groups of Parquet files, here or in the store."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UserError, first_line
from ..storage.s3 import Storage

RemoteSource = tuple[Storage, str, int]
"""An object in the store: where, its URI and its size in bytes."""


class _RemoteFile(io.RawIOBase):
    """An object in the store as a file; each read is a request for a range of it."""

    def __init__(self, storage: Storage, uri: str, size: int):
        self._storage, self._uri, self._size, self._position = storage, uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = self._size - self._position
        wanted = rest if size is None or size < 0 else min(size, rest)
        if wanted <= 0:
            return b""
        data = self._storage.read_bytes(self._uri, self._position, wanted)
        self._position += len(data)
        return data


class PerProcess:
    """What survives pickling and a fork, after which a lock may be held by a thread that is not there.

    The attributes named in ``KEPT`` go along; `_forget` makes the others anew.
    """

    KEPT: ClassVar[tuple[str, ...]]

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def _forget_after_fork(self) -> None:
        if self._owner != os.getpid():
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class RowGroups(PerProcess):
    """Row groups of Parquet files, the last used ones kept."""

    KEPT = ("_sources", "_columns", "_keep")

    def __init__(self, sources: Sequence[Path | RemoteSource], columns: Sequence[str] | None, keep: int):
        self._sources, self._columns, self._keep = list(sources), columns, keep
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def table(self, number: int, group: int) -> Any:
        """A row group of file ``number`` as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._forget_after_fork()
        with self._lock:
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
                return self._groups[number, group]
            source = self._sources[number]
            here = isinstance(source, Path)
            try:
                if number not in self._files:
                    file = source if isinstance(source, Path) else pa.PythonFile(_RemoteFile(*source), mode="r")
                    self._files[number] = pq.ParquetFile(
                        file, memory_map=here, pre_buffer=not here, page_checksum_verification=True
                    )
                table = self._files[number].read_row_group(group, columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                name = source if isinstance(source, Path) else source[1]
                raise UserError(f"{name}: damaged ({first_line(error)}); fetch or prepare it again") from None
            self._groups[number, group] = table
            while len(self._groups) > self._keep:
                self._groups.popitem(last=False)
            return table
