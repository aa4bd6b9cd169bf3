"""Answers that are kept, so that nothing is asked twice."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from ..common.storage.names import join
from ..common.storage.s3 import Storage
from .answers import Answer, EvaluationError


class Journal:
    """Answers in the store, one object per batch, so that a killed evaluation asks nothing twice."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.storage = storage
        self.prefix = prefix
        self.finished = {info.uri for info in storage.list(prefix)}

    def _uri(self, batch: int) -> str:
        return join(self.prefix, f"batch-{batch:06d}.jsonl")

    def missing(self, num_batches: int) -> bool:
        """Whether any of the batches has not been asked."""
        return any(self._uri(batch) not in self.finished for batch in range(num_batches))

    def read(self, batch: int) -> list[Answer] | None:
        """The answers of a batch, or None when it has not been asked."""
        if self._uri(batch) not in self.finished:
            return None
        lines = self.storage.read_bytes(self._uri(batch)).decode().splitlines()
        return [Answer(**{**(row := json.loads(line)), "token_ids": tuple(row["token_ids"])}) for line in lines]

    def write(self, batch: int, answers: Iterable[Answer]) -> None:
        """Keep the answers of a batch."""
        text = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        self.storage.write_bytes(self._uri(batch), text.encode())
        self.finished.add(self._uri(batch))


class ItemJournal:
    """Graded items in a file, one per line: what is there has been asked.

    Lines are appended and forced to disk batch by batch; a line that was cut off is dropped. One process at a
    time (the file is locked).
    """

    def __init__(self, path: Path) -> None:
        """Open or begin the file.

        Raises:
            EvaluationError: another process writes it, or it holds something else.
        """
        self.path = path
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        """By (frames, id)."""
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise EvaluationError(f"{path}: another evaluation is writing it; give another --output") from None
        try:
            self._read()
        except EvaluationError:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        kept = 0
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                self.rows[row["frames"], row["id"]] = row
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == len(lines) - 1:  # cut off, or blocks of the file that never reached the disk
                    break
                raise EvaluationError(f"{self.path}, line {number}: not an item of an evaluation") from None
            kept += len(line) + 1
        self._file.truncate(kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep items; when this returns they are on the disk."""
        rows = list(rows)
        self._file.write(b"".join(line_of(row) for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows |= {(row["frames"], row["id"]): row for row in rows}

    def forget_failed(self) -> int:
        """Take out the items that failed, so that they are asked again; their number."""
        failed = [key for key, row in self.rows.items() if row["error"] is not None]
        for key in failed:
            del self.rows[key]
        if failed:
            self._file.truncate(0)
            self.append(self.rows.values())
        return len(failed)


def line_of(row: Mapping[str, Any]) -> bytes:
    """An item as a line of ``items.jsonl``."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def answer_of(row: Mapping[str, Any]) -> Answer:
    """What was said, from the item that was kept."""
    return Answer(
        id=row["id"],
        text=row["response"],
        token_ids=tuple(row["token_ids"]),
        finish_reason=row["finish_reason"],
        duration_s=row["duration_s"],
        error=row["error"],
    )
