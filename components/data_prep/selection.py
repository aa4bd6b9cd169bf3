"""Which rows of a source are used, and in which split: its ids, the held-out share, pass rates and the mixture."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Mapping

from ..common.errors import UserError
from ..common.rows.files import RowError
from ..common.rows.sample import Sample
from .config import DataPrepConfig
from .dataset.data_card import pass_rate
from .records import Quarantined
from .source import resolve_uri

IDS_TABLE = "CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID;"  # what `check_row` needs in a ledger


def check_row(
    line: int, row: Sample | RowError, base: str, ledger: sqlite3.Connection, number: int | None
) -> Sample | Quarantined:
    """The row with the full URI of its media, or why it cannot be used.

    Args:
        line: where the row is in its source.
        row: as it was read.
        base: what relative media count from.
        ledger: with `IDS_TABLE`, in which the row's id is noted.
        number: counts the rows, where ids are no more than that: one that is taken gets it added. None: an id that is
            taken is a mistake.
    """
    if isinstance(row, RowError):
        return Quarantined(line=line, reason="unreadable_row", detail=row.reason, raw=row.raw)
    try:
        uri = resolve_uri(row.media.uri, base)
    except ValueError as error:
        return Quarantined.of(line, row, "missing_media", str(error))
    row = row.model_copy(update={"media": row.media.model_copy(update={"uri": uri})})
    taken = "SELECT line FROM ids WHERE id = ?"
    earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None and number is not None:
        row = row.model_copy(update={"id": f"{row.id}#{number}"})
        earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None:
        return Quarantined.of(line, row, "duplicate_id", f"the id is already that of line {earlier[0]}")
    ledger.execute("INSERT INTO ids VALUES (?, ?)", (row.id, line))
    return row


def hold_out(sample: Sample, holdout: Mapping[str, float]) -> Sample:
    """The row in the split that its file goes to (`DataPrepConfig.holdout`)."""
    if not holdout or sample.split != "train":
        return sample
    drawn = _unit(f"holdout/{sample.media.uri}")
    for split, share in sorted(holdout.items()):
        if drawn < share:
            return sample.model_copy(update={"split": split})
        drawn -= share
    return sample


def excluding_setting(sample: Sample, config: DataPrepConfig) -> str | None:
    """The setting on pass rates that leaves a training row out."""
    rate = pass_rate(sample)
    if rate is None or sample.split != "train":
        return None
    if config.min_pass_rate is not None and rate < config.min_pass_rate:
        return "min_pass_rate"
    return "max_pass_rate" if config.max_pass_rate is not None and rate > config.max_pass_rate else None


class Mixture:
    """The mixture of the training split (`DataPrepConfig.weights`): `count` every row, `settle`, then `includes`."""

    def __init__(self, config: DataPrepConfig):
        self._source = config.source
        self._weights = config.weights
        self._rows: Counter[str] = Counter()
        self._shares: dict[str, float] = {}

    def _group(self, sample: Sample) -> str | None:
        names = (f"{sample.source}/{sample.problem_type}", sample.source, f"*/{sample.problem_type}", "*")
        return next((name for name in names if name in self._weights), None)

    def count(self, sample: Sample) -> None:
        """Count a row that may be used."""
        if sample.split == "train" and (group := self._group(sample)) is not None:
            self._rows[group] += 1

    def settle(self) -> None:
        """Find the share of each group's rows that makes the mixture, the scarcest group being used whole.

        Raises:
            UserError: a group has no rows, so that there is no such mixture.
        """
        positive = {name: weight for name, weight in self._weights.items() if weight > 0}
        if empty := [name for name in positive if not self._rows[name]]:
            raise UserError(f"data.weights: no training row of {self._source} is in the group '{empty[0]}'")
        scale = min((self._rows[name] / weight for name, weight in positive.items()), default=0.0)
        self._shares = {name: min(1.0, scale * w / max(1, self._rows[name])) for name, w in self._weights.items()}

    def includes(self, sample: Sample) -> bool:
        """Whether a row is in the mixture."""
        if not self._weights or sample.split != "train":
            return True
        group = self._group(sample)
        return group is not None and _unit(f"weights/{sample.id}") < self._shares[group]


def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
