"""The Parquet files of a prepared set, being written: frames, rows, and the index of where each medium stands."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...common.rows.files import index_schema, media_schema, rows_schema, to_record, write_records
from ...common.rows.sample import Sample
from ...common.storage.names import join, sha256_file
from ...common.storage.s3 import FileInfo, Storage

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
        self._group: list[dict[str, object]] = []
        self._groups = self._bytes = 0

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, record: dict[str, object], num_bytes: int = 0) -> tuple[int, int]:
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
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    return GroupedFile(path, media_schema(), GROUP_MEDIA, write_page_checksum=True, **plain)


def write_rows(folder: Path, split: str, rows: Iterator[tuple[Sample, str]]) -> list[Path]:
    """Write the rows of a split, each with the id of what it is about, as Parquet files of `ROWS_PER_FILE`."""
    paths: list[Path] = []
    while (first := next(rows, None)) is not None:
        paths.append(folder / f"{split}-{len(paths):05d}.parquet")
        with GroupedFile(paths[-1], rows_schema(), ROWS_PER_GROUP) as file:
            for sample, media_id in chain((first,), islice(rows, ROWS_PER_FILE - 1)):
                file.add(to_record(sample, media_id))
    return paths


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
