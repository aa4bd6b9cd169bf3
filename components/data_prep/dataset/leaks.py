"""What training and evaluation share: the same files, files that look alike, the same questions.

A video that is in several splits stays in one of them; its rows elsewhere are quarantined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from ...common.config import Section
from ...common.rows.sample import Sample
from ...common.video.clip import SIGNATURE_BYTES
from ..config import DataPrepConfig
from ..records import Reason
from .data_card import Contamination, QuestionOverlap, SplitCounts
from .duplicates import Groups, near_pairs
from .ledger import MergeLedger

CONTAMINATION = "contamination.json"
LISTED = 10_000
"""Longest list of leaks and duplicates in ``contamination.json``; their numbers are always whole."""
_RULE = (
    "a video that is in several splits, byte for byte or by its looks, stays in the first of test, validation, and the "
    "others by name; its rows elsewhere are in quarantine.jsonl. Equal questions about different videos stay."
)


class NearDuplicate(Section):
    """Two files that look the same."""

    a: str
    """SHA-256 of one."""
    b: str
    """SHA-256 of the other."""
    difference: float
    """Root mean square difference of their signatures (of 255)."""


class Leak(Section):
    """A row whose video is also in a split that measures."""

    reason: Reason
    id: str
    uri: str
    split: str
    kept_in: str
    """The split whose rows stay."""
    sha256: str
    """Of its file."""
    same_as: str
    """SHA-256 of the file in the other split."""


class ContaminationReport(Contamination):
    """``contamination.json``: the numbers, and the first `LISTED` of what they count."""

    near_duplicates: tuple[NearDuplicate, ...]
    leaks: tuple[Leak, ...]

    def numbers(self) -> Contamination:
        """For the data card."""
        return Contamination.model_validate(self.model_dump(exclude={"near_duplicates", "leaks"}))


def kept_split(splits: Iterable[str]) -> str:
    """Of the splits that a video is in, the one whose rows stay: what measures is worth more than what trains."""
    order = ["test", "validation"]
    return min(splits, key=lambda split: (order.index(split) if split in order else len(order), split))


class Leaks:
    """Which split each video stays in, and what leaks from it; made when the ledger knows every row."""

    def __init__(self, ledger: MergeLedger, config: DataPrepConfig):
        self._connection = ledger.connection
        self._ledger = ledger
        self._config = config
        self._pairs = 0
        self._near: list[tuple[int, int, float]] = []
        self._rows: Counter[Reason] = Counter()
        self._leaks: list[Leak] = []
        self._join_near_duplicates()
        self._decide_splits()

    def _join_near_duplicates(self) -> None:
        """Give what looks the same one name."""
        count, groups = self._ledger.contents, Groups(self._ledger.contents)
        if count and self._config.near_duplicate_difference:
            signatures = np.memmap(self._ledger.signatures, np.uint8, "r", shape=(count, SIGNATURE_BYTES))
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

    def _decide_splits(self) -> None:
        query = "SELECT name, split FROM content JOIN content_split USING (sha256) GROUP BY name, split"
        kept: dict[int, str] = {}
        for name, split in self._connection.execute(query):
            kept[name] = kept_split((split, kept.get(name, split)))
        self._connection.executemany("INSERT INTO kept VALUES (?, ?)", kept.items())

    def verdict(self, sample: Sample, sha256: str) -> tuple[Reason, str] | None:
        """Why a row does not stay, because another split has its video; a row that leaks is counted."""
        query = "SELECT name, split FROM content JOIN kept USING (name) WHERE sha256 = ?"
        name, kept = self._connection.execute(query, (sha256,)).fetchone()
        if kept == sample.split:
            return None
        same = "SELECT 1 FROM content_split WHERE sha256 = ? AND split = ?"
        if self._connection.execute(same, (sha256, kept)).fetchone():
            self._count("split_leak", sample, kept, sha256, sha256)
            return "split_leak", f"the same video is in the split '{kept}'"
        alike = "SELECT sha256 FROM content JOIN content_split USING (sha256) WHERE name = ? AND split = ? LIMIT 1"
        (other,) = self._connection.execute(alike, (name, kept)).fetchone()
        self._count("near_duplicate_leak", sample, kept, sha256, other)
        if not self._config.drop_near_duplicates:
            return None
        return "near_duplicate_leak", f"a video that looks the same (SHA-256 {other[:12]}…) is in the split '{kept}'"

    def _count(self, reason: Reason, sample: Sample, kept: str, sha256: str, same_as: str) -> None:
        self._rows[reason] += 1
        if len(self._leaks) < LISTED:
            row = {"id": sample.id, "uri": sample.media.uri, "split": sample.split, "kept_in": kept}
            self._leaks.append(Leak(reason=reason, **row, sha256=sha256, same_as=same_as))

    def report(self, splits: Mapping[str, SplitCounts]) -> ContaminationReport:
        """What training and evaluation share, once the rows of all splits are written."""
        exact = "SELECT count(*) FROM (SELECT 1 FROM content_split GROUP BY sha256 HAVING count(*) > 1)"

        def sha256(number: int) -> str:
            query = "SELECT sha256 FROM content WHERE number = ?"
            return str(self._connection.execute(query, (number,)).fetchone()[0])

        return ContaminationReport(
            rule=_RULE,
            near_duplicate_difference=self._config.near_duplicate_difference,
            files_in_several_splits=self._connection.execute(exact).fetchone()[0],
            near_duplicate_pairs=self._pairs,
            near_duplicates=tuple(NearDuplicate(a=sha256(a), b=sha256(b), difference=d) for a, b, d in self._near),
            rows_that_leak={reason: self._rows[reason] for reason in ("split_leak", "near_duplicate_leak")},
            near_duplicates_are_dropped=self._config.drop_near_duplicates,
            leaks=tuple(self._leaks),
            questions={
                split: QuestionOverlap(
                    rows=counts.rows, rows_with_a_question_of_train=self._ledger.rows_with_a_question_of_train(split)
                )
                for split, counts in sorted(splits.items())
                if split != "train"
            },
        )
