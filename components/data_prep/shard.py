"""The media of one shard: fetched, decoded and stored as frames."""

from __future__ import annotations

import base64
import contextlib
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..common.config import Section
from ..common.rows.arrow import media_schema, write_records
from ..common.storage.names import join, sha256_file
from ..common.storage.s3 import Storage
from ..common.video.clip import DecodeError, DecodeLimitError, FileRequest, MediaKind
from ..common.video.codec import DecodedFile
from ..common.video.workers import Decoder, map_in_order
from .objects import FormatError
from .outcomes import FileOutcome, MediaOutcome, PartOutcome, Reason, Shard
from .source import HUB, fetch_from_hub
from .task import _TRANSFERS, PrepareError, _find_json, _in_use, _Job, _progress, _say, _workers

PART_MEDIA = 512
"""Media in a part of a shard: what a killed shard may have to do again."""


PART_BYTES = 256 * 2**20
"""Encoded bytes after which a part ends earlier."""


GROUP_BYTES = 2**20


GROUP_MEDIA = 32
"""A row group of a media file ends at so many bytes or media, because taking one clip out reads its group."""


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
