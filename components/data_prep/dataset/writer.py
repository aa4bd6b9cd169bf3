"""The data set's files, from what the plan and the shards left: rows, index, quarantine, card, contamination."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ...common.errors import UserError
from ...common.rows.sample import Sample
from ...common.storage.names import join, sha256_file
from ...common.storage.s3 import FileInfo
from ..records import PartOutcome, Plan, Quarantined, Reason, Shard, ShardOutcome, media_id
from ..task import PrepareTask
from .data_card import DATA_CARD, DataCard, MediaCounts, RowCounts, SplitCounts, count_quarantine
from .leaks import CONTAMINATION, ContaminationReport, Leaks
from .ledger import MergeLedger
from .readme import hub_readme
from .row_files import RowFiles, write_index

QUARANTINE = "quarantine.jsonl"
_QUARANTINED_KEPT = 1000
"""Quarantined rows that are remembered, for the card, MLflow and the message of a stage that fails."""


class DatasetWriter:
    """Streams the rows of all shards into the data set's files."""

    def __init__(self, outcomes: Sequence[ShardOutcome], plan: Plan, task: PrepareTask, folder: Path):
        self._outcomes = outcomes
        self._plan = plan
        self._config = task.config
        self._storage = task.storage
        self._folder = folder
        self._prefix = outcomes[0].shard.prefix
        self._ledger = MergeLedger(folder, task.config.order)
        self.files: dict[str, FileInfo] = {}
        """Every file of the data set, by name below the prefix."""
        self.splits: dict[str, SplitCounts] = {}
        """What was written, by split."""
        self.quarantined: Counter[Reason] = Counter()
        """Rows by reason."""
        self.examples: list[Quarantined] = []
        """The first of them."""
        self.index_name = ""
        """File that says where each medium stands."""

    @property
    def rows_out(self) -> int:
        """Rows of the data set."""
        return sum(counts.rows for counts in self.splits.values())

    def counts(self) -> dict[str, int]:
        """What goes into the manifest."""
        return {
            "rows_in": self._plan.rows_in,
            "rows_out": self.rows_out,
            "quarantined": self.quarantined.total(),
            "left_out": sum(self._plan.left_out.values()),
            "media": self._ledger.media,
            **{f"rows_{split}": counts.rows for split, counts in sorted(self.splits.items())},
            **{f"quarantined_{reason}": count for reason, count in sorted(self.quarantined.items())},
            **{f"left_out_{setting}": count for setting, count in sorted(self._plan.left_out.items())},
        }

    def metrics(self) -> dict[str, float]:
        """What goes into the manifest beside the counts."""
        sums = self._ledger.sums
        names = ("frames", "stored_bytes", "source_bytes", "originals")
        bytes_per_frame = sums["stored_bytes"] / max(1, sums["frames"])
        return {"bytes_per_frame": bytes_per_frame, **{name: float(sums[name]) for name in names}}

    def write(self) -> None:
        """Write and send everything but the markers."""
        with self._ledger:
            for outcome in self._outcomes:
                self._read_parts(outcome)
            paths = [self._fetch_rows(outcome.shard) for outcome in self._outcomes]
            leaks = Leaks(self._ledger, self._config)
            with (self._folder / QUARANTINE).open("w", encoding="utf-8") as quarantine, contextlib.ExitStack() as stack:
                self._take_over_quarantine(quarantine)
                opened = [stack.enter_context(path.open("rb")) for path in paths]
                for split in self._ledger.splits():
                    self._write_split(split, opened, leaks, quarantine)
            self._send(self._folder / QUARANTINE, QUARANTINE)
            index = self._folder / "index.parquet"
            write_index(index, self._ledger)
            self.index_name = self._send_by_content(index, "")
            contamination = leaks.report(self.splits)
            self._send_text(CONTAMINATION, contamination.model_dump_json(indent=1))
            self._send_text(DATA_CARD, self._data_card(contamination).model_dump_json(indent=1, by_alias=True))
            self._send_text("README.md", hub_readme(list(self.files), sorted(self.splits), self.counts()))
        left_out = sum(self._plan.left_out.values())
        if self._plan.rows_in != self.rows_out + self.quarantined.total() + left_out:
            raise RuntimeError(f"rows were lost: {self.counts()}; please report this")

    def _read_parts(self, outcome: ShardOutcome) -> None:
        """Take over what a shard says about each medium and file."""
        shard, media = outcome.shard, 0
        uris = [shard.part_uri(part) for part in range(outcome.parts)]
        for uri in uris:
            part = PartOutcome.read(self._storage, uri)
            media += len(part.media)
            self.files |= {name: FileInfo(*info) for name, info in part.files.items()}
            self._ledger.add_part(part)
        if media != shard.media:
            # Parts of two attempts that cut the shard differently (possible where a decode ran into its time limit in
            # one of them): do it again.
            for uri in (shard.done_uri, *uris):
                self._storage.delete(uri)
            raise UserError(
                f"shard {shard.index}: two preparations at once left parts that do not fit together; "
                "they are removed, start it again"
            )

    def _fetch_rows(self, shard: Shard) -> Path:
        """Fetch the rows of a shard, and note where each stands."""
        path = self._folder / f"rows-{shard.index:05d}.jsonl"
        self._storage.download_file(shard.rows_uri, path)
        offset = 0
        with path.open("rb") as file:
            for entry in file:
                number, _, sample = _parse(entry, shard)
                self._ledger.add_row(number, sample, shard.index, offset)
                offset += len(entry)
        return path

    def _take_over_quarantine(self, quarantine: IO[str]) -> None:
        """The rows that the plan could not use."""
        uri, path = join(self._prefix, "plan", QUARANTINE), self._folder / "plan-quarantine.jsonl"
        self._storage.download_file(uri, path)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                self._leave_out(Quarantined.load(line, uri), quarantine)

    def _write_split(self, split: str, opened: Sequence[IO[bytes]], leaks: Leaks, quarantine: IO[str]) -> None:
        counts = SplitCounts()
        with RowFiles(self._folder, split) as rows:
            for shard, offset in self._ledger.rows(split):
                opened[shard].seek(offset)
                _, line, sample = _parse(opened[shard].readline(), self._outcomes[shard].shard)
                verdict = self._ledger.media_verdict(sample)
                refused = (
                    (verdict.reason, verdict.detail) if verdict.reason else leaks.verdict(sample, str(verdict.sha256))
                )
                if refused is not None:
                    self._leave_out(Quarantined.of(line, sample, *refused), quarantine)
                    continue
                key = media_id(sample.media)
                media = sample.media.model_copy(update={"sha256": verdict.sha256})
                rows.add(sample.model_copy(update={"media": media}), key)
                counts.add(sample)
                if (duration_s := self._ledger.use(sample, key)) is not None:
                    counts.add_media(sample.media.kind, duration_s)
        for path in rows.paths:
            self._send_by_content(path, "rows/")
            path.unlink()
        if counts.rows:
            self.splits[split] = counts

    def _data_card(self, contamination: ContaminationReport) -> DataCard:
        sums = self._ledger.sums
        return DataCard(
            source=self._plan.source,
            format=self._plan.format,
            rows=RowCounts(
                rows_in=self._plan.rows_in,
                rows_out=self.rows_out,
                quarantined=self.quarantined.total(),
                left_out=self._plan.left_out,
            ),
            splits=dict(sorted(self.splits.items())),
            media=MediaCounts(
                shown=self._ledger.media,
                files=self._ledger.contents,
                source_bytes=sums["source_bytes"],
                stored_bytes=sums["stored_bytes"],
                frames=sums["frames"],
                files_kept_themselves=sums["originals"],
                resolutions=self._ledger.resolutions(),
            ),
            contamination=contamination.numbers(),
            quarantine=count_quarantine(self.examples, self.quarantined),
        )

    def _leave_out(self, row: Quarantined, quarantine: IO[str]) -> None:
        quarantine.write(row.to_json() + "\n")
        self.quarantined[row.reason] += 1
        if len(self.examples) < _QUARANTINED_KEPT:
            self.examples.append(row)

    def _send_text(self, name: str, text: str) -> None:
        path = self._folder / name
        path.write_text(text, encoding="utf-8")
        self._send(path, name)

    def _send_by_content(self, path: Path, folder: str) -> str:
        """Send a file named by its content; the name."""
        sha256 = sha256_file(path)
        name = f"{folder}{path.stem}-{sha256[:8]}.parquet"
        self._send(path, name, sha256)
        return name

    def _send(self, path: Path, name: str, sha256: str | None = None) -> None:
        self._storage.upload_file(path, join(self._prefix, name))
        self.files[name] = FileInfo(path.stat().st_size, sha256 or sha256_file(path))


def _parse(entry: bytes, shard: Shard) -> tuple[int, int, Sample]:
    """Number of the row, line in the source, and the row."""
    number, line, row = entry.decode().split("\t", 2)
    return int(number), int(line), Sample.load(row, shard.rows_uri)
