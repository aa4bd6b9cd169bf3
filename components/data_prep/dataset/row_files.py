"""The Parquet files of a set's rows, and the index that says where each medium stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ...common.rows.files import index_schema, rows_schema, to_record, write_records
from ...common.rows.sample import Sample
from .ledger import MergeLedger

ROWS_PER_FILE = 50_000
ROWS_PER_GROUP = 256
"""Rows in a file and in a row group of it; taking one row out reads its group."""
_INDEX_GROUP = 65_536


class RowFiles:
    """The Parquet files of the rows of a split, being written. A context manager."""

    def __init__(self, folder: Path, split: str):
        self._folder = folder
        self._split = split
        self._writer: Any = None
        self._batch: list[dict[str, Any]] = []
        self._rows = 0
        self.paths: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def add(self, sample: Sample, media_id: str) -> None:
        """Add a row and the id of what it is about."""
        if self._rows % ROWS_PER_FILE == 0:
            self._open()
        self._rows += 1
        self._batch.append(to_record(sample, media_id))
        if len(self._batch) == ROWS_PER_GROUP:
            self._flush()

    def _open(self) -> None:
        import pyarrow.parquet as pq

        self._close()
        self.paths.append(self._folder / f"{self._split}-{len(self.paths):05d}.parquet")
        self._writer = pq.ParquetWriter(self.paths[-1], rows_schema())

    def _flush(self) -> None:
        if self._batch:
            write_records(self._writer, self._batch)
        self._batch = []

    def _close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None


def write_index(path: Path, ledger: MergeLedger) -> None:
    """Write the index of the media that rows are about."""
    import pyarrow.parquet as pq

    schema = index_schema()
    with pq.ParquetWriter(path, schema) as writer:
        for places in ledger.media_places(_INDEX_GROUP):
            write_records(writer, [dict(zip(schema.names, place, strict=True)) for place in places])
