"""Which rows are used, and which shard each file goes to."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ... import __version__
from ..common.rows.files import RowError, to_line
from ..common.rows.sample import Media, Sample
from ..common.storage.names import fingerprint, join, sha256_file, stage_prefix
from ..common.video.clip import MAX_PARTS
from ..common.video.workers import map_in_order
from .card import pass_rate
from .config import DataPrepConfig
from .formats.registry import SourceRows, read_rows
from .leaks import kept_split
from .outcomes import LAYOUT, Quarantined, Reason, Shard
from .shard import _File
from .source import open_source, resolve_uri
from .task import (
    _TRANSFERS,
    STAGE,
    SYNTHESIZE,
    PrepareError,
    _find_json,
    _in_use,
    _Job,
    _progress,
    _say,
    _workers,
    open_ledger,
)


def plan_data(run: str, config: str, video: str) -> list[str]:
    """Read the rows, choose which are used, deal their files to shards, and write each shard's rows.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.

    Returns:
        One `Shard` as JSON for each; the same ones when called again.

    Raises:
        UserError, FormatError: the source cannot be read at all.
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
    from .world.synthesize import synthesize

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
