"""The data set's files, from what the plan and the shards left: rows, index, quarantine, card, contamination."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from .... import __version__
from ...common.errors import UserError
from ...common.rows.sample import Sample
from ...common.storage.names import join, sha256_file
from ...common.storage.s3 import FileInfo
from ..records import PartOutcome, Plan, Quarantined, Reason, Shard, ShardOutcome, media_id
from ..task import PrepareTask
from .data_card import DATA_CARD, Contamination, DataCard, MediaCounts, RowCounts, SplitCounts, count_quarantine
from .ledger import CONTAMINATION, ContaminationReport, MergeLedger
from .parquet import send_by_content, write_index, write_rows

QUARANTINE = "quarantine.jsonl"
_QUARANTINED_KEPT = 1000
"""Quarantined rows that are remembered, for the card, MLflow and the message of a stage that fails."""
_README = """---
{header}---

# Prepared video questions

Made by vthink {version}. `rows` are the questions; `media_id` names the entry of `media`
that holds the frames, compressed, of the video or image that a question is about (or, where these would be larger,
the file itself). `card.json` counts what is here, `contamination.json` what training and evaluation shared.

{counts}
"""


class DatasetWriter:
    """Streams the rows of all shards into the data set's files."""

    def __init__(self, outcomes: Sequence[ShardOutcome], plan: Plan, task: PrepareTask, folder: Path):
        self._outcomes, self._plan, self._folder = outcomes, plan, folder
        self._storage = task.storage
        self._prefix = outcomes[0].shard.prefix
        self._ledger = MergeLedger(folder, task.config)
        self.files: dict[str, FileInfo] = {}  # every file of the data set, by name below the prefix
        self.splits: dict[str, SplitCounts] = {}  # what was written, by split
        self.quarantined: Counter[Reason] = Counter()  # rows by reason
        self.examples: list[Quarantined] = []  # the first of them
        self.index_name = ""  # file that says where each medium stands

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
            self._ledger.settle()
            with (self._folder / QUARANTINE).open("w", encoding="utf-8") as quarantine, contextlib.ExitStack() as stack:
                uri = join(self._prefix, "plan", QUARANTINE)  # the rows that the plan could not use
                for row in Quarantined.read_lines(self._storage, uri, self._folder / "plan-quarantine.jsonl"):
                    self._leave_out(row, quarantine)
                opened = [stack.enter_context(path.open("rb")) for path in paths]
                for split in self._ledger.splits():
                    counts = SplitCounts()
                    rows = self._kept_rows(split, opened, quarantine, counts)
                    for path in write_rows(self._folder, split, rows):
                        self._send_by_content(path, "rows/")
                        path.unlink()
                    if counts.rows:
                        self.splits[split] = counts
            self._send(self._folder / QUARANTINE, QUARANTINE)
            index = self._folder / "index.parquet"
            write_index(index, self._ledger.media_places())
            self.index_name = self._send_by_content(index, "")
            contamination = self._ledger.contamination(self.splits)
            self._send_text(CONTAMINATION, contamination.model_dump_json(indent=1))
            self._send_text(DATA_CARD, self._data_card(contamination).model_dump_json(indent=1, by_alias=True))
            self._send_text("README.md", _readme(list(self.files), sorted(self.splits), self.counts()))
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
            problem = "two preparations at once left parts that do not fit together; they are removed, start it again"
            raise UserError(f"shard {shard.index}: {problem}")

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

    def _kept_rows(
        self, split: str, opened: Sequence[IO[bytes]], quarantine: IO[str], counts: SplitCounts
    ) -> Iterator[tuple[Sample, str]]:
        """The rows of a split that stay, and the id of what each is about; they are counted."""
        for shard, offset in self._ledger.rows(split):
            opened[shard].seek(offset)
            _, line, sample = _parse(opened[shard].readline(), self._outcomes[shard].shard)
            sha256, reason, detail = self._ledger.verdict(sample)
            if reason is not None:
                self._leave_out(Quarantined.of(line, sample, reason, detail), quarantine)
                continue
            key = media_id(sample.media)
            counts.add(sample)
            if (duration_s := self._ledger.use(sample, key)) is not None:
                counts.add_media(sample.media.kind, duration_s)
            yield sample.model_copy(update={"media": sample.media.model_copy(update={"sha256": sha256})}), key

    def _data_card(self, contamination: ContaminationReport) -> DataCard:
        plan, ledger, bad = self._plan, self._ledger, self.quarantined
        sums = {name: ledger.sums[name] for name in ("source_bytes", "stored_bytes", "frames")}
        numbers = {"shown": ledger.media, "files": ledger.contents, "files_kept_themselves": ledger.sums["originals"]}
        return DataCard(
            source=plan.source,
            format=plan.format,
            rows=RowCounts(
                rows_in=plan.rows_in, rows_out=self.rows_out, quarantined=bad.total(), left_out=plan.left_out
            ),
            splits=dict(sorted(self.splits.items())),
            media=MediaCounts(**sums, **numbers, resolutions=ledger.resolutions()),
            contamination=Contamination.model_validate(
                contamination.model_dump(include=set(Contamination.model_fields))
            ),
            quarantine=count_quarantine(self.examples, bad),
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
        name, info = send_by_content(self._storage, path, self._prefix, folder)
        self.files[name] = info
        return name

    def _send(self, path: Path, name: str) -> None:
        self._storage.upload_file(path, join(self._prefix, name))
        self.files[name] = FileInfo(path.stat().st_size, sha256_file(path))


def _parse(entry: bytes, shard: Shard) -> tuple[int, int, Sample]:
    """Number of the row, line in the source, and the row."""
    number, line, row = entry.decode().split("\t", 2)
    return int(number), int(line), Sample.load(row, shard.rows_uri)


def _readme(files: Iterable[str], splits: Sequence[str], counts: Mapping[str, int]) -> str:
    """The hub's data set card, from which `datasets.load_dataset` knows the files. It names them one by one: an
    attempt that was cut off may have left others."""
    configs: list[dict[str, Any]] = []
    for name in ("rows", "media"):
        paths = {split: sorted(file for file in files if file.startswith(f"{name}/{split}-")) for split in splits}
        data = [{"split": split, "path": path} for split, path in paths.items() if path]
        configs.append({"config_name": name, "data_files": data})
    configs[0]["default"] = True
    header = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = "\n".join(f"- {name}: {count}" for name, count in counts.items())
    return _README.format(header=header, version=__version__, counts=lines)
