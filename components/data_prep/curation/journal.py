"""The journal of a curation: what was answered, and what became of each row."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any


class JournalError(RuntimeError):
    """A journal that cannot be used: damaged, or in use. One line for a person."""


class Journal:
    """Answered calls and what became of rows, one JSON object a line, each synced to disk before it counts.

    A line that was cut off by a kill is taken away when the file is opened again. One process at a time.
    """

    def __init__(self, path: Path):
        self.path = path
        self._where: dict[bytes, int] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(f"{path}: another vthink data curate is writing it") from None
        self.spent_usd = 0.0
        """Of all calls in it."""
        self._read()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, 1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
                key = bytes.fromhex(record["key"]) if record is not None else None
            except (ValueError, KeyError, TypeError):
                key = None
            if record is None or key is None:
                if self._file.read(1):
                    raise JournalError(f"{self.path}:{number}: damaged; move the file away to begin anew")
                self._file.truncate(offset)
                break
            self._where[key] = offset
            self.spent_usd += record.get("usd", 0.0)
            offset += len(line)

    def find(self, key: str) -> dict[str, Any] | None:
        """The record with this key."""
        offset = self._where.get(bytes.fromhex(key))
        if offset is None:
            return None
        self._file.seek(offset)
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def add(self, key: str, **record: Any) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.seek(0, os.SEEK_END)
        offset = self._file.tell()
        self._file.write(json.dumps({"key": key, **record}, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._where[bytes.fromhex(key)] = offset
