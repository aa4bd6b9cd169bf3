"""Rows out of Parquet files, by their number."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .files import RowError, parse_row
from .remote_file import _RemoteFile
from .sample import Sample

_ROW_GROUPS_KEPT = 64


class _Groups:
    """Row groups of Parquet files, the last used ones kept. Survives a fork and pickling."""

    def __init__(self, sources: Sequence[Path | _RemoteFile], columns: Sequence[str] | None, keep: int):
        self._sources = list(sources)
        self._columns = None if columns is None else list(columns)
        self._keep = keep
        self._forget()

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_sources", "_columns", "_keep")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def table(self, number: int, group: int) -> Any:
        """A row group of file ``number`` as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._owner != os.getpid():  # after a fork: a lock may be held by a thread that is not here
            self._forget()
        with self._lock:
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
                return self._groups[number, group]
            source = self._sources[number]
            try:
                if number not in self._files:
                    self._files[number] = pq.ParquetFile(
                        source if isinstance(source, Path) else pa.PythonFile(source.reopened(), mode="r"),
                        memory_map=isinstance(source, Path),
                        pre_buffer=not isinstance(source, Path),
                        page_checksum_verification=True,
                    )
                table = self._files[number].read_row_group(group, columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"{source}: damaged ({str(error).splitlines()[0]}); fetch or prepare it again"
                ) from None
            self._groups[number, group] = table
            while len(self._groups) > self._keep:
                self._groups.popitem(last=False)
            return table


class _RowFiles:
    """The Parquet files of a split's rows, as one row of rows."""

    def __init__(self, paths: Sequence[Path]):
        import pyarrow.parquet as pq

        self._paths = list(paths)
        self._groups = _Groups(paths, None, _ROW_GROUPS_KEPT)
        self._places: list[tuple[int, int]] = []
        sizes: list[int] = []
        for number, path in enumerate(paths):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    self._places.append((number, group))
                    sizes.append(file.metadata.row_group(group).num_rows)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.count = int(self._ends[-1]) if sizes else 0

    def _find(self, index: int) -> tuple[Any, int]:
        """The table that holds a row, and its place there."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        table = self._groups.table(*self._places[place])
        return table, index - int(self._ends[place]) + table.num_rows

    def row(self, index: int) -> Sample:
        table, row = self._find(index)
        (values,) = table.slice(row, 1).to_pylist()
        return self._parse(values, index)

    def ascending(self, indices: Iterable[int]) -> Iterator[Sample]:
        """Many rows in the order of the files: their groups are taken apart once, not row by row."""
        last: Any = None
        values: list[dict[str, Any]] = []
        for index in indices:
            table, row = self._find(int(index))
            if table is not last:
                last, values = table, table.to_pylist()
            yield self._parse(values[row], int(index))

    def _parse(self, values: dict[str, Any], index: int) -> Sample:
        sample = parse_row({key: value for key, value in values.items() if key != "media_id"}, index + 1)
        if isinstance(sample, RowError):
            raise UserError(f"{self._paths[0].parent}: {sample}")
        return sample

    def media_id(self, index: int) -> str:
        table, row = self._find(index)
        return str(table["media_id"][row].as_py())
