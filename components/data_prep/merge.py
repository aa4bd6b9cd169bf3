"""The shards put together as one data set."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml

from ... import __version__
from ..common.provenance import git_commit
from ..common.rows.arrow import index_schema, rows_schema, to_record, write_records
from ..common.rows.prepared import INDEX
from ..common.rows.sample import Sample
from ..common.storage.manifest import Manifest
from ..common.storage.names import join, sha256_file
from ..common.storage.objects import FileInfo
from ..common.tracking.run import Tracker
from ..common.video.signature import SIGNATURE_BYTES
from .card import CARD, SplitCard, most, pass_rate, quarantine_summary
from .duplicates import Groups, near_pairs
from .leaks import _Leaks, kept_split
from .outcomes import FileOutcome, PartOutcome, Quarantined, Reason, Shard
from .plan import _media_id, _quarantined
from .report.page import write_report
from .task import LISTED, STAGE, PrepareError, _in_use, _Job, _parse, _say, open_ledger

ROWS_PER_FILE = 50_000


ROWS_PER_GROUP = 256
"""Rows in a file and in a row group of it; taking one row out reads its group."""


def merge_data(run: str, config: str, video: str, shards: Sequence[str], report: str | None = None) -> str:
    """Write the rows whose media could be decoded, the quarantine, the data set card, the report and the manifest.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.
        shards: what `prepare_shard` returned, for every shard.
        report: also write the HTML report to this file.

    Returns:
        URI of the manifest.

    Raises:
        PrepareError: a shard is missing, or too many rows had to be quarantined (``max_quarantined``).
    """
    job = _Job.read(run, config, video)
    start = time.monotonic()
    records = sorted((job.storage.read_json(uri) for uri in shards), key=lambda r: r["shard"]["index"])
    tasks = [Shard.load(record["shard"], "shard") for record in records]
    found = [(task.prefix, task.index) for task in tasks]
    if not tasks or found != [(tasks[0].prefix, index) for index in range(tasks[0].count)]:
        raise PrepareError(f"these are not all shards of one plan: {found}")
    fp, prefix = tasks[0].fingerprint, tasks[0].prefix
    finished = Manifest.find(job.storage, prefix)
    if finished is not None:
        _say(f"prepare {fp}: reused")
        if report is not None:
            job.storage.download_file(finished.files["report"], report)
        return finished.manifest_uri
    plan = job.storage.read_json(join(prefix, "plan.json"))
    inputs = {"source": job.config.source}
    section = job.config.model_dump(mode="json")
    with job.folder() as folder, Tracker.start(job.context, STAGE, fp, section, inputs) as tracker:
        with tempfile.TemporaryDirectory(prefix="merge-", dir=folder) as name:
            merged = _Merge(tasks, plan, job, Path(name))
            merged.read_parts([record["parts"] for record in records])
            merged.write()
        metrics = merged.metrics()
        tracker.log_metrics({f"prepare/{key}": float(n) for key, n in {**merged.counts(), **metrics}.items()})
        tracker.set_tags({"vthink.data_fingerprint": fp})
        if merged.examples:
            tracker.log_table("quarantine", _columns(merged.examples))
        _refuse_bad_source(merged, job)
        job.storage.mark_complete(prefix, merged.files)
        manifest = Manifest(
            stage=STAGE,
            fingerprint=fp,
            uri=prefix,
            inputs=inputs,
            counts=merged.counts(),
            metrics=metrics,
            files={
                "data": prefix,
                "quarantine": merged.quarantine_uri,
                "card": join(prefix, CARD),
                "contamination": join(prefix, "contamination.json"),
                "report": join(prefix, "report.html"),
            },
            config=section,
            details={
                "video": job.video.model_dump(mode="json"),
                "codec": job.video.frame_codec,
                INDEX: merged.index_name,
                "files": {name: [file.size, file.sha256] for name, file in sorted(merged.files.items())},
                "source_sha256": plan["source_sha256"],
                "format": plan["format"],
            },
            mlflow_run_id=tracker.run_id,
            seconds=plan["seconds"] + sum(record["seconds"] for record in records) + time.monotonic() - start,
            git_commit=git_commit(),
        )
        with tempfile.TemporaryDirectory(prefix="report-", dir=folder) as name:
            page = write_report(manifest, job.storage, Path(name))
        job.storage.write_bytes(manifest.files["report"], page.encode())
        tracker.log_html("data_report", page)
        if report is not None:
            Path(report).write_text(page, encoding="utf-8")
        manifest.write(job.storage)
        world = job.world_folder(folder, prefix)
        with _in_use(world, shared=False, wait=False) as alone:
            if alone:
                shutil.rmtree(world, ignore_errors=True)
    counts = manifest.counts
    _say(f"prepare {fp}: {counts['rows_out']} rows of {counts['rows_in']}, {counts['media']} media")
    return manifest.manifest_uri


def _columns(rows: Sequence[Quarantined]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in ("line", "id", "reason", "detail")}


_MERGE_TABLES = """
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


class _Merge:
    """Streams the rows of all shards into the data set's files."""

    def __init__(self, tasks: Sequence[Shard], plan: Mapping[str, Any], job: _Job, folder: Path):
        self._tasks = tasks
        self._plan = plan
        self._config = job.config
        self._storage = job.storage
        self._folder = folder
        self._prefix = tasks[0].prefix
        self._ledger = open_ledger(folder, _MERGE_TABLES)
        self._sums: Counter[str] = Counter()
        self.files: dict[str, FileInfo] = {}
        """Every file of the data set, by name below the prefix."""
        self.rows_in = int(plan["rows_in"])
        self.left_out = Counter({name: int(n) for name, n in plan["left_out"].items()})
        """Good rows that the configuration does not want, by setting."""
        self.splits: dict[str, SplitCard] = {}
        """What was written, by split."""
        self.quarantined: Counter[str] = Counter()
        """Rows by reason."""
        self.examples: list[Quarantined] = []
        """The first of them."""
        self.media = 0
        """Media that rows are about."""
        self.index_name = ""
        """File that says where each medium stands."""

    @property
    def quarantine_uri(self) -> str:
        """The list of the rows that are left out."""
        return join(self._prefix, "quarantine.jsonl")

    @property
    def rows_out(self) -> int:
        """Rows of the data set."""
        return sum(card.rows for card in self.splits.values())

    def counts(self) -> dict[str, int]:
        """What goes into the manifest."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "quarantined": self.quarantined.total(),
            "left_out": self.left_out.total(),
            "media": self.media,
            **{f"rows_{split}": card.rows for split, card in sorted(self.splits.items())},
            **{f"quarantined_{reason}": count for reason, count in sorted(self.quarantined.items())},
            **{f"left_out_{setting}": count for setting, count in sorted(self.left_out.items())},
        }

    def metrics(self) -> dict[str, float]:
        """What goes into the manifest beside the counts."""
        frames = self._sums["frames"]
        return {
            "bytes_per_frame": self._sums["stored_bytes"] / max(1, frames),
            "frames": float(frames),
            "stored_bytes": float(self._sums["stored_bytes"]),
            "source_bytes": float(self._sums["source_bytes"]),
            "originals": float(self._sums["originals"]),
        }

    def read_parts(self, parts: Sequence[int]) -> None:
        """Take over what the shards say about each medium and file; ``parts``: how many parts each shard has."""
        with (self._folder / "signatures").open("wb") as signatures:
            for task, count in zip(self._tasks, parts, strict=True):
                media = 0
                for part in range(count):
                    uri = task.part_uri(part)
                    outcome = PartOutcome.load(self._storage.read_json(uri), uri)
                    media += len(outcome.media)
                    self.files |= {name: FileInfo(*info) for name, info in outcome.files.items()}
                    for name in ("frames", "stored_bytes", "originals"):
                        self._sums[name] += getattr(outcome, name)
                    self._ledger.executemany(
                        "INSERT OR IGNORE INTO media VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                        [
                            (key, m.sha256, m.reason, m.detail, *(m.place or (None, None, None)), m.duration_s)
                            for key, m in outcome.media.items()
                        ],
                    )
                    for file in outcome.sources:
                        self._add_content(file, signatures)
                if media != task.media:
                    # Parts of two attempts that cut the shard differently (possible where a decode ran into its
                    # time limit in one of them): do it again.
                    for uri in (task.done_uri, *(task.part_uri(part) for part in range(count))):
                        self._storage.delete(uri)
                    raise PrepareError(
                        f"shard {task.index}: two preparations at once left parts that do not fit together; "
                        "they are removed, start it again"
                    )

    def _add_content(self, file: FileOutcome, signatures: IO[bytes]) -> None:
        self._sums["source_bytes"] += file.bytes
        number = self._sums["contents"]
        size = (file.kind, file.bytes, file.width, file.height, file.duration_s)
        new = self._ledger.execute(
            "INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (file.sha256, number, *size, number)
        )
        if new.rowcount:
            signatures.write(base64.b64decode(file.signature).ljust(SIGNATURE_BYTES, b"\0")[:SIGNATURE_BYTES])
            self._sums["contents"] += 1

    def write(self) -> None:
        """Write and send everything but the markers."""
        paths = self._fetch_rows()
        leaks = self._find_leaks()
        path = self._folder / "quarantine.jsonl"
        with path.open("w", encoding="utf-8") as quarantine, contextlib.ExitStack() as stack:
            plan_uri = join(self._prefix, "plan/quarantine.jsonl")
            self._storage.download_file(plan_uri, self._folder / "plan-quarantine.jsonl")
            for entry in stack.enter_context((self._folder / "plan-quarantine.jsonl").open(encoding="utf-8")):
                self._leave_out(Quarantined.load(entry, plan_uri), quarantine)
            opened = [stack.enter_context(rows.open("rb")) for rows in paths]
            splits = [name for (name,) in self._ledger.execute("SELECT DISTINCT split FROM row ORDER BY split")]
            for split in splits:
                self._write_split(split, opened, leaks, quarantine)
        self._write_index()
        contamination = self._contamination(leaks)
        self._send(path, "quarantine.jsonl")
        self._send_json("contamination.json", contamination)
        self._send_json(CARD, self._card(contamination))
        card = self._folder / "README.md"
        card.write_text(_readme(self.files, sorted(self.splits), self.counts()), encoding="utf-8")
        self._send(card, "README.md")
        self._ledger.close()
        if self.rows_in != self.rows_out + self.quarantined.total() + self.left_out.total():
            raise PrepareError(f"rows were lost: {self.counts()}; please report this")

    def _fetch_rows(self) -> list[Path]:
        """Fetch the rows of all shards, and note where each stands and which splits its video is in."""
        paths = []
        for task in self._tasks:
            path = self._folder / f"rows-{task.index:05d}.jsonl"
            self._storage.download_file(task.rows_uri, path)
            paths.append(path)
            with path.open("rb") as file:
                offset = 0
                for entry in file:
                    number, _, sample = _parse(entry, task)
                    reason, _, sha256 = self._verdict(sample)
                    rate = pass_rate(sample)
                    # Rows without a pass rate come last, in either order.
                    last = -1.0 if self._config.order == "easy_first" else 2.0
                    where = (last if rate is None else rate, task.index, offset)
                    self._ledger.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?)", (number, sample.split, *where))
                    if reason is None:
                        self._ledger.execute(
                            "INSERT OR IGNORE INTO content_split VALUES (?, ?)", (sha256, sample.split)
                        )
                    offset += len(entry)
        return paths

    def _verdict(self, sample: Sample) -> tuple[Reason | None, str, str | None]:
        """Whether a row's file can be used: reason and detail against it, and the file's SHA-256."""
        query = "SELECT sha256, reason, detail FROM media WHERE id = ?"
        sha256, reason, detail = self._ledger.execute(query, (_media_id(sample.media),)).fetchone()
        if reason is None and sample.media.sha256 not in (None, sha256):
            reason, detail = "sha256_mismatch", f"the file's SHA-256 is {sha256}"
        return reason, detail, sha256

    def _find_leaks(self) -> _Leaks:
        """Join what is the same or looks the same, and decide which split each group stays in."""
        count = self._sums["contents"]
        groups, leaks = Groups(count), _Leaks()
        if count and self._config.near_duplicate_difference:
            signatures = np.memmap(self._folder / "signatures", np.uint8, "r", shape=(count, SIGNATURE_BYTES))
            for kind in ("video", "image"):
                query = "SELECT number FROM content WHERE kind = ? ORDER BY number"
                numbers = np.fromiter((n for (n,) in self._ledger.execute(query, (kind,))), np.int64)
                # Rows of a memory map that are picked become a copy: where all are of one kind, they stay on disk.
                chosen = signatures if len(numbers) == count else signatures[numbers]
                for i, j, difference in near_pairs(chosen, self._config.near_duplicate_difference):
                    a, b = int(numbers[i]), int(numbers[j])
                    groups.join(a, b)
                    leaks.pairs += 1
                    if len(leaks.listed) < LISTED:
                        leaks.listed.append((a, b, round(difference, 2)))
        for number in range(count):
            if (name := groups.find(number)) != number:
                self._ledger.execute("UPDATE content SET name = ? WHERE number = ?", (name, number))
        query = "SELECT name, split FROM content JOIN content_split USING (sha256) GROUP BY name, split ORDER BY name"
        held: dict[int, set[str]] = {}
        writer = self._ledger.cursor()

        def decide() -> None:
            for name, splits in held.items():
                writer.execute("INSERT INTO kept VALUES (?, ?)", (name, kept_split(splits)))
            held.clear()

        for name, split in self._ledger.execute(query).fetchall():
            if name not in held:
                decide()
            held.setdefault(name, set()).add(split)
        decide()
        return leaks

    def _write_split(self, split: str, opened: Sequence[IO[bytes]], leaks: _Leaks, quarantine: IO[str]) -> None:
        query = f"SELECT shard, offset FROM row WHERE split = ? ORDER BY {_ORDERS[self._config.order]}"
        card = SplitCard()
        with _RowFiles(self._folder, split) as rows:
            for shard, offset in self._ledger.execute(query, (split,)):
                opened[shard].seek(offset)
                _, line, sample = _parse(opened[shard].readline(), self._tasks[shard])
                reason, detail, sha256 = self._verdict(sample)
                if reason is None:
                    reason, detail = self._leak(sample, str(sha256), leaks)
                if reason is not None:
                    self._leave_out(_quarantined(line, sample, reason, detail), quarantine)
                    continue
                media_id = _media_id(sample.media)
                media = sample.media.model_copy(update={"sha256": sha256})
                rows.add(sample.model_copy(update={"media": media}), media_id)
                card.add(sample)
                self._note(sample, media_id, split, card)
        for path in rows.paths:
            sha256 = sha256_file(path)
            self._send(path, f"rows/{path.stem}-{sha256[:8]}.parquet", sha256)
            path.unlink()
        if card.rows:
            self.splits[split] = card

    def _leak(self, sample: Sample, sha256: str, leaks: _Leaks) -> tuple[Reason | None, str]:
        query = "SELECT name, split FROM content JOIN kept USING (name) WHERE sha256 = ?"
        name, kept = self._ledger.execute(query, (sha256,)).fetchone()
        if kept == sample.split:
            return None, ""
        itself = "SELECT 1 FROM content_split WHERE sha256 = ? AND split = ?"
        if self._ledger.execute(itself, (sha256, kept)).fetchone():
            leaks.add("split_leak", sample, kept, sha256, sha256)
            return "split_leak", f"the same video is in the split '{kept}'"
        other = "SELECT sha256 FROM content JOIN content_split USING (sha256) WHERE name = ? AND split = ? LIMIT 1"
        (like,) = self._ledger.execute(other, (name, kept)).fetchone()
        leaks.add("near_duplicate_leak", sample, kept, sha256, like)
        if not self._config.drop_near_duplicates:
            return None, ""
        return "near_duplicate_leak", f"a video that looks the same (SHA-256 {like[:12]}…) is in the split '{kept}'"

    def _note(self, sample: Sample, media_id: str, split: str, card: SplitCard) -> None:
        """Count the medium of a row once, and its question."""
        new = self._ledger.execute("UPDATE media SET split = ? WHERE id = ? AND split IS NULL", (split, media_id))
        if new.rowcount:
            self.media += 1
            query = "SELECT duration_s FROM media WHERE id = ?"
            card.add_media(sample.media.kind, self._ledger.execute(query, (media_id,)).fetchone()[0])
        text = "\n".join(" ".join(part.lower().split()) for part in (sample.question, *sorted(sample.options)))
        digest = hashlib.sha256(text.encode()).digest()[:16]
        upsert = "INSERT INTO question VALUES (?, ?, 1) ON CONFLICT (hash, split) DO UPDATE SET rows = rows + 1"
        self._ledger.execute(upsert, (digest, split))

    def _write_index(self) -> None:
        import pyarrow.parquet as pq

        path = self._folder / "index.parquet"
        query = "SELECT id, file, grp, row FROM media WHERE split IS NOT NULL ORDER BY id"
        with pq.ParquetWriter(path, index_schema()) as writer:
            found = self._ledger.execute(query)
            while some := found.fetchmany(65_536):
                write_records(writer, [dict(zip(("media_id", "file", "group", "row"), r, strict=True)) for r in some])
        sha256 = sha256_file(path)
        self.index_name = f"index-{sha256[:8]}.parquet"
        self._send(path, self.index_name, sha256)

    def _contamination(self, leaks: _Leaks) -> dict[str, Any]:
        """What training and evaluation share: equal files, files that look alike, and equal questions."""
        sha256 = "SELECT sha256 FROM content WHERE number = ?"
        exact = "SELECT count(*) FROM (SELECT 1 FROM content_split GROUP BY sha256 HAVING count(*) > 1)"
        pairs = [
            {"a": self._ledger.execute(sha256, (a,)).fetchone()[0],
             "b": self._ledger.execute(sha256, (b,)).fetchone()[0], "difference": difference}
            for a, b, difference in leaks.listed
        ]  # fmt: skip
        questions = {
            split: {
                "rows": card.rows,
                "rows_with_a_question_of_train": self._ledger.execute(
                    "SELECT coalesce(sum(q.rows), 0) FROM question q JOIN question t "
                    "ON t.hash = q.hash AND t.split = 'train' WHERE q.split = ?",
                    (split,),
                ).fetchone()[0],
            }
            for split, card in sorted(self.splits.items())
            if split != "train"
        }
        return {
            "rule": "a video that is in several splits, byte for byte or by its looks, stays in the first of test, "
            "validation, and the others by name; its rows elsewhere are in quarantine.jsonl. Equal questions about "
            "different videos stay.",
            "near_duplicate_difference": self._config.near_duplicate_difference,
            "files_in_several_splits": self._ledger.execute(exact).fetchone()[0],
            "near_duplicate_pairs": leaks.pairs,
            "near_duplicates": pairs,
            "rows_that_leak": {reason: leaks.rows[reason] for reason in ("split_leak", "near_duplicate_leak")},
            "near_duplicates_are_dropped": self._config.drop_near_duplicates,
            "leaks": leaks.examples,
            "questions": questions,
        }

    def _card(self, contamination: Mapping[str, Any]) -> dict[str, Any]:
        contents = self._ledger.execute("SELECT kind, width, height, count(*) FROM content GROUP BY 1, 2, 3")
        resolutions: dict[str, Counter[str]] = {"video": Counter(), "image": Counter()}
        for kind, width, height, count in contents:
            resolutions[kind][f"{width}x{height}"] = count
        listed = ("near_duplicates", "leaks")
        return {
            "source": self._plan["source"],
            "format": self._plan["format"],
            "rows": {
                "in": self.rows_in,
                "out": self.rows_out,
                "quarantined": self.quarantined.total(),
                "left_out": dict(self.left_out),
            },
            "splits": {split: card.to_json() for split, card in sorted(self.splits.items())},
            "media": {
                "shown": self.media,
                "files": self._sums["contents"],
                "source_bytes": self._sums["source_bytes"],
                "stored_bytes": self._sums["stored_bytes"],
                "frames": self._sums["frames"],
                "files_kept_themselves": self._sums["originals"],
                "resolutions": {kind: most(counts) for kind, counts in resolutions.items() if counts},
            },
            "contamination": {name: value for name, value in contamination.items() if name not in listed},
            "quarantine": quarantine_summary((row.model_dump(mode="json") for row in self.examples), self.quarantined),
        }

    def _leave_out(self, row: Quarantined, quarantine: IO[str]) -> None:
        quarantine.write(row.to_json() + "\n")
        self.quarantined[row.reason] += 1
        if len(self.examples) < 1000:
            self.examples.append(row)

    def _send_json(self, name: str, value: Any) -> None:
        path = self._folder / name
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        self._send(path, name)

    def _send(self, path: Path, name: str, sha256: str | None = None) -> None:
        self._storage.upload_file(path, join(self._prefix, name))
        self.files[name] = FileInfo(path.stat().st_size, sha256 or sha256_file(path))


class _RowFiles:
    """The Parquet files of the rows of a split."""

    def __init__(self, folder: Path, split: str):
        self._folder = folder
        self._split = split
        self._writer: Any = None
        self._batch: list[dict[str, Any]] = []
        self._rows = 0
        self.paths: list[Path] = []

    def add(self, sample: Sample, media_id: str) -> None:
        if self._rows % ROWS_PER_FILE == 0:
            self._open()
        self._rows += 1
        self._batch.append(to_record(sample, media_id))
        if len(self._batch) == ROWS_PER_GROUP:
            self._flush()

    def _open(self) -> None:
        import pyarrow.parquet as pq

        self._close()
        self.paths.append(self._folder / f"{self._split}-{len(self.paths):05d}.parquet")
        self._writer = pq.ParquetWriter(self.paths[-1], rows_schema())

    def _flush(self) -> None:
        if self._batch:
            write_records(self._writer, self._batch)
        self._batch = []

    def _close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def __enter__(self) -> _RowFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()


def _refuse_bad_source(merged: _Merge, job: _Job) -> None:
    bad, total = merged.quarantined.total(), merged.rows_in
    if merged.rows_out and bad <= job.config.max_quarantined * total:
        return
    if not bad:
        raise PrepareError(f"{job.config.source}: no row is left; left out: {dict(merged.left_out)}")
    reason, count = merged.quarantined.most_common(1)[0]
    example = next(row for row in merged.examples if row.reason == reason)
    where = example.uri or example.id or f"line {example.line}"
    raise PrepareError(
        f"{job.config.source}: {bad} of {total} rows cannot be used (allowed: data.max_quarantined="
        f"{job.config.max_quarantined:g}); {count} of them {reason}, such as line {example.line} ({where}): "
        f"{example.detail}; all are listed in {merged.quarantine_uri}"
    )


def _readme(files: Iterable[str], splits: Sequence[str], counts: Mapping[str, int]) -> str:
    """The data set card: its header tells `datasets.load_dataset` which files belong together. By name, not by
    pattern: an attempt that was cut off may have left others."""
    configs: list[dict[str, Any]] = []
    for name in ("rows", "media"):
        data = [
            {"split": split, "path": sorted(f for f in files if f.startswith(f"{name}/{split}-"))} for split in splits
        ]
        configs.append({"config_name": name, "data_files": [entry for entry in data if entry["path"]]})
    configs[0]["default"] = True
    header = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = "\n".join(f"- {name}: {count}" for name, count in counts.items())
    return (
        f"---\n{header}---\n\n# Prepared video questions\n\nMade by vthink {__version__}. `rows` are the questions; "
        "`media_id` names the entry of `media`\nthat holds the frames, compressed, of the video or image that a "
        "question is about (or, where these would be larger,\nthe file itself). `card.json` counts what is here, "
        f"`contamination.json` what training and evaluation shared.\n\n{lines}\n"
    )
