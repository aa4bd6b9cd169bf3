"""What the merge remembers of every medium, file and row (in SQLite: there may be millions); and what training and
evaluation share: the same files, files that look alike, the same questions.

A video that is in several splits stays in one of them; its rows elsewhere are quarantined.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config import Section
from ...common.rows.sample import Sample
from ...common.video.clip import SIGNATURE_BYTES
from ..config import DataPrepConfig
from ..records import PartOutcome, Reason, media_id
from ..task import open_ledger
from .data_card import Contamination, SplitCounts, most, pass_rate
from .duplicates import Groups, near_pairs

CONTAMINATION = "contamination.json"
LISTED = 10_000  # longest list of leaks and duplicates in ``contamination.json``; their numbers are always whole
_RULE = (
    "a video that is in several splits, byte for byte or by its looks, stays in the first of test, validation, and the "
    "others by name; its rows elsewhere are in quarantine.jsonl. Equal questions about different videos stay."
)
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


class NearDuplicate(Section):
    """Two files that look the same."""

    a: str  # SHA-256 of one
    b: str  # SHA-256 of the other
    difference: float  # root mean square difference of their signatures (of 255)


class Leak(Section):
    """A row whose video is also in a split that measures."""

    reason: Reason
    id: str
    uri: str
    split: str
    kept_in: str  # the split whose rows stay
    sha256: str  # of its file
    same_as: str  # SHA-256 of the file in the other split


class ContaminationReport(Contamination):
    """``contamination.json``: the numbers, and the first `LISTED` of what they count."""

    near_duplicates: tuple[NearDuplicate, ...]
    leaks: tuple[Leak, ...]


def kept_split(splits: Iterable[str]) -> str:
    """Of the splits that a video is in, the one whose rows stay: what measures is worth more than what trains."""
    order = ["test", "validation"]
    return min(splits, key=lambda split: (order.index(split) if split in order else len(order), split))


class MergeLedger(AbstractContextManager["MergeLedger"]):
    """Media, files by content (with their signatures in a file), and rows: add all parts, all rows, `settle`, and then
    ask for each row's `verdict`. A context manager."""

    def __init__(self, folder: Path, config: DataPrepConfig):
        self._connection = open_ledger(folder, _TABLES)
        self.signatures = folder / "signatures"  # `SIGNATURE_BYTES` per different file, in the order of their numbers
        self.contents = 0  # different files
        self.media = 0  # media that rows are about
        self.sums: Counter[str] = Counter()  # of all parts: frames, stored_bytes, originals, source_bytes
        self._config = config
        self._signatures = self.signatures.open("wb")
        self._pairs = 0
        self._near: list[tuple[int, int, float]] = []
        self._leaking: Counter[Reason] = Counter()
        self._leaks: list[Leak] = []

    def __exit__(self, *exc: object) -> None:
        self._signatures.close()
        self._connection.close()

    def _first(self, query: str, *values: object) -> Any:
        """The first row of what a query gives; None where there is none."""
        return self._connection.execute(query, values).fetchone()

    def add_part(self, outcome: PartOutcome) -> None:
        """Take over what a shard says about the media and files of one part."""
        for name in ("frames", "stored_bytes", "originals"):
            self.sums[name] += getattr(outcome, name)
        insert = "INSERT OR IGNORE INTO media VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)"
        for key, m in outcome.media.items():
            medium = (key, m.sha256, m.reason, m.detail, *(m.place or (None, None, None)), m.duration_s)
            self._connection.execute(insert, medium)
        for file in outcome.sources:
            self.sums["source_bytes"] += file.bytes
            about = (file.kind, file.bytes, file.width, file.height, file.duration_s)
            content = (file.sha256, self.contents, *about, self.contents)
            insert = "INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            if self._connection.execute(insert, content).rowcount:
                signature = base64.b64decode(file.signature)
                self._signatures.write(signature.ljust(SIGNATURE_BYTES, b"\0")[:SIGNATURE_BYTES])
                self.contents += 1
        self._signatures.flush()

    def _media_verdict(self, sample: Sample) -> tuple[str | None, Reason | None, str]:
        key = media_id(sample.media)
        sha256, reason, detail = self._first("SELECT sha256, reason, detail FROM media WHERE id = ?", key)
        if reason is None and sample.media.sha256 not in (None, sha256):
            reason, detail = "sha256_mismatch", f"the file's SHA-256 is {sha256}"
        return sha256, reason, detail

    def add_row(self, number: int, sample: Sample, shard: int, offset: int) -> None:
        """Note where a row stands, and which split its video is in."""
        sha256, reason, _ = self._media_verdict(sample)
        rate = pass_rate(sample)
        if rate is None:  # these come last, in either order
            rate = -1.0 if self._config.order == "easy_first" else 2.0
        self._connection.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", (number, sample.split, rate, shard, offset))
        if reason is None:
            self._connection.execute("INSERT OR IGNORE INTO content_split VALUES (?, ?)", (sha256, sample.split))

    def splits(self) -> list[str]:
        """The splits that rows are in."""
        return [name for (name,) in self._connection.execute("SELECT DISTINCT split FROM row ORDER BY split")]

    def rows(self, split: str) -> Iterator[tuple[int, int]]:
        """Shard and offset of the rows of a split, in the order of the set."""
        query = f"SELECT shard, offset FROM row WHERE split = ? ORDER BY {_ORDERS[self._config.order]}"
        yield from self._connection.execute(query, (split,))

    def use(self, sample: Sample, key: str) -> float | None:
        """Note that a row stays; the length in seconds of the medium ``key`` when it is the first about it."""
        text = "\n".join(" ".join(part.lower().split()) for part in (sample.question, *sorted(sample.options)))
        digest = hashlib.sha256(text.encode()).digest()[:16]
        upsert = "INSERT INTO question VALUES (?, ?, 1) ON CONFLICT (hash, split) DO UPDATE SET rows = rows + 1"
        self._connection.execute(upsert, (digest, sample.split))
        update = "UPDATE media SET split = ? WHERE id = ? AND split IS NULL"
        if not self._connection.execute(update, (sample.split, key)).rowcount:
            return None
        self.media += 1
        return float(self._first("SELECT duration_s FROM media WHERE id = ?", key)[0])

    def media_places(self) -> Iterator[tuple[str, str, int, int]]:
        """Id, file, row group and row of the media that rows are about."""
        query = "SELECT id, file, grp, row FROM media WHERE split IS NOT NULL ORDER BY id"
        yield from self._connection.execute(query)

    def resolutions(self) -> dict[str, dict[str, int]]:
        """Different files by ``<width>x<height>``, by kind."""
        counts: dict[str, Counter[str]] = {"video": Counter(), "image": Counter()}
        query = "SELECT kind, width, height, count(*) FROM content GROUP BY 1, 2, 3"
        for kind, width, height, count in self._connection.execute(query):
            counts[kind][f"{width}x{height}"] = count
        return {kind: most(sizes) for kind, sizes in counts.items() if sizes}

    def settle(self) -> None:
        """Give what looks the same one name, and decide which split each video stays in, when every row is known."""
        count, groups = self.contents, Groups(self.contents)
        if count and self._config.near_duplicate_difference:
            signatures = np.memmap(self.signatures, np.uint8, "r", shape=(count, SIGNATURE_BYTES))
            for kind in ("video", "image"):
                query = "SELECT number FROM content WHERE kind = ? ORDER BY number"
                numbers = np.fromiter((n for (n,) in self._connection.execute(query, (kind,))), np.int64)
                # Rows of a memory map that are picked become a copy: where all are of one kind, they stay on disk.
                chosen = signatures if len(numbers) == count else signatures[numbers]
                for i, j, difference in near_pairs(chosen, self._config.near_duplicate_difference):
                    a, b = int(numbers[i]), int(numbers[j])
                    groups.join(a, b)
                    self._pairs += 1
                    if len(self._near) < LISTED:
                        self._near.append((a, b, round(difference, 2)))
        for number in range(count):
            if (name := groups.find(number)) != number:
                self._connection.execute("UPDATE content SET name = ? WHERE number = ?", (name, number))
        query = "SELECT name, split FROM content JOIN content_split USING (sha256) GROUP BY name, split"
        kept: dict[int, str] = {}
        for name, split in self._connection.execute(query):
            kept[name] = kept_split((split, kept.get(name, split)))
        self._connection.executemany("INSERT INTO kept VALUES (?, ?)", kept.items())

    def verdict(self, sample: Sample) -> tuple[str | None, Reason | None, str]:
        """SHA-256 of a row's file, when it was there; why the row does not stay, because of its file or because another
        split has its video; and what exactly is wrong. A row that leaks is counted."""
        sha256, reason, detail = self._media_verdict(sample)
        if sha256 is None or reason is not None:
            return sha256, reason, detail
        name, kept = self._first("SELECT name, split FROM content JOIN kept USING (name) WHERE sha256 = ?", sha256)
        if kept == sample.split:
            return sha256, None, ""
        alike = "SELECT sha256 FROM content JOIN content_split USING (sha256) WHERE name = ? AND split = ? LIMIT 1"
        same = self._first("SELECT sha256 FROM content_split WHERE sha256 = ? AND split = ?", sha256, kept)
        (same_as,) = same or self._first(alike, name, kept)
        reason = "split_leak" if same else "near_duplicate_leak"
        self._leaking[reason] += 1
        if len(self._leaks) < LISTED:
            row = {"id": sample.id, "uri": sample.media.uri, "split": sample.split, "kept_in": kept}
            self._leaks.append(Leak(reason=reason, **row, sha256=sha256, same_as=same_as))
        if not same and not self._config.drop_near_duplicates:
            return sha256, None, ""
        what = "the same video" if same else f"a video that looks the same (SHA-256 {same_as[:12]}…)"
        return sha256, reason, f"{what} is in the split '{kept}'"

    def contamination(self, splits: Mapping[str, SplitCounts]) -> ContaminationReport:
        """What training and evaluation share, once the rows of all splits are written."""
        exact = "SELECT count(*) FROM (SELECT 1 FROM content_split GROUP BY sha256 HAVING count(*) > 1)"
        of_train = "question q JOIN question t ON t.hash = q.hash AND t.split = 'train' WHERE q.split = ?"
        others = {split: counts.rows for split, counts in sorted(splits.items()) if split != "train"}

        def sha256(number: int) -> str:
            return str(self._first("SELECT sha256 FROM content WHERE number = ?", number)[0])

        def repeated(split: str) -> int:
            return int(self._first(f"SELECT coalesce(sum(q.rows), 0) FROM {of_train}", split)[0])

        return ContaminationReport(
            rule=_RULE,
            near_duplicate_difference=self._config.near_duplicate_difference,
            files_in_several_splits=self._first(exact)[0],
            near_duplicate_pairs=self._pairs,
            near_duplicates=tuple(NearDuplicate(a=sha256(a), b=sha256(b), difference=d) for a, b, d in self._near),
            rows_that_leak={reason: self._leaking[reason] for reason in ("split_leak", "near_duplicate_leak")},
            near_duplicates_are_dropped=self._config.drop_near_duplicates,
            leaks=tuple(self._leaks),
            questions={s: {"rows": n, "rows_with_a_question_of_train": repeated(s)} for s, n in others.items()},
        )
