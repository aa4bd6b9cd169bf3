"""What the merge remembers of every medium, file and row, in SQLite: there may be millions."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ...common.rows.sample import Sample
from ...common.video.clip import SIGNATURE_BYTES
from ..records import FileOutcome, PartOutcome, Reason, media_id
from ..task import open_ledger
from .data_card import most, pass_rate

Order = Literal["source", "easy_first", "hard_first"]

_TABLES = """
CREATE TABLE media (id TEXT PRIMARY KEY, sha256 TEXT, reason TEXT, detail TEXT, file TEXT, grp INTEGER, row INTEGER,
    duration_s REAL, split TEXT) WITHOUT ROWID;
CREATE TABLE content (sha256 TEXT PRIMARY KEY, number INTEGER UNIQUE, kind TEXT, bytes INTEGER, width INTEGER,
    height INTEGER, duration_s REAL, name INTEGER) WITHOUT ROWID;
CREATE INDEX content_name ON content (name);
CREATE TABLE content_split (sha256 TEXT, split TEXT, PRIMARY KEY (sha256, split)) WITHOUT ROWID;
CREATE TABLE kept (name INTEGER PRIMARY KEY, split TEXT);
CREATE TABLE question (hash BLOB, split TEXT, rows INTEGER, PRIMARY KEY (hash, split)) WITHOUT ROWID;
CREATE TABLE row (number INTEGER PRIMARY KEY, split TEXT, difficulty REAL, shard INTEGER, offset INTEGER);
"""
_ORDERS = {"source": "number", "easy_first": "-difficulty, number", "hard_first": "difficulty, number"}


@dataclass(frozen=True, slots=True)
class MediaVerdict:
    """Whether the file of a row can be used."""

    sha256: str | None
    """Of the file, when it was there."""
    reason: Reason | None
    """Why it cannot be used."""
    detail: str


class MergeLedger:
    """Media, files by content (with their signatures in a file), and rows. A context manager."""

    def __init__(self, folder: Path, order: Order):
        self.connection = open_ledger(folder, _TABLES)
        self.signatures = folder / "signatures"
        """`SIGNATURE_BYTES` per different file, in the order of their numbers."""
        self.contents = 0
        """Different files."""
        self.media = 0
        """Media that rows are about."""
        self.sums: Counter[str] = Counter()
        """Of all parts: frames, stored_bytes, originals, source_bytes."""
        self._order: Order = order
        self._signatures = self.signatures.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signatures.close()
        self.connection.close()

    def add_part(self, outcome: PartOutcome) -> None:
        """Take over what a shard says about the media and files of one part."""
        for name in ("frames", "stored_bytes", "originals"):
            self.sums[name] += getattr(outcome, name)
        self.connection.executemany(
            "INSERT OR IGNORE INTO media VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            [
                (key, m.sha256, m.reason, m.detail, *(m.place or (None, None, None)), m.duration_s)
                for key, m in outcome.media.items()
            ],
        )
        for file in outcome.sources:
            self._add_content(file)
        self._signatures.flush()

    def _add_content(self, file: FileOutcome) -> None:
        self.sums["source_bytes"] += file.bytes
        about = (file.kind, file.bytes, file.width, file.height, file.duration_s)
        new = self.connection.execute(
            "INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (file.sha256, self.contents, *about, self.contents),
        )
        if new.rowcount:
            signature = base64.b64decode(file.signature)
            self._signatures.write(signature.ljust(SIGNATURE_BYTES, b"\0")[:SIGNATURE_BYTES])
            self.contents += 1

    def media_verdict(self, sample: Sample) -> MediaVerdict:
        """Whether a row's file can be used."""
        query = "SELECT sha256, reason, detail FROM media WHERE id = ?"
        sha256, reason, detail = self.connection.execute(query, (media_id(sample.media),)).fetchone()
        if reason is None and sample.media.sha256 not in (None, sha256):
            return MediaVerdict(sha256, "sha256_mismatch", f"the file's SHA-256 is {sha256}")
        return MediaVerdict(sha256, reason, detail)

    def add_row(self, number: int, sample: Sample, shard: int, offset: int) -> None:
        """Note where a row stands, and which split its video is in."""
        verdict = self.media_verdict(sample)
        rate = pass_rate(sample)
        if rate is None:  # these come last, in either order
            rate = -1.0 if self._order == "easy_first" else 2.0
        self.connection.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", (number, sample.split, rate, shard, offset))
        if verdict.reason is None:
            insert = "INSERT OR IGNORE INTO content_split VALUES (?, ?)"
            self.connection.execute(insert, (verdict.sha256, sample.split))

    def splits(self) -> list[str]:
        """The splits that rows are in."""
        return [name for (name,) in self.connection.execute("SELECT DISTINCT split FROM row ORDER BY split")]

    def rows(self, split: str) -> Iterator[tuple[int, int]]:
        """Shard and offset of the rows of a split, in the order of the set."""
        query = f"SELECT shard, offset FROM row WHERE split = ? ORDER BY {_ORDERS[self._order]}"
        yield from self.connection.execute(query, (split,))

    def use(self, sample: Sample, key: str) -> float | None:
        """Note that a row stays; the length in seconds of the medium ``key`` when it is the first about it."""
        text = "\n".join(" ".join(part.lower().split()) for part in (sample.question, *sorted(sample.options)))
        digest = hashlib.sha256(text.encode()).digest()[:16]
        upsert = "INSERT INTO question VALUES (?, ?, 1) ON CONFLICT (hash, split) DO UPDATE SET rows = rows + 1"
        self.connection.execute(upsert, (digest, sample.split))
        update = "UPDATE media SET split = ? WHERE id = ? AND split IS NULL"
        if not self.connection.execute(update, (sample.split, key)).rowcount:
            return None
        self.media += 1
        return float(self.connection.execute("SELECT duration_s FROM media WHERE id = ?", (key,)).fetchone()[0])

    def rows_with_a_question_of_train(self, split: str) -> int:
        """Rows of a split whose question, with its options, is also one of train."""
        query = (
            "SELECT coalesce(sum(q.rows), 0) FROM question q JOIN question t "
            "ON t.hash = q.hash AND t.split = 'train' WHERE q.split = ?"
        )
        return int(self.connection.execute(query, (split,)).fetchone()[0])

    def media_places(self, batch: int) -> Iterator[list[tuple[str, str, int, int]]]:
        """Id, file, row group and row of the media that rows are about."""
        query = "SELECT id, file, grp, row FROM media WHERE split IS NOT NULL ORDER BY id"
        places = self.connection.execute(query)
        while some := places.fetchmany(batch):
            yield some

    def resolutions(self) -> dict[str, dict[str, int]]:
        """Different files by ``<width>x<height>``, by kind."""
        counts: dict[str, Counter[str]] = {"video": Counter(), "image": Counter()}
        query = "SELECT kind, width, height, count(*) FROM content GROUP BY 1, 2, 3"
        for kind, width, height, count in self.connection.execute(query):
            counts[kind][f"{width}x{height}"] = count
        return {kind: most(sizes) for kind, sizes in counts.items() if sizes}
