"""Items that are kept as they are answered, so that nothing is asked twice.

In a folder the journal is ``items.jsonl`` itself: lines are appended and forced to disk batch by batch, and a line that
was cut off is dropped. In the store every batch is an object of its own: what a killed evaluation can lose is a batch.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Self

from ..common.errors import UserError
from ..common.storage.names import join
from ..common.storage.s3 import Storage
from .item import Item, read_item


class FileLog:
    """A file of items, one per line; one process at a time (the file is locked)."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file; a `UserError` where another process writes it."""
        self.path = path
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another evaluation is writing it; give another --output") from None

    def read(self) -> list[Item]:
        """The items that were kept, in order; a `UserError` where the file holds something else."""
        self._file.seek(0)
        *lines, _ = self._file.read().split(b"\n")
        items: list[Item] = []
        for number, line in enumerate(lines, 1):
            try:
                items.append(read_item(line, f"{self.path}, line {number}"))
            except UserError:
                if number < len(lines):
                    raise
                lines.pop()  # cut off, or blocks of the file that never reached the disk
        self._file.truncate(sum(len(line) + 1 for line in lines))
        return items

    def append(self, items: Sequence[Item]) -> None:
        """Keep more; when this returns they stay."""
        self._file.write(b"".join(item.to_line() for item in items))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._file.close()


class StoreLog:
    """Items in the store below a prefix, an object per batch."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self.prefix = storage, prefix
        self._number = 0

    def read(self) -> list[Item]:
        """The items that were kept, in order."""
        pieces = sorted(piece.uri for piece in self._storage.list(self.prefix))
        self._number = len(pieces)
        return [read_item(line, uri) for uri in pieces for line in self._storage.read_bytes(uri).splitlines()]

    def append(self, items: Sequence[Item]) -> None:
        """Keep more; when this returns they stay."""
        name = f"{self._number:06d}-{uuid.uuid4().hex[:8]}.jsonl"  # no name that another process could take
        self._storage.write_bytes(join(self.prefix, name), b"".join(item.to_line() for item in items))
        self._number += 1

    def close(self) -> None:
        """Nothing is held."""


class Journal:
    """Items by (condition, id): what is there has been asked; the last line of a key counts. A context manager."""

    def __init__(self, log: FileLog | StoreLog) -> None:
        self._log = log
        self.items: dict[tuple[str, str], Item] = {}
        try:
            self._add(log.read())
        except BaseException:
            log.close()
            raise

    def _add(self, items: Sequence[Item]) -> None:
        self.items |= {(item.condition, item.id): item for item in items}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.items

    def append(self, items: Iterable[Item]) -> None:
        """Keep items, in place of earlier ones of the same key; when this returns they stay."""
        if items := list(items):
            self._log.append(items)
            self._add(items)

    def forget_failed(self) -> None:
        """Leave out the items that failed, so that they are asked again."""
        self.items = {key: item for key, item in self.items.items() if item.error is None}
