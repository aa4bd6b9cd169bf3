"""The journal of a curation: what was answered, and what became of each row."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ...common.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRecord:
    """An answered call."""

    key: str
    """Identifies it: row, step, attempt, words and settings (64 hex digits)."""
    id: str
    """The item that it was about."""
    role: str
    model: str
    step: str
    attempt: int
    text: str
    finished: bool
    tokens: tuple[int, int]
    """In and out."""
    usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What became of an item."""

    key: str
    """Identifies the item and the settings (64 hex digits)."""
    id: str | None
    rows: tuple[str, ...] = ()
    """Its rows, each a line of JSON."""
    dropped: str = ""
    """Why there are none; empty where there are."""
    detail: str = ""


class CallJournal:
    """Answered calls and decided items, one JSON object a line, each synced to disk before it counts.

    A line that was cut off by a kill is taken away when the file is opened again. One process at a time. A context
    manager.
    """

    def __init__(self, path: Path):
        """Open the file, or make it.

        Raises:
            UserError: it is damaged, or another process writes it.
        """
        self.path = path
        self._offsets: dict[bytes, int] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another vthink data curate is writing it") from None
        self.spent_usd = 0.0
        """Of all calls in it."""
        self._read()

    def __enter__(self) -> Self:
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
                    raise UserError(f"{self.path}:{number}: damaged; move the file away to begin anew")
                self._file.truncate(offset)
                break
            self._offsets[key] = offset
            self.spent_usd += record.get("usd", 0.0)
            offset += len(line)

    def call(self, key: str) -> CallRecord | None:
        """The answered call with this key."""
        line = self._line(key)
        if line is None:
            return None
        record = json.loads(line)
        return CallRecord(**{**record, "tokens": tuple(record["tokens"])})

    def decision(self, key: str) -> Decision | None:
        """What became of the item with this key."""
        line = self._line(key)
        if line is None:
            return None
        record = json.loads(line)
        return Decision(**{**record, "rows": tuple(record.get("rows", ()))})

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._offsets

    def _line(self, key: str) -> bytes | None:
        offset = self._offsets.get(bytes.fromhex(key))
        if offset is None:
            return None
        self._file.seek(offset)
        return self._file.readline()

    def add(self, record: CallRecord | Decision) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.seek(0, os.SEEK_END)
        offset = self._file.tell()
        self._file.write(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._offsets[bytes.fromhex(record.key)] = offset
