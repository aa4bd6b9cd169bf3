"""The media of one shard: fetched, decoded in processes that can be killed, and stored as frames, part by part."""

import base64
import contextlib
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..common.progress import progress_bar
from ..common.storage.names import join, sha256_file
from ..common.storage.s3 import Storage
from ..common.video.clip import DecodedFile, DecodeError, DecodeLimitError, FileRequest
from ..common.video.workers import Decoder, map_in_order
from .dataset.parquet import GroupedFile, media_file, send_by_content
from .records import FileOutcome, MediaOutcome, PartOutcome, Reason, Shard, ShardFile, ShardOutcome
from .source import MissingMediaError, fetch_media
from .task import TRANSFERS, PrepareTask, in_use, log, world_folder

PART_MEDIA = 512  # media in a part of a shard: what a killed shard may have to do again
PART_BYTES = 256 * 2**20  # encoded bytes after which a part ends earlier


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine, or why there is none."""

    file: ShardFile
    path: Path | None
    sha256: str = ""
    detail: str = ""  # why there is none
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
            return FetchedFile(file, path, sha256_file(path), temporary=path == target)
        except MissingMediaError as error:
            return FetchedFile(file, None, detail=str(error))


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
        progress = stack.enter_context(progress_bar(f"prepare shard {work.index}"))
        decoder = stack.enter_context(Decoder(task.video, task.workers))
        fetcher = Fetcher(task.storage, join(work.prefix, "world/"), world, scratch)
        part = lines = media = bad = 0
        results: Iterator[Decoded] | None = None
        while True:
            outcome = PartOutcome.find(task.storage, work.part_uri(part))
            if outcome is not None:
                results = None  # what was decoded ahead is in this part, or behind it
            else:
                if results is None:
                    listed = ShardFile.read_lines(task.storage, work.files_uri, scratch / "files.jsonl")
                    results = _decode(islice(listed, lines, None), fetcher, decoder)
                outcome = _write_part(results, work, part, task, scratch)
                if not outcome.media:
                    break
                # Another process may have done the same part meanwhile; then its record holds.
                if (theirs := PartOutcome.find(task.storage, work.part_uri(part))) is not None:
                    results, outcome = None, theirs
                else:
                    outcome.write(task.storage, work.part_uri(part))
            part, lines, media = part + 1, lines + outcome.lines, media + len(outcome.media)
            bad += sum(medium.reason is not None for medium in outcome.media.values())
            progress(media, work.media)
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


def _write_part(results: Iterator[Decoded], shard: Shard, number: int, task: PrepareTask, scratch: Path) -> PartOutcome:
    """Store the frames of the next files; an outcome without media when there are none left."""
    with contextlib.ExitStack() as stack:
        part = _Part(f"{shard.index:05d}-{number:05d}", scratch, task.config.store == "smallest", stack)
        outcome = part.outcome
        for fetched, decoded in results:
            outcome.lines += 1
            if reason := _unusable(fetched, decoded, task.config.min_video_frames):
                lost = MediaOutcome(sha256=fetched.sha256 or None, reason=reason[0], detail=reason[1])
                outcome.media.update((media_id, lost) for media_id, _, _ in fetched.file.parts)
            elif isinstance(decoded, DecodedFile):
                part.add(fetched, decoded)
            if len(outcome.media) >= PART_MEDIA or outcome.stored_bytes >= PART_BYTES:
                break
        part.send(task.storage, shard.prefix)
        return outcome


def _unusable(
    fetched: FetchedFile, decoded: DecodedFile | DecodeError | None, min_video_frames: int
) -> tuple[Reason, str] | None:
    """Why nothing of a file can be used."""
    if decoded is None:
        return "missing_media", fetched.detail
    if isinstance(decoded, DecodeError):
        return "decode_limit" if isinstance(decoded, DecodeLimitError) else "damaged_media", str(decoded)
    if fetched.file.kind == "video" and decoded.num_frames < min_video_frames:
        return "short_video", f"{decoded.num_frames} frames, fewer than data.min_video_frames={min_video_frames}"
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
        shape = {name: getattr(decoded, name) for name in ("width", "height", "duration_s")}
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
                outcome.media[media_id] = MediaOutcome(sha256=fetched.sha256, reason="damaged_media", detail=str(clip))
                continue
            outcome.media[media_id] = MediaOutcome(sha256=fetched.sha256, duration_s=clip.duration_s)
            frames = [] if keep_file else clip.frames
            original = fetched.path.read_bytes() if keep_file and holder is None else None
            origin = {"media_id": media_id, "uri": file.uri, "sha256": fetched.sha256}
            part = {"start_s": start_s, "end_s": end_s}
            content = {"frames": frames, "original": original, "original_id": holder if keep_file else None}
            shape = {name: getattr(clip, name) for name in ("kind", "duration_s", "height", "width")}
            record = {**origin, **part, **content, **shape, "times_s": clip.times_s.tolist()}
            num_bytes = sum(map(len, frames)) + len(original or b"")
            self._places[media_id] = (file.split, *self._media_file(file.split).add(record, num_bytes))
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
