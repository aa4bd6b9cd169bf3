"""From rows and video files to a prepared data set: plan → shards → merge, each a task of its own.

The plan reads every row once and deals the *media* to shards, so that a video is decoded once for all its
questions. A shard decodes its media in processes that can be killed and stores the frames in parts; a part
that is stored is never done again. The merge writes the rows, and vouches for everything.

No row is lost in silence: what cannot be used is in ``quarantine.jsonl`` with its line and reason, and
``rows_in = rows_out + quarantined`` is checked before the manifest is written.

Below the stage's prefix::

    plan.json  plan/rows-00000.jsonl  plan/quarantine.jsonl    what the plan decided
    world/                                                     the generated world (`source: synthesize`)
    shards/00000/part-00000.json  shards/00000/shard.json      what became of each video
    rows/train-00000.parquet  media/train-00000-00000.parquet  the data set (`datasets` reads it)
    quarantine.jsonl  README.md  _COMPLETE.json  manifest.json the last two last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from ... import __version__
from ..common.config import RunContext, Section, VideoConfig
from ..common.launch import die_with_owner, git_commit
from ..common.samples import (
    Media,
    RowError,
    Sample,
    media_schema,
    numbered_samples,
    rows_schema,
    to_line,
    to_record,
    write_records,
)
from ..common.storage import FileInfo, Manifest, Storage, fingerprint, join, sha256_file, split_uri, stage_prefix
from ..common.tracking import Tracker
from ..common.video import ClipRequest, DecodeError, Decoder, EncodedClip, map_in_order
from .config import DataPrepConfig

STAGE = "prepare"
SYNTHESIZE = "synthesize"
PART_MEDIA = 512
"""Media in a part of a shard: what a killed shard may have to do again."""
PART_BYTES = 256 * 2**20
"""Encoded bytes after which a part ends earlier."""
GROUP_BYTES = 2**20
GROUP_MEDIA = 32
"""A row group of a media file ends at so many bytes or media, because taking one clip out reads its group."""
_TRANSFERS = 8

Reason = Literal["unreadable_row", "duplicate_id", "missing_media", "damaged_media", "sha256_mismatch", "split_leak"]
"""Why a row is quarantined: it is no row; its id was taken; its file is not there; its file cannot be
decoded; its file has another SHA-256 than the row says; its video is also in a split that is kept for
measuring."""


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

    def part_uri(self, part: int) -> str:
        """What became of one part of it."""
        return join(self.prefix, f"shards/{self.index:05d}/part-{part:05d}.json")


class MediaOutcome(Section):
    """What became of one video or image."""

    sha256: str | None = None
    """SHA-256 of the file, when it was there."""
    reason: Reason | None = None
    """Why it cannot be used; null: it can."""
    detail: str = ""
    """What exactly is wrong."""


class PartOutcome(Section):
    """What became of the media of one part of a shard, and the files that hold their frames."""

    media: dict[str, MediaOutcome]
    """By media id."""
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 by name below the prefix."""
    frames: int
    """Stored frames."""
    frame_bytes: int
    """Their bytes."""


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


def prepare_data(run: str, config: str, video: str) -> str:
    """All of data preparation in this process: plan, every shard, merge. Returns the manifest's URI."""
    shards = plan_data(run, config, video)
    return merge_data(run, config, video, [prepare_shard(run, config, video, shard) for shard in shards])


# ------------------------------------------------------------------------------------------------------------- the plan


def plan_data(run: str, config: str, video: str) -> list[str]:
    """Read the rows, deal their media to shards, and write each shard's rows.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.

    Returns:
        One `Shard` as JSON for each; the same ones when called again.

    Raises:
        SamplesError: the source cannot be read at all.
        PrepareError: it has no rows.
    """
    job = _Job.read(run, config, video)
    start = time.monotonic()
    with job.folder() as folder:
        source = None if job.config.source == SYNTHESIZE else _source_file(job, folder)
        content = sha256_file(source) if source is not None else ""
        redo = job.context.redo.get(STAGE, 0)
        fp = fingerprint(STAGE, job.inputs(), job.video.model_dump(mode="json"), content, redo, __version__)
        prefix = stage_prefix(job.context, STAGE, fp)
        plan_uri = join(prefix, "plan.json")
        earlier = _find_json(job.storage, plan_uri)
        if earlier is not None:
            _say(f"prepare {fp}: plan reused")
            return [Shard.load(shard, plan_uri).to_json() for shard in earlier["shards"]]
        if source is None:
            base = join(prefix, "world/")
            source = _make_world(job, job.world_folder(folder, prefix), base)
        elif job.config.source.startswith("s3://"):
            base = job.config.source.rsplit("/", 1)[0] + "/"
        else:
            base = str(source.parent)
        with tempfile.TemporaryDirectory(prefix="plan-", dir=folder) as name:
            dealt = _deal(source, base, job.config, Path(name))
            if not dealt.rows_in:
                raise PrepareError(f"{job.config.source}: there are no rows in it")
            for path in sorted(Path(name).iterdir()):
                job.storage.upload_file(path, join(prefix, "plan", path.name))
    shards = [
        Shard(fingerprint=fp, prefix=prefix, index=index, count=job.config.shards, rows=rows, media=media)
        for index, (rows, media) in enumerate(zip(dealt.rows, dealt.media, strict=True))
    ]
    plan = {
        "shards": [shard.model_dump(mode="json") for shard in shards],
        "rows_in": dealt.rows_in,
        "quarantined": dealt.quarantined,
        "source": job.config.source,
        "source_sha256": content,
        "seconds": time.monotonic() - start,
    }
    job.storage.write_json(plan_uri, plan)
    _say(f"prepare {fp}: {dealt.rows_in} rows, {sum(dealt.media)} videos and images, {len(shards)} shard(s)")
    return [shard.to_json() for shard in shards]


def _source_file(job: _Job, folder: Path) -> Path:
    """The file of rows on this machine."""
    source = job.config.source
    if not source.startswith("s3://"):
        local = Path(source).expanduser().absolute()
        if not local.is_file():
            raise PrepareError(f"data.source: there is no file {source}")
        return local
    path = folder / "source" / hashlib.sha256(source.encode()).hexdigest()[:16] / source.rsplit("/", 1)[-1]
    job.storage.download_file(source, path)
    return path


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
    quarantined: int = 0


def _deal(source: Path, base: str, config: DataPrepConfig, folder: Path) -> _Dealt:
    """Write ``rows-<shard>.jsonl`` and ``quarantine.jsonl``. Media are dealt in turn, as they first
    appear."""
    dealt = _Dealt([0] * config.shards, [0] * config.shards)
    shard_of: dict[str, int] = {}
    line_of: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        shards = [
            stack.enter_context((folder / f"rows-{index:05d}.jsonl").open("w", encoding="utf-8"))
            for index in range(config.shards)
        ]
        quarantine = stack.enter_context((folder / "quarantine.jsonl").open("w", encoding="utf-8"))
        for line, row in numbered_samples(source):
            if config.max_rows is not None and dealt.rows_in >= config.max_rows:
                break
            dealt.rows_in += 1
            checked = _checked(line, row, base, line_of)
            if isinstance(checked, Quarantined):
                dealt.quarantined += 1
                quarantine.write(checked.to_json() + "\n")
                continue
            media_id = _media_id(checked.media)
            if media_id not in shard_of:
                shard_of[media_id] = len(shard_of) % config.shards
                dealt.media[shard_of[media_id]] += 1
            shard = shard_of[media_id]
            dealt.rows[shard] += 1
            shards[shard].write(f"{line}\t{to_line(checked)}\n")
    return dealt


def _checked(line: int, row: Sample | RowError, base: str, line_of: dict[str, int]) -> Sample | Quarantined:
    """The row with the full URI of its media, or why it cannot be used."""
    if isinstance(row, RowError):
        return Quarantined(line=line, reason="unreadable_row", detail=row.reason, raw=row.raw)
    try:
        uri = resolve_uri(row.media.uri, base)
    except ValueError as error:
        return _quarantined(line, row, "missing_media", str(error))
    if row.id in line_of:
        return _quarantined(line, row, "duplicate_id", f"the id is already that of line {line_of[row.id]}")
    line_of[row.id] = line
    return row.model_copy(update={"media": row.media.model_copy(update={"uri": uri})})


def _quarantined(line: int, row: Sample, reason: Reason, detail: str) -> Quarantined:
    return Quarantined(line=line, reason=reason, detail=detail, id=row.id, uri=row.media.uri, split=row.split)


def resolve_uri(uri: str, base: str) -> str:
    """The full path or ``s3://`` URI of a row's media; relative ones count from ``base``, where the rows are.

    Raises:
        ValueError: another scheme, or a path that leaves the bucket.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        return uri
    if separator and scheme == "file":
        return rest
    if separator:
        raise ValueError(f"media are read from paths and s3://, not from {scheme}://")
    if posixpath.isabs(uri):
        return uri
    if not base.startswith("s3://"):
        return posixpath.normpath(posixpath.join(base, uri))
    bucket, key = split_uri(base)
    path = posixpath.normpath(posixpath.join(key, uri))
    if path.startswith(".."):
        raise ValueError(f"{uri} leaves the bucket s3://{bucket}")
    return f"s3://{bucket}/{path}"


def _media_id(media: Media) -> str:
    """Identifies what is shown: the file, and the part of it."""
    return fingerprint(media.kind, media.uri, media.start_s, media.end_s)


# -------------------------------------------------------------------------------------------------------------- a shard


@dataclass
class _Medium:
    """One video or image of a shard."""

    media_id: str
    media: Media
    split: str


@dataclass
class _Fetched:
    """A file on this machine, or why there is none."""

    medium: _Medium
    path: Path | None
    sha256: str | None
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
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shard-", dir=folder)))
        media = _media_of_shard(task, job.storage, scratch)
        done: dict[str, MediaOutcome] = {}
        part = 0
        while (earlier := _find_json(job.storage, task.part_uri(part))) is not None:
            done.update(PartOutcome.load(earlier, task.part_uri(part)).media)
            part += 1
        todo = [medium for medium in media if medium.media_id not in done]
        progress = stack.enter_context(_progress(f"prepare shard {task.index}"))
        decoder = stack.enter_context(Decoder(job.video, _workers(job.config)))
        fetcher = _Fetcher(job.storage, join(task.prefix, "world/"), job.world_folder(folder, task.prefix), scratch)
        progress(len(done), len(media))
        results = _decoded(todo, fetcher, decoder)
        while True:
            outcome = _write_part(results, task, part, job.storage, scratch)
            if not outcome.media:
                break
            job.storage.write_json(task.part_uri(part), outcome.model_dump(mode="json"))
            done.update(outcome.media)
            part += 1
            progress(len(done), len(media))
    if len(done) != task.media:
        raise PrepareError(f"shard {task.index}: {len(done)} of {task.media} media accounted for")
    bad = sum(outcome.reason is not None for outcome in done.values())
    seconds = time.monotonic() - start
    record = {"shard": task.model_dump(mode="json"), "parts": part, "seconds": seconds}
    job.storage.write_json(task.done_uri, record)
    _say(f"prepare {task.fingerprint}: shard {task.index}, {len(done)} media, {bad} unusable, {seconds:.1f} s")
    return task.done_uri


def _rows_of_shard(task: Shard, storage: Storage, scratch: Path) -> Iterator[tuple[int, Sample]]:
    """Line in the source and row."""
    path = scratch / f"rows-{task.index:05d}.jsonl"
    storage.download_file(task.rows_uri, path)
    with path.open(encoding="utf-8") as file:
        for entry in file:
            line, _, row = entry.partition("\t")
            yield int(line), Sample.load(row, task.rows_uri)
    path.unlink()


def _media_of_shard(task: Shard, storage: Storage, scratch: Path) -> list[_Medium]:
    media: dict[str, _Medium] = {}
    for _, row in _rows_of_shard(task, storage, scratch):
        media_id = _media_id(row.media)
        medium = media.setdefault(media_id, _Medium(media_id, row.media, row.split))
        medium.split = kept_split({medium.split, row.split})
    return list(media.values())


def kept_split(splits: Iterable[str]) -> str:
    """Of the splits that a video is in, the one whose rows stay: what measures is worth more than what
    trains."""
    order = ["test", "validation"]
    return min(splits, key=lambda split: (order.index(split) if split in order else len(order), split))


@dataclass
class _Fetcher:
    """Brings media to this machine."""

    storage: Storage
    world_uri: str
    world_folder: Path
    scratch: Path

    def __call__(self, medium: _Medium) -> _Fetched:
        uri = medium.media.uri
        path, temporary = Path(uri), False
        try:
            if uri.startswith(self.world_uri):
                path = self.world_folder / uri.removeprefix(self.world_uri)
            if uri.startswith("s3://") and not path.is_file():
                if not self.storage.exists(uri):
                    return _Fetched(medium, None, None, "there is no such object")
                path, temporary = self.scratch / f"{medium.media_id}{posixpath.splitext(uri)[1][:8]}", True
                self.storage.download_file(uri, path)
            if not path.is_file():
                return _Fetched(medium, None, None, "there is no such file")
            return _Fetched(medium, path, sha256_file(path), temporary=temporary)
        except OSError as error:
            return _Fetched(medium, None, None, f"cannot read the file: {error.strerror}")
        except ValueError as error:  # a path with a null byte, for example
            return _Fetched(medium, None, None, f"not a path: {error}")


def _decoded(
    media: Sequence[_Medium], fetcher: _Fetcher, decoder: Decoder
) -> Iterator[tuple[_Fetched, EncodedClip | DecodeError | None]]:
    """Every medium with its frames, in order; None where there was no file."""
    waiting: list[_Fetched] = []

    def requests() -> Iterator[ClipRequest]:
        for fetched in map_in_order(fetcher, media, _TRANSFERS, 2 * _TRANSFERS):
            waiting.append(fetched)
            if fetched.path is not None:
                shown = fetched.medium.media
                yield ClipRequest(fetched.path, shown.kind, shown.start_s, shown.end_s)

    for clip in decoder.map_encoded(requests()):
        while waiting[0].path is None:
            yield waiting.pop(0), None
        fetched = waiting.pop(0)
        fetched.remove()
        yield fetched, clip
    for fetched in waiting:
        yield fetched, None


def _write_part(
    results: Iterator[tuple[_Fetched, EncodedClip | DecodeError | None]],
    task: Shard,
    part: int,
    storage: Storage,
    scratch: Path,
) -> PartOutcome:
    """Store the frames of the next media; an empty outcome when there are none left."""
    outcomes: dict[str, MediaOutcome] = {}
    frames = frame_bytes = 0
    with contextlib.ExitStack() as stack:
        files: dict[str, _MediaFile] = {}
        for fetched, clip in results:
            medium = fetched.medium
            if clip is None:
                outcomes[medium.media_id] = MediaOutcome(reason="missing_media", detail=fetched.detail)
            elif isinstance(clip, DecodeError):
                outcomes[medium.media_id] = MediaOutcome(
                    sha256=fetched.sha256, reason="damaged_media", detail=str(clip)
                )
            else:
                outcomes[medium.media_id] = MediaOutcome(sha256=fetched.sha256)
                name = f"media/{medium.split}-{task.index:05d}-{part:05d}.parquet"
                if name not in files:
                    path = scratch / posixpath.basename(name)
                    stack.callback(path.unlink, missing_ok=True)
                    files[name] = stack.enter_context(_MediaFile(path))
                files[name].add(fetched, clip)
                frames += len(clip.frames)
                frame_bytes += sum(map(len, clip.frames))
            if len(outcomes) >= PART_MEDIA or frame_bytes >= PART_BYTES:
                break
        infos: dict[str, tuple[int, str]] = {}
        for name, file in files.items():
            file.close()
            storage.upload_file(file.path, join(task.prefix, name))
            infos[name] = (file.path.stat().st_size, sha256_file(file.path))
    return PartOutcome(media=outcomes, files=infos, frames=frames, frame_bytes=frame_bytes)


class _MediaFile:
    """A Parquet file of frames that is being written."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.path = path
        # Frames are compressed already.
        self._writer = pq.ParquetWriter(path, media_schema(), compression="none", use_dictionary=False)
        self._group: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> _MediaFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, fetched: _Fetched, clip: EncodedClip) -> None:
        self._group.append(
            {
                "media_id": fetched.medium.media_id,
                "kind": clip.kind,
                "uri": fetched.medium.media.uri,
                "sha256": fetched.sha256,
                "frames": clip.frames,
                "times_s": clip.times_s.tolist(),
                "duration_s": clip.duration_s,
                "height": clip.height,
                "width": clip.width,
            }
        )
        self._bytes += sum(map(len, clip.frames))
        if len(self._group) >= GROUP_MEDIA or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            write_records(self._writer, self._group)
        self._group, self._bytes = [], 0

    def close(self) -> None:
        if self._writer.is_open:
            self._flush()
            self._writer.close()


# ------------------------------------------------------------------------------------------------------------ the merge


def merge_data(run: str, config: str, video: str, shards: Sequence[str]) -> str:
    """Write the rows whose media could be decoded, the quarantine, the data set card and the manifest.

    Args:
        run: `RunContext` as JSON.
        config: `DataPrepConfig` as JSON.
        video: `VideoConfig` as JSON.
        shards: what `prepare_shard` returned, for every shard.

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
        return finished.manifest_uri
    plan = job.storage.read_json(join(prefix, "plan.json"))
    parts = [
        PartOutcome.load(job.storage.read_json(task.part_uri(part)), task.part_uri(part))
        for task, record in zip(tasks, records, strict=True)
        for part in range(record["parts"])
    ]
    inputs = {"source": job.config.source}
    section = job.config.model_dump(mode="json")
    with job.folder() as folder, Tracker.start(job.context, STAGE, fp, section, inputs) as tracker:
        with tempfile.TemporaryDirectory(prefix="merge-", dir=folder) as name:
            merged = _Merge(tasks, parts, job.storage, Path(name))
            merged.write(plan["rows_in"])
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
            files={"data": prefix, "quarantine": merged.quarantine_uri},
            config=section,
            details={
                "video": job.video.model_dump(mode="json"),
                "codec": job.video.frame_codec,
                "files": {name: [file.size, file.sha256] for name, file in sorted(merged.files.items())},
                "source_sha256": plan["source_sha256"],
            },
            mlflow_run_id=tracker.run_id,
            seconds=plan["seconds"] + sum(record["seconds"] for record in records) + time.monotonic() - start,
            git_commit=git_commit(),
        )
        manifest.write(job.storage)
        shutil.rmtree(job.world_folder(folder, prefix), ignore_errors=True)
    counts = manifest.counts
    _say(f"prepare {fp}: {counts['rows_out']} rows of {counts['rows_in']}, {counts['media']} media")
    return manifest.manifest_uri


def _columns(rows: Sequence[Quarantined]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in ("line", "id", "reason", "detail")}


class _Merge:
    """Streams the rows of all shards into the data set's files."""

    def __init__(self, tasks: Sequence[Shard], parts: Sequence[PartOutcome], storage: Storage, folder: Path):
        self._tasks = tasks
        self._storage = storage
        self._folder = folder
        self._prefix = tasks[0].prefix
        self._outcomes = {media_id: outcome for part in parts for media_id, outcome in part.media.items()}
        self._frames = sum(part.frames for part in parts)
        self._frame_bytes = sum(part.frame_bytes for part in parts)
        self.files = {name: FileInfo(*info) for part in parts for name, info in part.files.items()}
        """Every file of the data set, by name below the prefix."""
        self.rows_in = 0
        self.rows_out: Counter[str] = Counter()
        """Rows by split."""
        self.quarantined: Counter[str] = Counter()
        """Rows by reason."""
        self.examples: list[Quarantined] = []
        """The first of them."""
        self.media: set[str] = set()
        """Ids of the media that rows are about."""

    @property
    def quarantine_uri(self) -> str:
        """The list of the rows that are left out."""
        return join(self._prefix, "quarantine.jsonl")

    def counts(self) -> dict[str, int]:
        """What goes into the manifest."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out.total(),
            "quarantined": self.quarantined.total(),
            "media": len(self.media),
            **{f"rows_{split}": count for split, count in sorted(self.rows_out.items())},
            **{f"quarantined_{reason}": count for reason, count in sorted(self.quarantined.items())},
        }

    def metrics(self) -> dict[str, float]:
        """What goes into the manifest beside the counts."""
        return {"bytes_per_frame": self._frame_bytes / max(1, self._frames), "frames": float(self._frames)}

    def write(self, rows_in: int) -> None:
        """Write and send everything but the markers; ``rows_in`` is what the plan counted."""
        self.rows_in = rows_in
        kept = self._kept_splits()
        path = self._folder / "quarantine.jsonl"
        with path.open("w", encoding="utf-8") as quarantine:
            plan_uri = join(self._prefix, "plan/quarantine.jsonl")
            for entry in self._storage.read_bytes(plan_uri).decode().splitlines():
                self._leave_out(Quarantined.load(entry, plan_uri), quarantine)
            for task in self._tasks:
                with _RowFiles(self._folder, task.index) as rows:
                    for line, sample in _rows_of_shard(task, self._storage, self._folder):
                        self._sort(line, sample, kept, rows, quarantine)
                for file in rows.paths:
                    self._send(file, f"rows/{file.name}")
        self._send(path, "quarantine.jsonl")
        card = self._folder / "README.md"
        card.write_text(_card(sorted(self.rows_out), self.counts()), encoding="utf-8")
        self._send(card, "README.md")
        if self.rows_in != self.rows_out.total() + self.quarantined.total():
            raise PrepareError(f"rows were lost: {self.counts()}; please report this")

    def _kept_splits(self) -> dict[str, str]:
        """The split that each file's content (by SHA-256) stays in."""
        splits: dict[str, set[str]] = defaultdict(set)
        for task in self._tasks:
            for _, sample in _rows_of_shard(task, self._storage, self._folder):
                sha256 = self._outcomes[_media_id(sample.media)].sha256
                if sha256 is not None:
                    splits[sha256].add(sample.split)
        return {sha256: kept_split(found) for sha256, found in splits.items()}

    def _sort(self, line: int, sample: Sample, kept: Mapping[str, str], rows: _RowFiles, quarantine: IO[str]) -> None:
        media_id = _media_id(sample.media)
        outcome = self._outcomes[media_id]
        reason, detail = outcome.reason, outcome.detail
        if reason is None and sample.media.sha256 not in (None, outcome.sha256):
            reason, detail = "sha256_mismatch", f"the file's SHA-256 is {outcome.sha256}"
        if reason is None and outcome.sha256 is not None and kept[outcome.sha256] != sample.split:
            reason, detail = "split_leak", f"the same video is in the split '{kept[outcome.sha256]}'"
        if reason is not None:
            self._leave_out(_quarantined(line, sample, reason, detail), quarantine)
            return
        media = sample.media.model_copy(update={"sha256": outcome.sha256})
        rows.add(sample.model_copy(update={"media": media}), media_id)
        self.rows_out[sample.split] += 1
        self.media.add(media_id)

    def _leave_out(self, row: Quarantined, quarantine: IO[str]) -> None:
        quarantine.write(row.to_json() + "\n")
        self.quarantined[row.reason] += 1
        if len(self.examples) < 1000:
            self.examples.append(row)

    def _send(self, path: Path, name: str) -> None:
        self._storage.upload_file(path, join(self._prefix, name))
        self.files[name] = FileInfo(path.stat().st_size, sha256_file(path))


class _RowFiles:
    """The Parquet files of rows of one shard, one for each split."""

    def __init__(self, folder: Path, shard: int):
        self._folder = folder
        self._shard = shard
        self._writers: dict[str, Any] = {}
        self._batches: dict[str, list[dict[str, Any]]] = {}

    @property
    def paths(self) -> list[Path]:
        return [self._path(split) for split in self._writers]

    def _path(self, split: str) -> Path:
        return self._folder / f"{split}-{self._shard:05d}.parquet"

    def add(self, sample: Sample, media_id: str) -> None:
        import pyarrow.parquet as pq

        if sample.split not in self._writers:
            self._writers[sample.split] = pq.ParquetWriter(self._path(sample.split), rows_schema())
            self._batches[sample.split] = []
        batch = self._batches[sample.split]
        batch.append(to_record(sample, media_id))
        if len(batch) == 1024:
            write_records(self._writers[sample.split], batch)
            batch.clear()

    def __enter__(self) -> _RowFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        for split, writer in self._writers.items():
            if self._batches[split]:
                write_records(writer, self._batches[split])
            writer.close()


def _refuse_bad_source(merged: _Merge, job: _Job) -> None:
    bad, total = merged.quarantined.total(), merged.rows_in
    if merged.rows_out and bad <= job.config.max_quarantined * total:
        return
    reason, count = merged.quarantined.most_common(1)[0]
    example = next(row for row in merged.examples if row.reason == reason)
    where = example.uri or example.id or f"line {example.line}"
    raise PrepareError(
        f"{job.config.source}: {bad} of {total} rows cannot be used (allowed: data.max_quarantined="
        f"{job.config.max_quarantined:g}); {count} of them {reason}, such as line {example.line} ({where}): "
        f"{example.detail}; all are listed in {merged.quarantine_uri}"
    )


def _card(splits: Sequence[str], counts: Mapping[str, int]) -> str:
    """The data set card: its header tells `datasets.load_dataset` which files belong together."""
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits]}
        for name in ("rows", "media")
    ]
    configs[0]["default"] = True  # type: ignore[assignment]
    header = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = "\n".join(f"- {name}: {count}" for name, count in counts.items())
    return (
        f"---\n{header}---\n\n# Prepared video questions\n\nMade by vthink {__version__}. `rows` are the questions; "
        "`media_id` names the entry of `media`\nthat holds the frames, compressed, of the video or image that a "
        f"question is about.\n\n{lines}\n"
    )


# ---------------------------------------------------------------------------------------------------- checking a source


@dataclass(frozen=True)
class Problem:
    """Something wrong with a row."""

    line: int
    """Its line, from 1."""
    reason: Reason
    """The kind of problem."""
    detail: str
    """What exactly."""


@dataclass
class FileReport:
    """What was found in one file of rows."""

    path: str
    rows: int = 0
    """Rows, good and bad."""
    by_type: Counter[str] = field(default_factory=Counter)
    """Good rows by problem type."""
    by_source: Counter[str] = field(default_factory=Counter)
    """Good rows by source."""
    by_split: Counter[str] = field(default_factory=Counter)
    """Good rows by split."""
    media: int = 0
    """Different videos and images."""
    missing_media: int = 0
    """Those of them that are not there."""
    problems: list[Problem] = field(default_factory=list)
    """All of them, in the order of the lines."""

    @property
    def ok(self) -> bool:
        """Whether every row can be used, as far as can be seen without decoding."""
        return not self.problems


def validate_rows(sources: Sequence[str], storage: Storage | None = None) -> list[FileReport]:
    """Read files of rows and look for their media, without decoding anything.

    Args:
        sources: paths or ``s3://`` URIs of ``.jsonl`` or ``.parquet`` files.
        storage: the store, where one of them or of their media is there; without it media in a store are not
        looked
            for.

    Raises:
        SamplesError: a file cannot be read at all.
        StorageError: the store cannot be reached.
    """
    return [_validate(source, storage) for source in sources]


def _validate(source: str, storage: Storage | None) -> FileReport:
    report = FileReport(source)
    line_of: dict[str, int] = {}
    there: dict[str, bool] = {}
    splits: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vthink-validate-") as folder:
        if source.startswith("s3://"):
            path, base = Path(folder) / source.rsplit("/", 1)[-1], source.rsplit("/", 1)[0] + "/"
            (storage or _no_storage(source)).download_file(source, path)
        else:
            path = Path(source).expanduser().absolute()
            base = str(path.parent)
        for line, row in numbered_samples(path):
            report.rows += 1
            checked = _checked(line, row, base, line_of)
            if isinstance(checked, Quarantined):
                report.problems.append(Problem(line, checked.reason, checked.detail))
                continue
            uri = checked.media.uri
            if uri not in there:
                there[uri] = _is_there(uri, storage)
            if not there[uri]:
                report.problems.append(Problem(line, "missing_media", f"{uri} is not there"))
                continue
            split = splits.setdefault(uri, checked.split)
            if split != checked.split:
                report.problems.append(Problem(line, "split_leak", f"{uri} is also in the split '{split}'"))
            report.by_type[checked.problem_type] += 1
            report.by_source[checked.source] += 1
            report.by_split[checked.split] += 1
    report.media = len(there)
    report.missing_media = len(there) - sum(there.values())
    return report


def _is_there(uri: str, storage: Storage | None) -> bool:
    if uri.startswith("s3://"):
        return storage is None or storage.exists(uri)
    try:
        return Path(uri).is_file() and Path(uri).stat().st_size > 0
    except ValueError:
        return False


def _no_storage(source: str) -> Storage:
    raise PrepareError(f"{source} is in a store; say which one (storage section, AWS_ENDPOINT_URL_S3)")


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
