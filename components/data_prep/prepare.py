"""From rows and video files to a prepared data set: plan → shards → merge, each a task of its own.

The plan reads every row once and deals the *files* to shards, so that a video is probed and decoded once for all its
questions and parts. A shard decodes its files in processes that can be killed and stores the frames in parts; a part
that is stored is never done again. The merge decides which rows stay, writes them, and vouches for everything.

No row is lost in silence: what cannot be used is in ``quarantine.jsonl`` with its line and reason, and
``rows_in = rows_out + quarantined + left_out`` is checked before the manifest is written.

Nothing here holds a list of all rows, media or files: what has to be remembered of each is in an SQLite file in the
scratch folder.

Two preparations of the same thing at once do the same work twice and harm nothing: data files are named by their
content, and a record of finished work names the files that it vouches for.

Below the stage's prefix::

    plan.json  plan/rows-00000.jsonl  plan/files-00000.jsonl   what the plan decided
    world/                                                     the generated world (`source: synthesize`)
    shards/00000/part-00000.json  shards/00000/shard.json      what became of each video
    rows/train-00000-….parquet  media/train-00000-00000-….parquet  index-….parquet    the data set
    quarantine.jsonl  contamination.json  card.json  README.md     what is in it, and what is not (`datasets` reads it)
    _COMPLETE.json  report.html  manifest.json                 these last, in this order
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import yaml

from ... import __version__
from ..common.config import RunContext, Section, VideoConfig
from ..common.launch import die_with_owner, git_commit
from ..common.samples import (
    INDEX,
    Media,
    RowError,
    Sample,
    index_schema,
    media_schema,
    rows_schema,
    to_line,
    to_record,
    write_records,
)
from ..common.storage import FileInfo, Manifest, Storage, fingerprint, join, sha256_file, stage_prefix
from ..common.tracking import Tracker
from ..common.video import (
    MAX_PARTS,
    SIGNATURE_BYTES,
    DecodedFile,
    DecodeError,
    DecodeLimitError,
    Decoder,
    FileRequest,
    MediaKind,
    map_in_order,
)
from .card import CARD, SplitCard, most, pass_rate, quarantine_summary
from .config import DataPrepConfig
from .duplicates import Groups, near_pairs
from .report import write_report
from .sources import HUB, FormatError, SourceRows, fetch_from_hub, open_source, read_rows, resolve_uri

STAGE = "prepare"
SYNTHESIZE = "synthesize"
PART_MEDIA = 512
"""Media in a part of a shard: what a killed shard may have to do again."""
PART_BYTES = 256 * 2**20
"""Encoded bytes after which a part ends earlier."""
GROUP_BYTES = 2**20
GROUP_MEDIA = 32
"""A row group of a media file ends at so many bytes or media, because taking one clip out reads its group."""
ROWS_PER_FILE = 50_000
ROWS_PER_GROUP = 256
"""Rows in a file and in a row group of it; taking one row out reads its group."""
LISTED = 10_000
"""Longest list of leaks and duplicates in ``contamination.json``; their numbers are always whole."""
LAYOUT = 2
"""Version of what is written; part of the fingerprint."""
_TRANSFERS = 8

Reason = Literal[
    "unreadable_row",
    "duplicate_id",
    "missing_media",
    "damaged_media",
    "decode_limit",
    "short_video",
    "sha256_mismatch",
    "split_leak",
    "near_duplicate_leak",
]
"""Why a row is quarantined: it is no row; its id was taken; its file is not there; its file cannot be decoded; its
decoder ran out of time or memory, or crashed, and was replaced; it has fewer frames than wanted; its file has another
SHA-256 than the row says; its video is also in a split that is kept for measuring, byte for byte; or it looks like one
that is."""


class PrepareError(RuntimeError):
    """Data preparation cannot go on: nothing to read, or too much of it unusable. One line for a person."""


class Quarantined(Section):
    """A row that is left out, and why."""

    line: int
    """Its line in the source, from 1."""
    reason: Reason
    """The kind of reason."""
    detail: str
    """What exactly."""
    id: str | None = None
    """The row's id, when it has one."""
    uri: str | None = None
    """The row's video or image, when it has one."""
    split: str | None = None
    """The row's split, when it has one."""
    raw: str | None = None
    """The row itself (its start), when it could not be read."""


class Shard(Section):
    """One part of the work, as `plan_data` hands it to `prepare_shard`."""

    fingerprint: str
    """Of the stage."""
    prefix: str
    """Where the stage writes."""
    index: int
    """Which shard."""
    count: int
    """Of how many."""
    rows: int
    """Rows in it."""
    media: int
    """Videos and images in it."""

    @property
    def rows_uri(self) -> str:
        """Its rows."""
        return join(self.prefix, f"plan/rows-{self.index:05d}.jsonl")

    @property
    def done_uri(self) -> str:
        """What became of it; written last."""
        return join(self.prefix, f"shards/{self.index:05d}/shard.json")

    @property
    def files_uri(self) -> str:
        """Its files, and the parts of them that are shown."""
        return join(self.prefix, f"plan/files-{self.index:05d}.jsonl")

    def part_uri(self, part: int) -> str:
        """What became of one part of it."""
        return join(self.prefix, f"shards/{self.index:05d}/part-{part:05d}.json")


class MediaOutcome(Section):
    """What became of one video or image, or of a part of a video."""

    sha256: str | None = None
    """SHA-256 of the file, when it was there."""
    reason: Reason | None = None
    """Why it cannot be used; null: it can."""
    detail: str = ""
    """What exactly is wrong."""
    place: tuple[str, int, int] | None = None
    """File below the prefix, row group and row that hold its frames."""
    duration_s: float = 0.0
    """Length of what is shown."""


class FileOutcome(Section):
    """A source file that could be decoded."""

    sha256: str
    """Of its bytes."""
    kind: MediaKind
    """What it was read as."""
    bytes: int
    """Its size."""
    width: int
    """Of its frames, upright, in pixels."""
    height: int
    """Likewise."""
    duration_s: float
    """Its whole length; 0 for an image."""
    signature: str
    """`common.video.signature`, in base64."""


class PartOutcome(Section):
    """What became of the media of one part of a shard, and the files that hold their frames."""

    lines: int
    """How many lines of the shard's files it has dealt with."""
    media: dict[str, MediaOutcome]
    """By media id."""
    sources: list[FileOutcome]
    """The files that could be decoded."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 by name below the prefix."""
    frames: int
    """Frames that were sampled."""
    stored_bytes: int
    """Bytes that hold them: frames or, where these would be larger, the file itself."""
    originals: int
    """How many files are kept themselves."""


@dataclass(frozen=True)
class _Job:
    """What all three tasks need, read from their JSON arguments."""

    context: RunContext
    config: DataPrepConfig
    video: VideoConfig
    storage: Storage

    @classmethod
    def read(cls, run: str, config: str, video: str) -> _Job:
        die_with_owner()
        context = RunContext.load(run, "run")
        return cls(
            context, DataPrepConfig.load(config, "data"), VideoConfig.load(video, "video"), Storage(context.storage)
        )

    def inputs(self) -> dict[str, Any]:
        """The configuration that the result depends on: not how many processes make it, or what is
        tolerated."""
        ignored = {"workers", "max_quarantined"} | (set() if self.config.source == SYNTHESIZE else {SYNTHESIZE})
        return self.config.model_dump(mode="json", exclude=ignored)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A scratch folder: below the run's, or a temporary one."""
        if self.context.work_dir is not None:
            path = Path(self.context.work_dir).absolute() / STAGE
            path.mkdir(parents=True, exist_ok=True)
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="vthink-prepare-") as name:
            yield Path(name)

    def world_folder(self, folder: Path, prefix: str) -> Path:
        """Where the plan leaves the generated files, so that shards on the same machine need not fetch
        them."""
        return folder / "world" / prefix.rstrip("/").rsplit("/", 1)[-1]


@contextlib.contextmanager
def _in_use(folder: Path, shared: bool, wait: bool = True) -> Iterator[bool]:
    """Hold a folder that several processes on this machine use, alone or together with others; whether it worked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def open_ledger(folder: Path, tables: str) -> sqlite3.Connection:
    """What a task has to remember of each row, file or medium: in a file, because there may be millions."""
    ledger = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    ledger.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN; {tables}")
    return ledger


def prepare_data(run: str, config: str, video: str) -> str:
    """All of data preparation in this process: plan, every shard, merge. Returns the manifest's URI."""
    shards = plan_data(run, config, video)
    return merge_data(run, config, video, [prepare_shard(run, config, video, shard) for shard in shards])


# ------------------------------------------------------------------------------------------------------------- the plan


def plan_data(run: str, config: str, video: str) -> list[str]:
    """Read the rows, choose which are used, deal their files to shards, and write each shard's rows.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.

    Returns:
        One `Shard` as JSON for each; the same ones when called again.

    Raises:
        SamplesError, FormatError: the source cannot be read at all.
        PrepareError: it has no rows, or ``weights`` names none of them.
    """
    job = _Job.read(run, config, video)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(job.folder())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plan-", dir=folder)))
        made = job.config.source == SYNTHESIZE
        source = None if made else open_source(job.config.source, job.storage, scratch)
        content = sha256_file(source.path) if source is not None else ""
        redo = job.context.redo.get(STAGE, 0)
        video_section = job.video.model_dump(mode="json")
        fp = fingerprint(STAGE, LAYOUT, job.inputs(), video_section, content, redo, __version__)
        prefix = stage_prefix(job.context, STAGE, fp)
        plan_uri = join(prefix, "plan.json")
        if source is None:
            stack.enter_context(_in_use(job.world_folder(folder, prefix), shared=False))
        earlier = _find_json(job.storage, plan_uri)
        if earlier is not None:
            _say(f"prepare {fp}: plan reused")
            return [Shard.load(shard, plan_uri).to_json() for shard in earlier["shards"]]
        if source is None:
            base = join(prefix, "world/")
            path = _make_world(job, job.world_folder(folder, prefix), base)
        else:
            path, base = source.path, source.base
        rows = read_rows(path, None if made else job.config.format, job.config.roots)
        (scratch / "plan").mkdir()
        dealt = _deal(rows, base, job.config, scratch)
        if not dealt.rows_in:
            raise PrepareError(f"{job.config.source}: there are no rows in it")
        for file in sorted((scratch / "plan").iterdir()):
            job.storage.upload_file(file, join(prefix, "plan", file.name))
    shards = [
        Shard(fingerprint=fp, prefix=prefix, index=index, count=job.config.shards, rows=count, media=media)
        for index, (count, media) in enumerate(zip(dealt.rows, dealt.media, strict=True))
    ]
    plan = {
        "shards": [shard.model_dump(mode="json") for shard in shards],
        "rows_in": dealt.rows_in,
        "left_out": dict(dealt.left_out),
        "source": job.config.source,
        "format": rows.format.name,
        "source_sha256": content,
        "seconds": time.monotonic() - start,
    }
    job.storage.write_json(plan_uri, plan)
    _say(f"prepare {fp}: {dealt.rows_in} rows, {sum(dealt.media)} videos and images, {len(shards)} shard(s)")
    return [shard.to_json() for shard in shards]


def _make_world(job: _Job, folder: Path, base: str) -> Path:
    """Generate the world on this machine and copy it to the store; its rows last."""
    from .synthesize import synthesize

    start = time.monotonic()
    with _progress("synthesize") as progress:
        rows = synthesize(job.config.synthesize, folder, progress=progress, processes=_workers(job.config))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != rows]

    def send(path: Path) -> None:
        job.storage.write_bytes(join(base, path.relative_to(folder).as_posix()), path.read_bytes())

    for _ in map_in_order(send, files, _TRANSFERS, 4 * _TRANSFERS):
        pass
    send(rows)
    _say(f"synthesize: {len(files)} files in {time.monotonic() - start:.1f} s")
    return rows


@dataclass
class _Dealt:
    """How the rows were dealt to shards."""

    rows: list[int]
    media: list[int]
    rows_in: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Good rows that the configuration does not want, by the setting that says so."""


_PLAN_TABLES = """
CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE files (number INTEGER PRIMARY KEY, uri TEXT, kind TEXT, split TEXT, UNIQUE (uri, kind));
CREATE TABLE media (id TEXT PRIMARY KEY, file INTEGER, start_s REAL, end_s REAL);
CREATE INDEX media_of_file ON media (file);
"""


def _deal(rows: SourceRows, base: str, config: DataPrepConfig, folder: Path) -> _Dealt:
    """Write ``rows-<shard>.jsonl``, ``files-<shard>.jsonl`` and ``quarantine.jsonl`` below ``plan``. Files are dealt in
    turn, as they first appear."""
    dealt = _Dealt([0] * config.shards, [0] * config.shards)
    groups: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(contextlib.closing(open_ledger(folder, _PLAN_TABLES)))
        # Once through the source, to see what there is; then through what is good in it, to choose.
        with (folder / "good.jsonl").open("w", encoding="utf-8") as good:
            quarantine = stack.enter_context((folder / "plan/quarantine.jsonl").open("w", encoding="utf-8"))
            for line, row in islice(rows, config.max_rows):
                dealt.rows_in += 1
                checked = check_row(line, row, base, ledger, None if rows.format.unique_ids else dealt.rows_in)
                if isinstance(checked, Quarantined):
                    quarantine.write(checked.to_json() + "\n")
                    continue
                checked = _held_out(checked, config.holdout)
                if unwanted := _unwanted(checked, config):
                    dealt.left_out[unwanted] += 1
                    continue
                if checked.split == "train" and (group := _group(checked, config.weights)) is not None:
                    groups[group] += 1
                good.write(f"{line}\t{to_line(checked)}\n")
        shares = _shares(groups, config)
        paths = [folder / f"plan/rows-{index:05d}.jsonl" for index in range(config.shards)]
        shards = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        with (folder / "good.jsonl").open(encoding="utf-8") as good:
            for number, entry in enumerate(good):
                sample = Sample.load(entry.partition("\t")[2], "rows")
                if shares and sample.split == "train":
                    group = _group(sample, config.weights)
                    if group is None or _unit(f"weights/{sample.id}") >= shares[group]:
                        dealt.left_out["weights"] += 1
                        continue
                shard = _register(ledger, sample, dealt)
                dealt.rows[shard] += 1
                shards[shard].write(f"{number}\t{entry}")
        (folder / "good.jsonl").unlink()
        for index in range(config.shards):
            _write_files(ledger, index, config.shards, folder / f"plan/files-{index:05d}.jsonl")
    return dealt


def check_row(
    line: int, row: Sample | RowError, base: str, ledger: sqlite3.Connection, number: int | None
) -> Sample | Quarantined:
    """The row with the full URI of its media, or why it cannot be used.

    Args:
        ledger: with a table ``ids`` (id, line), in which the row's id is noted.
        number: counts the rows, where ids are no more than that: one that is taken gets it added. None: an id that is
            taken is a mistake.
    """
    if isinstance(row, RowError):
        return Quarantined(line=line, reason="unreadable_row", detail=row.reason, raw=row.raw)
    try:
        uri = resolve_uri(row.media.uri, base)
    except ValueError as error:
        return _quarantined(line, row, "missing_media", str(error))
    media = row.media.model_copy(update={"uri": uri})
    row = row.model_copy(update={"media": media})
    taken = "SELECT line FROM ids WHERE id = ?"
    earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None and number is not None:
        row = row.model_copy(update={"id": f"{row.id}#{number}"})
        earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None:
        return _quarantined(line, row, "duplicate_id", f"the id is already that of line {earlier[0]}")
    ledger.execute("INSERT INTO ids VALUES (?, ?)", (row.id, line))
    return row


def _quarantined(line: int, row: Sample, reason: Reason, detail: str) -> Quarantined:
    return Quarantined(line=line, reason=reason, detail=detail, id=row.id, uri=row.media.uri, split=row.split)


def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _held_out(sample: Sample, holdout: Mapping[str, float]) -> Sample:
    """The row in the split that its file goes to."""
    if not holdout or sample.split != "train":
        return sample
    drawn = _unit(f"holdout/{sample.media.uri}")
    for split, share in sorted(holdout.items()):
        if drawn < share:
            return sample.model_copy(update={"split": split})
        drawn -= share
    return sample


def _unwanted(sample: Sample, config: DataPrepConfig) -> str | None:
    """The setting that leaves a training row out."""
    rate = pass_rate(sample)
    if rate is None or sample.split != "train":
        return None
    if config.min_pass_rate is not None and rate < config.min_pass_rate:
        return "min_pass_rate"
    return "max_pass_rate" if config.max_pass_rate is not None and rate > config.max_pass_rate else None


def _group(sample: Sample, weights: Mapping[str, float]) -> str | None:
    """The group of the mixture that a row belongs to."""
    names = (f"{sample.source}/{sample.problem_type}", sample.source, f"*/{sample.problem_type}", "*")
    return next((name for name in names if name in weights), None)


def _shares(groups: Counter[str], config: DataPrepConfig) -> dict[str, float]:
    """The share of each group's rows that makes the mixture, the scarcest group being used whole.

    Raises:
        PrepareError: a group has no rows, so that there is no such mixture.
    """
    wanted = {name: weight for name, weight in config.weights.items() if weight > 0}
    for name in wanted:
        if not groups[name]:
            raise PrepareError(f"data.weights: no training row of {config.source} is in the group '{name}'")
    scale = min((groups[name] / weight for name, weight in wanted.items()), default=0.0)
    return {name: min(1.0, scale * weight / max(1, groups[name])) for name, weight in config.weights.items()}


def _register(ledger: sqlite3.Connection, sample: Sample, dealt: _Dealt) -> int:
    """Note the file and medium of a row; the shard that its file is in."""
    media = sample.media
    found = ledger.execute("SELECT number, split FROM files WHERE uri = ? AND kind = ?", (media.uri, media.kind))
    number, split = found.fetchone() or (None, sample.split)
    if number is None:
        new = ledger.execute(
            "INSERT INTO files (uri, kind, split) VALUES (?, ?, ?)", (media.uri, media.kind, sample.split)
        )
        number = int(new.lastrowid or 1)
    elif kept_split((split, sample.split)) != split:
        ledger.execute("UPDATE files SET split = ? WHERE number = ?", (sample.split, number))
    shard = (number - 1) % len(dealt.rows)
    new = ledger.execute(
        "INSERT OR IGNORE INTO media VALUES (?, ?, ?, ?)", (_media_id(media), number, media.start_s, media.end_s)
    )
    dealt.media[shard] += new.rowcount
    return shard


def _write_files(ledger: sqlite3.Connection, shard: int, shards: int, path: Path) -> None:
    """The files of a shard, a line each, with the parts that are shown; a file of many parts has several lines."""
    query = "SELECT number, uri, kind, split FROM files WHERE (number - 1) % ? = ? ORDER BY number"
    with path.open("w", encoding="utf-8") as file:
        for number, uri, kind, split in ledger.execute(query, (shards, shard)):
            parts = ledger.execute(
                "SELECT id, start_s, end_s FROM media WHERE file = ? ORDER BY start_s, end_s", (number,)
            )
            while some := parts.fetchmany(MAX_PARTS):
                file.write(_File(uri=uri, kind=kind, split=split, parts=tuple(some)).to_json() + "\n")


def _media_id(media: Media) -> str:
    """Identifies what is shown: the file, and the part of it."""
    return fingerprint(media.kind, media.uri, media.start_s, media.end_s)


def kept_split(splits: Iterable[str]) -> str:
    """Of the splits that a video is in, the one whose rows stay: what measures is worth more than what
    trains."""
    order = ["test", "validation"]
    return min(splits, key=lambda split: (order.index(split) if split in order else len(order), split))


# -------------------------------------------------------------------------------------------------------------- a shard


class _File(Section):
    """A video or image of a shard, and the parts of it that are shown."""

    uri: str
    kind: MediaKind
    split: str
    parts: tuple[tuple[str, float | None, float | None], ...]
    """Media id, start and end in seconds of each."""


@dataclass
class _Fetched:
    """A file on this machine, or why there is none."""

    file: _File
    path: Path | None
    sha256: str = ""
    detail: str = ""
    temporary: bool = False

    def remove(self) -> None:
        """Delete the file when it was only fetched to be decoded."""
        if self.temporary and self.path is not None:
            self.path.unlink(missing_ok=True)


def prepare_shard(run: str, config: str, video: str, shard: str) -> str:
    """Decode the media of a shard and store their frames; finished parts of an earlier attempt are kept.

    A video that cannot be decoded is recorded with its reason; it does not stop the shard.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.
        shard: `Shard` as JSON.

    Returns:
        URI of the shard's outcome.
    """
    job = _Job.read(run, config, video)
    task = Shard.load(shard, "shard")
    if _find_json(job.storage, task.done_uri) is not None:
        _say(f"prepare {task.fingerprint}: shard {task.index} reused")
        return task.done_uri
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(job.folder())
        world = job.world_folder(folder, task.prefix)
        stack.enter_context(_in_use(world, shared=True))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shard-", dir=folder)))
        progress = stack.enter_context(_progress(f"prepare shard {task.index}"))
        decoder = stack.enter_context(Decoder(job.video, _workers(job.config)))
        fetcher = _Fetcher(job.storage, join(task.prefix, "world/"), world, scratch)
        part = lines = media = bad = 0
        results: Iterator[tuple[_Fetched, DecodedFile | DecodeError | None]] | None = None
        while True:
            record = _find_json(job.storage, task.part_uri(part))
            if record is None:
                if results is None:
                    results = _decoded(
                        islice(_files_of_shard(task, job.storage, scratch), lines, None), fetcher, decoder
                    )
                outcome = _write_part(results, task, part, job, scratch)
                if not outcome.media:
                    break
                # Another process may have done the same part meanwhile; then its record holds.
                record = _find_json(job.storage, task.part_uri(part))
                if record is None:
                    job.storage.write_json(task.part_uri(part), outcome.model_dump(mode="json"))
            if record is not None:
                results = None
                outcome = PartOutcome.load(record, task.part_uri(part))
            part, lines, media = part + 1, lines + outcome.lines, media + len(outcome.media)
            bad += sum(medium.reason is not None for medium in outcome.media.values())
            progress(media, task.media)
    if media != task.media:
        raise PrepareError(f"shard {task.index}: {media} of {task.media} media accounted for")
    seconds = time.monotonic() - start
    done = {"shard": task.model_dump(mode="json"), "parts": part, "seconds": seconds}
    job.storage.write_json(task.done_uri, done)
    _say(f"prepare {task.fingerprint}: shard {task.index}, {media} media, {bad} unusable, {seconds:.1f} s")
    return task.done_uri


def _files_of_shard(task: Shard, storage: Storage, scratch: Path) -> Iterator[_File]:
    path = scratch / f"files-{task.index:05d}.jsonl"
    storage.download_file(task.files_uri, path)
    with path.open(encoding="utf-8") as file:
        for entry in file:
            yield _File.load(entry, task.files_uri)


@dataclass
class _Fetcher:
    """Brings media to this machine."""

    storage: Storage
    world_uri: str
    world_folder: Path
    scratch: Path

    def __call__(self, file: _File) -> _Fetched:
        uri = file.uri
        path, temporary = Path(uri), False
        try:
            if uri.startswith(self.world_uri):
                path = self.world_folder / uri.removeprefix(self.world_uri)
            if uri.startswith(HUB):
                path = fetch_from_hub(uri)
            if uri.startswith("s3://") and not path.is_file():
                if not self.storage.exists(uri):
                    return _Fetched(file, None, detail="there is no such object")
                name = f"{file.parts[0][0]}{posixpath.splitext(uri)[1][:8]}"
                path, temporary = self.scratch / name, True
                self.storage.download_file(uri, path)
            if not path.is_file():
                return _Fetched(file, None, detail="there is no such file")
            return _Fetched(file, path, sha256_file(path), temporary=temporary)
        except FormatError as error:
            return _Fetched(file, None, detail=str(error))
        except OSError as error:
            return _Fetched(file, None, detail=f"cannot read the file: {error.strerror}")
        except ValueError as error:  # a path with a null byte, for example
            return _Fetched(file, None, detail=f"not a path: {error}")


def _decoded(
    files: Iterable[_File], fetcher: _Fetcher, decoder: Decoder
) -> Iterator[tuple[_Fetched, DecodedFile | DecodeError | None]]:
    """Every file with its frames, in order; None where there was no file."""
    waiting: list[_Fetched] = []

    def requests() -> Iterator[FileRequest]:
        for fetched in map_in_order(fetcher, files, _TRANSFERS, 2 * _TRANSFERS):
            waiting.append(fetched)
            if fetched.path is not None:
                parts = tuple((start_s, end_s) for _, start_s, end_s in fetched.file.parts)
                yield FileRequest(fetched.path, fetched.file.kind, parts)

    for decoded in decoder.map_files(requests()):
        while waiting[0].path is None:
            yield waiting.pop(0), None
        fetched = waiting.pop(0)
        yield fetched, decoded
        fetched.remove()
    for fetched in waiting:
        yield fetched, None


def _write_part(
    results: Iterator[tuple[_Fetched, DecodedFile | DecodeError | None]],
    task: Shard,
    part: int,
    job: _Job,
    scratch: Path,
) -> PartOutcome:
    """Store the frames of the next files; an empty outcome when there are none left."""
    outcomes: dict[str, MediaOutcome] = {}
    sources: list[FileOutcome] = []
    places: dict[str, tuple[str, int, int]] = {}
    lines = frames = stored_bytes = originals = 0
    with contextlib.ExitStack() as stack:
        files: dict[str, _MediaFile] = {}
        for fetched, decoded in results:
            file = fetched.file
            lines += 1
            if not isinstance(decoded, DecodedFile):
                reason: Reason = "missing_media" if decoded is None else "damaged_media"
                reason = "decode_limit" if isinstance(decoded, DecodeLimitError) else reason
                lost = MediaOutcome(sha256=fetched.sha256 or None, reason=reason, detail=str(decoded or fetched.detail))
                outcomes.update((media_id, lost) for media_id, _, _ in file.parts)
            elif file.kind == "video" and decoded.num_frames < job.config.min_video_frames:
                why = f"{decoded.num_frames} frames, fewer than data.min_video_frames={job.config.min_video_frames}"
                short = MediaOutcome(sha256=fetched.sha256, reason="short_video", detail=why)
                outcomes.update((media_id, short) for media_id, _, _ in file.parts)
            else:
                assert fetched.path is not None
                size = fetched.path.stat().st_size
                sources.append(_file_outcome(fetched, decoded, size))
                frame_bytes = sum(len(f) for c in decoded.clips if not isinstance(c, DecodeError) for f in c.frames)
                keep_file = job.config.store == "smallest" and size < frame_bytes
                stored_bytes += size if keep_file else frame_bytes
                originals += keep_file
                holder: str | None = None
                for (media_id, start_s, end_s), clip in zip(file.parts, decoded.clips, strict=True):
                    if isinstance(clip, DecodeError):
                        outcomes[media_id] = MediaOutcome(
                            sha256=fetched.sha256, reason="damaged_media", detail=str(clip)
                        )
                        continue
                    name = f"media/{file.split}-{task.index:05d}-{part:05d}"
                    if name not in files:
                        path = scratch / f"{posixpath.basename(name)}.parquet"
                        stack.callback(path.unlink, missing_ok=True)
                        files[name] = stack.enter_context(_MediaFile(path))
                    outcomes[media_id] = MediaOutcome(sha256=fetched.sha256, duration_s=clip.duration_s)
                    record = {
                        "media_id": media_id,
                        "kind": clip.kind,
                        "uri": file.uri,
                        "sha256": fetched.sha256,
                        "start_s": start_s,
                        "end_s": end_s,
                        "frames": [] if keep_file else clip.frames,
                        "original": fetched.path.read_bytes() if keep_file and holder is None else None,
                        "original_id": holder if keep_file else None,
                        "times_s": clip.times_s.tolist(),
                        "duration_s": clip.duration_s,
                        "height": clip.height,
                        "width": clip.width,
                    }
                    places[media_id] = (name, *files[name].add(record))
                    holder = holder or media_id
                    frames += len(clip.frames)
            if len(outcomes) >= PART_MEDIA or stored_bytes >= PART_BYTES:
                break
        infos: dict[str, tuple[int, str]] = {}
        names: dict[str, str] = {}
        for name, written in files.items():
            written.close()
            sha256 = sha256_file(written.path)
            names[name] = f"{name}-{sha256[:8]}.parquet"
            infos[names[name]] = (written.path.stat().st_size, sha256)
            job.storage.upload_file(written.path, join(task.prefix, names[name]))
    for media_id, (name, group, row) in places.items():
        outcomes[media_id] = outcomes[media_id].model_copy(update={"place": (names[name], group, row)})
    return PartOutcome(
        lines=lines,
        media=outcomes,
        sources=sources,
        files=infos,
        frames=frames,
        stored_bytes=stored_bytes,
        originals=originals,
    )


def _file_outcome(fetched: _Fetched, decoded: DecodedFile, size: int) -> FileOutcome:
    return FileOutcome(
        sha256=fetched.sha256,
        kind=fetched.file.kind,
        bytes=size,
        width=decoded.width,
        height=decoded.height,
        duration_s=decoded.duration_s,
        signature=base64.b64encode(decoded.signature).decode(),
    )


class _MediaFile:
    """A Parquet file of frames that is being written."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.path = path
        # Frames are compressed already, and the least and greatest of them are of no use to anyone. A reader that takes
        # single pages from a store checks them by their CRC.
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        self._writer = pq.ParquetWriter(path, media_schema(), write_page_checksum=True, **plain)
        self._group: list[dict[str, Any]] = []
        self._groups = 0
        self._bytes = 0

    def __enter__(self) -> _MediaFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, record: dict[str, Any]) -> tuple[int, int]:
        """Add a medium; the row group and row that hold it."""
        place = self._groups, len(self._group)
        self._group.append(record)
        self._bytes += sum(map(len, record["frames"])) + len(record["original"] or b"")
        if len(self._group) >= GROUP_MEDIA or self._bytes >= GROUP_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        if self._group:
            write_records(self._writer, self._group)
            self._groups += 1
        self._group, self._bytes = [], 0

    def close(self) -> None:
        if self._writer.is_open:
            self._flush()
            self._writer.close()


# ------------------------------------------------------------------------------------------------------------ the merge


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


@dataclass
class _Leaks:
    """What training and evaluation were found to share."""

    pairs: int = 0
    """Pairs of files that look the same, in whatever splits."""
    listed: list[tuple[int, int, float]] = field(default_factory=list)
    """The first of them."""
    rows: Counter[str] = field(default_factory=Counter)
    """Rows whose video is also in a split that measures, by reason."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """The first of them."""

    def add(self, reason: Reason, sample: Sample, kept: str, sha256: str, like: str) -> None:
        """Note a row whose video is in the split ``kept``."""
        self.rows[reason] += 1
        if len(self.examples) < LISTED:
            row = {"id": sample.id, "uri": sample.media.uri, "split": sample.split, "kept_in": kept}
            self.examples.append({"reason": reason, **row, "sha256": sha256, "same_as": like})


def _parse(entry: bytes, task: Shard) -> tuple[int, int, Sample]:
    """Number of the row, line in the source, and the row."""
    number, line, row = entry.decode().split("\t", 2)
    return int(number), int(line), Sample.load(row, task.rows_uri)


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


# --------------------------------------------------------------------------------------------------------- small things


def _find_json(storage: Storage, uri: str) -> Any:
    """The object, or None where there is none, or only the start of one that was cut off while being written."""
    if not storage.exists(uri):
        return None
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError:
        return None


def _workers(config: DataPrepConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, a line now and then elsewhere; call it with (done, in all)."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 10 and done < total:
            last = time.monotonic()
            _say(f"{what}: {done} of {total}")

    yield line
