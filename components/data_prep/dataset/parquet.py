"""The Parquet files of a prepared set, being written: frames, rows, and the index of where each medium stands."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...common.rows.arrow import index_schema, media_schema, rows_schema, to_record, write_records
from ...common.rows.sample import Sample
from ...common.storage.names import join, sha256_file
from ...common.storage.objects import FileInfo
from ...common.storage.s3 import Storage

GROUP_BYTES = 2**20
GROUP_MEDIA = 32
"""A row group of a media file ends at so many bytes or media, because taking one clip out reads its group."""
ROWS_PER_FILE = 50_000
ROWS_PER_GROUP = 256  # of a file of rows; taking one row out reads its group


class GroupedFile(AbstractContextManager["GroupedFile"]):
    """A Parquet file that is written a row group at a time, each of at most ``max_records``. A context manager."""

    def __init__(self, path: Path, schema: Any, max_records: int, **options: Any):
        import pyarrow.parquet as pq

        self.path = path
        self._writer = pq.ParquetWriter(path, schema, **options)
        self._max_records = max_records
        self._group: list[dict[str, Any]] = []
        self._groups = self._bytes = 0

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, record: dict[str, Any], num_bytes: int = 0) -> tuple[int, int]:
        """Add a record of the schema; the row group, which ends at `GROUP_BYTES`, and the row that hold it."""
        place = self._groups, len(self._group)
        self._group.append(record)
        self._bytes += num_bytes
        if len(self._group) >= self._max_records or self._bytes >= GROUP_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        if self._group:
            write_records(self._writer, self._group)
            self._groups += 1
        self._group, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()


def media_file(path: Path) -> GroupedFile:
    """A Parquet file of frames (`media_schema`)."""
    # Frames are compressed already, and the least and greatest of them are of no use to anyone. A reader that takes
    # single pages from a store checks them by their CRC.
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    return GroupedFile(path, media_schema(), GROUP_MEDIA, write_page_checksum=True, **plain)


class RowFiles(AbstractContextManager["RowFiles"]):
    """The Parquet files of the rows of a split, being written. A context manager."""

    def __init__(self, folder: Path, split: str):
        self._folder, self._split = folder, split
        self._file: GroupedFile | None = None
        self._rows = 0
        self.paths: list[Path] = []

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, sample: Sample, media_id: str) -> None:
        """Add a row and the id of what it is about."""
        if self._file is None or self._rows % ROWS_PER_FILE == 0:
            self._close()
            self.paths.append(self._folder / f"{self._split}-{len(self.paths):05d}.parquet")
            self._file = GroupedFile(self.paths[-1], rows_schema(), ROWS_PER_GROUP)
        self._rows += 1
        self._file.add(to_record(sample, media_id))


def write_index(path: Path, places: Iterable[tuple[str, str, int, int]]) -> None:
    """Write the index of a set: id, file, row group and row of each medium."""
    with GroupedFile(path, index_schema(), 65_536) as index:
        for media_id, file, group, row in places:
            index.add({"media_id": media_id, "file": file, "group": group, "row": row})


def send_by_content(storage: Storage, path: Path, prefix: str, folder: str) -> tuple[str, FileInfo]:
    """Send a file to ``folder`` below ``prefix``, named by its content, so that two attempts harm nothing; its name."""
    info = FileInfo(path.stat().st_size, sha256_file(path))
    name = f"{folder}{path.stem}-{info.sha256[:8]}.parquet"
    storage.upload_file(path, join(prefix, name))
    return name, info
