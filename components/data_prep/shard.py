"""The media of one shard: fetched, decoded in processes that can be killed, and stored as frames, part by part."""

import base64
import contextlib
import hashlib
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ..common.progress import progress_bar
from ..common.storage.names import join
from ..common.storage.s3 import Storage
from ..common.video.clip import DecodedFile, DecodeError, FileRequest
from ..common.video.workers import Decoder, map_in_order
from .config import DataPrepConfig
from .dataset.parquet import GroupedFile, media_file, send_by_content
from .records import FileOutcome, MediaOutcome, PartOutcome, PartProgress, Reason, Shard, ShardFile, ShardOutcome
from .source import MissingMediaError, fetch_media
from .task import TRANSFERS, PrepareTask, in_use, log, world_folder

PART_MEDIA = 512  # media in a part of a shard
PART_BYTES = 256 * 2**20  # encoded bytes after which a part ends earlier
SAVE_S = 30.0  # a part that takes longer is saved so often: what a killed shard may have to do again


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine, or why there is none."""

    file: ShardFile
    path: Path | None
    sha256: str = ""
    reason: Reason = "missing_media"  # why there is none
    detail: str = ""  # what exactly is wrong
    temporary: bool = False  # only fetched to be decoded


@dataclass(frozen=True)
class Fetcher:
    """Brings files to this machine; those of a generated world may be here already."""

    storage: Storage
    world_uri: str
    world_folder: Path
    scratch: Path

    def __call__(self, file: ShardFile) -> FetchedFile:
        """Fetch a file; its failure is what is returned."""
        uri = file.uri
        target = self.scratch / f"{file.parts[0][0]}{posixpath.splitext(uri)[1][:8]}"
        path = self.world_folder / uri.removeprefix(self.world_uri) if uri.startswith(self.world_uri) else target
        try:
            if path == target or not path.is_file():
                path = fetch_media(uri, self.storage, target)
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            return FetchedFile(file, path, digest, temporary=path == target)
        except MissingMediaError as error:
            return FetchedFile(file, None, reason=error.reason, detail=str(error))
        except OSError as error:
            detail = f"cannot read the file: {error.strerror}"
            return FetchedFile(file, None, reason="unreadable_media", detail=detail)


Decoded = tuple[FetchedFile, DecodedFile | DecodeError | None]  # a file and its frames; None where there was no file


def prepare_shard(run: str, config: str, video: str, shard: str) -> str:
    """Decode the media of a shard and store their frames; finished parts of an earlier attempt are kept. A video that
    cannot be decoded is recorded with its reason; it does not stop the shard. Arguments as for `plan_data`, and one of
    the `Shard` texts that it returned; returns the URI of the shard's outcome."""
    task = PrepareTask.read(run, config, video)
    work = Shard.load(shard, "shard")
    if ShardOutcome.find(task.storage, work.done_uri) is not None:
        log(f"prepare {work.fingerprint}: shard {work.index} reused")
        return work.done_uri
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(task.folder())
        world = world_folder(folder, work.prefix)
        stack.enter_context(in_use(world, shared=True))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shard-", dir=folder)))
        show = stack.enter_context(progress_bar(f"prepare shard {work.index}"))
        decoder = stack.enter_context(Decoder(task.video, task.workers))
        fetcher = Fetcher(task.storage, join(work.prefix, "world/"), world, scratch)
        part = lines = media = bad = 0
        results: Iterator[Decoded] | None = None
        while True:
            outcome = PartOutcome.find(task.storage, work.part_uri(part))
            if outcome is not None:
                results = None  # what was decoded ahead is in this part, or behind it
            else:
                saved: PartProgress | None = None
                if results is None:
                    saved = PartProgress.find(task.storage, work.progress_uri(part))
                    listed = ShardFile.read_lines(task.storage, work.files_uri, scratch / "files.jsonl")
                    done = lines + (saved.outcome.lines if saved is not None else 0)
                    results = _decode(islice(listed, done, None), fetcher, decoder)
                outcome = _write_part(results, work, part, task, scratch, saved)
                if not outcome.media:
                    break
                # Another process may have done the same part meanwhile; then its record holds.
                if (theirs := PartOutcome.find(task.storage, work.part_uri(part))) is not None:
                    results, outcome = None, theirs
                else:
                    outcome.write(task.storage, work.part_uri(part))
                if (progress := PartProgress.find(task.storage, work.progress_uri(part))) is not None:
                    for uri in (work.progress_uri(part), *(uri for _, uri in progress.chunks)):
                        task.storage.delete(uri)
            part, lines, media = part + 1, lines + outcome.lines, media + len(outcome.media)
            bad += sum(medium.reason is not None for medium in outcome.media.values())
            show(media, work.media)
    if media != work.media:
        raise RuntimeError(f"shard {work.index}: {media} of {work.media} media accounted for")
    seconds = time.monotonic() - start
    ShardOutcome(shard=work, parts=part, seconds=seconds).write(task.storage, work.done_uri)
    log(f"prepare {work.fingerprint}: shard {work.index}, {media} media, {bad} unusable, {seconds:.1f} s")
    return work.done_uri


def _decode(files: Iterable[ShardFile], fetcher: Fetcher, decoder: Decoder) -> Iterator[Decoded]:
    """Every file with its frames, in order."""
    waiting: list[FetchedFile] = []

    def requests() -> Iterator[FileRequest]:
        for fetched in map_in_order(fetcher, files, TRANSFERS, 2 * TRANSFERS):
            waiting.append(fetched)
            if fetched.path is not None:
                parts = tuple((start_s, end_s) for _, start_s, end_s in fetched.file.parts)
                yield FileRequest(fetched.path, fetched.file.kind, parts)

    for decoded in decoder.map_files(requests()):
        while waiting[0].path is None:
            yield waiting.pop(0), None
        fetched = waiting.pop(0)
        yield fetched, decoded
        if fetched.temporary and fetched.path is not None:
            fetched.path.unlink(missing_ok=True)
    for fetched in waiting:
        yield fetched, None


def _write_part(
    results: Iterator[Decoded], shard: Shard, number: int, task: PrepareTask, scratch: Path, saved: PartProgress | None
) -> PartOutcome:
    """Store the frames of the next files, after what an earlier attempt saved; an outcome without media when there are
    none left."""
    with contextlib.ExitStack() as stack:
        part = _Part(f"{shard.index:05d}-{number:05d}", scratch, task.config.store == "smallest", stack)
        if saved is not None:
            part.resume(task.storage, saved)
        outcome, last_saved = part.outcome, time.monotonic()
        for fetched, decoded in results if not part.is_full else ():
            outcome.lines += 1
            if reason := _unusable(fetched, decoded, task.config):
                lost = MediaOutcome(sha256=fetched.sha256 or None, reason=reason[0], detail=reason[1])
                outcome.media.update((media_id, lost) for media_id, _, _ in fetched.file.parts)
            elif isinstance(decoded, DecodedFile):
                part.add(fetched, decoded)
            if part.is_full:
                break
            if time.monotonic() - last_saved > SAVE_S:
                part.save(task.storage, shard.progress_uri(number))
                last_saved = time.monotonic()
        part.send(task.storage, shard.prefix)
        return outcome


def _unusable(
    fetched: FetchedFile, decoded: DecodedFile | DecodeError | None, config: DataPrepConfig
) -> tuple[Reason, str] | None:
    """Why nothing of a file can be used."""
    if decoded is None:
        return fetched.reason, fetched.detail
    if isinstance(decoded, DecodeError):
        return cast(Reason, decoded.reason), str(decoded)
    if fetched.file.kind == "video" and decoded.num_frames < config.min_video_frames:
        return "short_video", f"{decoded.num_frames} frames, fewer than data.min_video_frames={config.min_video_frames}"
    if decoded.has_sound and config.sound == "refuse":
        return "has_sound", "the video has sound, which is not used (data.sound=note uses it without)"
    return None


@dataclass
class _Part:
    """A part of a shard that is being written; ``smallest``: a file is kept itself where its frames would be larger."""

    name: str  # shard and part, as they stand in the names of its files
    scratch: Path
    smallest: bool
    stack: contextlib.ExitStack  # closes and removes its files
    outcome: PartOutcome = field(default_factory=PartOutcome)
    _files: dict[str, GroupedFile] = field(default_factory=dict)
    _places: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    _unsaved: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # split and record
    _chunks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether the part ends here."""
        return len(self.outcome.media) >= PART_MEDIA or self.outcome.stored_bytes >= PART_BYTES

    def save(self, storage: Storage, uri: str) -> None:
        """Send what was added since the last time, and a `PartProgress`, last."""
        for split in dict.fromkeys(split for split, _ in self._unsaved):
            path = self.scratch / "chunk.parquet"
            with media_file(path) as chunk:
                for record in (record for owner, record in self._unsaved if owner == split):
                    chunk.add(record, _num_bytes(record))
            self._chunks.append((split, f"{uri.removesuffix('.json')}-{len(self._chunks):05d}.parquet"))
            storage.upload_file(path, self._chunks[-1][1])
            path.unlink()
        self._unsaved.clear()
        PartProgress(outcome=self.outcome, chunks=tuple(self._chunks)).write(storage, uri)

    def resume(self, storage: Storage, saved: PartProgress) -> None:
        """Begin with what an earlier attempt saved."""
        import pyarrow.parquet as pq

        self.outcome, self._chunks = saved.outcome.model_copy(deep=True), list(saved.chunks)
        for split, uri in saved.chunks:
            path = self.scratch / "chunk.parquet"
            storage.download_file(uri, path)
            with pq.ParquetFile(path) as chunk:
                for group in range(chunk.num_row_groups):
                    for record in chunk.read_row_group(group).to_pylist():
                        self._store(split, record)
            path.unlink()
        self._unsaved.clear()

    def _store(self, split: str, record: dict[str, Any]) -> None:
        place = self._media_file(split).add(record, _num_bytes(record))
        self._places[str(record["media_id"])] = (split, *place)
        self._unsaved.append((split, record))

    def _media_file(self, split: str) -> GroupedFile:
        if split not in self._files:
            path = self.scratch / f"{split}-{self.name}.parquet"
            self.stack.callback(path.unlink, missing_ok=True)
            self._files[split] = self.stack.enter_context(media_file(path))
        return self._files[split]

    def add(self, fetched: FetchedFile, decoded: DecodedFile) -> None:
        """Store the frames of a file, once for each of its parts, or the file itself."""
        assert fetched.path is not None
        file, size, outcome = fetched.file, fetched.path.stat().st_size, self.outcome
        shape = {
            name: getattr(decoded, name) for name in ("width", "height", "duration_s", "completeness", "has_sound")
        }
        signature = base64.b64encode(decoded.signature).decode()
        source = FileOutcome(sha256=fetched.sha256, kind=file.kind, bytes=size, signature=signature, **shape)
        outcome.sources.append(source)
        frame_bytes = sum(len(f) for c in decoded.clips if not isinstance(c, DecodeError) for f in c.frames)
        keep_file = self.smallest and size < frame_bytes
        outcome.stored_bytes += size if keep_file else frame_bytes
        outcome.originals += keep_file
        holder: str | None = None
        for (media_id, start_s, end_s), clip in zip(file.parts, decoded.clips, strict=True):
            if isinstance(clip, DecodeError):
                reason = cast(Reason, clip.reason)
                outcome.media[media_id] = MediaOutcome(sha256=fetched.sha256, reason=reason, detail=str(clip))
                continue
            outcome.media[media_id] = MediaOutcome(sha256=fetched.sha256, duration_s=clip.duration_s)
            frames = [] if keep_file else clip.frames
            original = fetched.path.read_bytes() if keep_file and holder is None else None
            origin = {"media_id": media_id, "uri": file.uri, "sha256": fetched.sha256}
            part = {"start_s": start_s, "end_s": end_s}
            content = {"frames": frames, "original": original, "original_id": holder if keep_file else None}
            shape = {name: getattr(clip, name) for name in ("kind", "duration_s", "height", "width")}
            record = {**origin, **part, **content, **shape, "times_s": clip.times_s.tolist()}
            self._store(file.split, record)
            holder = holder or media_id
            outcome.frames += len(clip.frames)

    def send(self, storage: Storage, prefix: str) -> None:
        """Finish the files and send them, each named by its content."""
        outcome, names = self.outcome, dict[str, str]()
        for split, written in self._files.items():
            written.close()
            names[split], info = send_by_content(storage, written.path, prefix, "media/")
            outcome.files[names[split]] = (info.size, info.sha256)
        for media_id, (split, group, row) in self._places.items():
            outcome.media[media_id] = outcome.media[media_id].model_copy(update={"place": (names[split], group, row)})


def _num_bytes(record: dict[str, Any]) -> int:
    return sum(map(len, record["frames"] or ())) + len(record["original"] or b"")
