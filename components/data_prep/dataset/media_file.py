"""A Parquet file of frames that is being written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...common.rows.files import media_schema, write_records
from ...common.video.clip import MediaKind

GROUP_BYTES = 2**20
GROUP_MEDIA = 32
"""A row group of a media file ends at so many bytes or media, because taking one clip out reads its group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRecord:
    """A row of `media_schema`: the frames of what a question is about, or the file itself."""

    media_id: str
    kind: MediaKind
    uri: str
    sha256: str
    start_s: float | None
    end_s: float | None
    frames: list[bytes]
    original: bytes | None
    original_id: str | None
    times_s: list[float]
    duration_s: float
    height: int
    width: int


class MediaFile:
    """A Parquet file of frames that is being written. A context manager."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.path = path
        # Frames are compressed already, and the least and greatest of them are of no use to anyone. A reader that takes
        # single pages from a store checks them by their CRC.
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._writer = pq.ParquetWriter(path, media_schema(), write_page_checksum=True, **plain)
        self._group: list[MediaRecord] = []
        self._groups = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, record: MediaRecord) -> tuple[int, int]:
        """Add a medium; the row group and row that hold it."""
        place = self._groups, len(self._group)
        self._group.append(record)
        self._bytes += sum(map(len, record.frames)) + len(record.original or b"")
        if len(self._group) >= GROUP_MEDIA or self._bytes >= GROUP_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        if self._group:
            write_records(self._writer, [{name: getattr(r, name) for name in r.__slots__} for r in self._group])
            self._groups += 1
        self._group, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()
