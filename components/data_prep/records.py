"""What the tasks of data preparation (plan → shards → merge) hand to each other, as JSON in the store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field

from ..common.config import Section
from ..common.rows.sample import Media, Sample
from ..common.storage.names import fingerprint, join
from ..common.storage.s3 import Storage
from ..common.video.config import MediaKind

LAYOUT = 4  # version of what is written; part of the fingerprint

Reason = (
    Literal["unreadable_row", "duplicate_id", "missing_media", "damaged_media", "decode_limit", "short_video"]
    | Literal["unreadable_media", "outside_video", "has_sound"]
    | Literal["sha256_mismatch", "split_leak", "near_duplicate_leak"]
)
"""Why a row is quarantined: it is no row; its id was taken; its file is not there; its file cannot be decoded; its
decoder ran out of time or memory, or crashed, and was replaced; it has fewer frames than configured; the system cannot
read its file; nothing is shown in the part of the video that it is about; its video has sound (`sound`); its file has
another SHA-256 than the row says; its video is also in a split that is kept for measuring, byte for byte; or it looks
like one that is."""


class Record(Section):
    """One JSON object in the store."""

    @classmethod
    def read(cls, storage: Storage, uri: str) -> Self:
        """The record at ``uri``; a `StorageError` where there is none."""
        return cls.load(storage.read_json(uri), uri)

    @classmethod
    def find(cls, storage: Storage, uri: str) -> Self | None:
        """The record, or None where there is none, or only the start of one that was cut off while being written."""
        if not storage.exists(uri):
            return None
        try:
            return cls.model_validate_json(storage.read_bytes(uri))
        except ValueError:
            return None

    @classmethod
    def read_lines(cls, storage: Storage, uri: str, path: Path) -> Iterator[Self]:
        """The records of a file with one a line, which is fetched to ``path``."""
        storage.download_file(uri, path)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield cls.load(line, uri)

    def write(self, storage: Storage, uri: str) -> None:
        """Write it to ``uri``."""
        storage.write_json(uri, self.model_dump(mode="json"))


class Quarantined(Record):
    """A row that is left out, and why."""

    line: int  # its line in the source, from 1
    reason: Reason
    detail: str
    id: str | None = None
    uri: str | None = None
    split: str | None = None
    raw: str | None = None  # the row itself (its start), when it could not be read

    @classmethod
    def of(cls, line: int, row: Sample, reason: Reason, detail: str) -> Self:
        """A row that could be read."""
        return cls(line=line, reason=reason, detail=detail, id=row.id, uri=row.media.uri, split=row.split)


class Shard(Record):
    """One part of the work, as `plan_data` hands it to `prepare_shard`."""

    fingerprint: str  # of the stage
    prefix: str  # where the stage writes
    index: int
    count: int  # shards of the stage
    rows: int
    media: int  # videos and images

    @property
    def rows_uri(self) -> str:
        """Its rows: number, line in the source and row, with tabs between them."""
        return join(self.prefix, f"plan/rows-{self.index:05d}.jsonl")

    @property
    def files_uri(self) -> str:
        """Its files, and the parts of them that are shown: a `ShardFile` a line."""
        return join(self.prefix, f"plan/files-{self.index:05d}.jsonl")

    @property
    def done_uri(self) -> str:
        """Its `ShardOutcome`; written last."""
        return join(self.prefix, f"shards/{self.index:05d}/shard.json")

    def part_uri(self, part: int) -> str:
        """The `PartOutcome` of one part of it."""
        return join(self.prefix, f"shards/{self.index:05d}/part-{part:05d}.json")

    def progress_uri(self, part: int) -> str:
        """The `PartProgress` of a part that is not finished."""
        return join(self.prefix, f"shards/{self.index:05d}/progress-{part:05d}.json")


class Plan(Record):
    """What `plan_data` decided."""

    shards: tuple[Shard, ...]
    rows_in: int  # rows of the source, good and bad
    left_out: dict[str, int]  # good rows that the configuration leaves out, by the setting that says so
    source: str  # `DataPrepConfig.source`
    format: str  # name of the format of its rows
    source_sha256: str  # of the file of rows; empty for the generated world
    seconds: float

    @staticmethod
    def uri(prefix: str) -> str:
        """Where the plan of a stage is."""
        return join(prefix, "plan.json")


class ShardFile(Record):
    """A video or image of a shard, and the parts of it that are shown."""

    uri: str
    kind: MediaKind
    split: str  # the split whose media file holds its frames
    parts: tuple[tuple[str, float | None, float | None], ...]  # media id, start and end in seconds of each


class MediaOutcome(Section):
    """What became of one video or image, or of a part of a video."""

    sha256: str | None = None  # SHA-256 of the file, when it was there
    reason: Reason | None = None  # why it cannot be used; null: it can
    detail: str = ""  # what exactly is wrong
    place: tuple[str, int, int] | None = None  # file below the prefix, row group and row that hold its frames
    duration_s: float = 0.0  # length of what is shown


class FileOutcome(Section):
    """A source file that could be decoded."""

    sha256: str  # of its bytes
    kind: MediaKind
    bytes: int
    width: int  # of its frames, upright, in pixels
    height: int
    duration_s: float  # its whole length; 0 for an image
    signature: str  # `common.video.clip.signature`, in base64
    completeness: str  # how it is known that nothing is missing (`common.video.completeness`)
    has_sound: bool


class PartOutcome(Record):
    """What became of the media of one part of a shard, and the files that hold their frames; counted up."""

    model_config = ConfigDict(frozen=False)

    lines: int = 0  # how many lines of the shard's files it has dealt with
    media: dict[str, MediaOutcome] = Field(default_factory=dict)  # by media id
    sources: list[FileOutcome] = Field(default_factory=list)  # the files that could be decoded
    files: dict[str, tuple[int, str]] = Field(default_factory=dict)  # size and SHA-256 by name below the prefix
    frames: int = 0  # frames that were sampled
    stored_bytes: int = 0  # bytes that hold them: frames or, where these would be larger, the file itself
    originals: int = 0  # how many files are kept themselves


class PartProgress(Record):
    """The beginning of a part that is being written, for an attempt that goes on after a kill."""

    outcome: PartOutcome  # of what is done, without the places of its media
    chunks: tuple[tuple[str, str], ...]  # split and URI of the files that hold their frames, in their order


class ShardOutcome(Record):
    """A shard whose parts are all finished."""

    shard: Shard
    parts: int
    seconds: float


def media_id(media: Media) -> str:
    """Identifies what is shown: the file, and the part of it."""
    return fingerprint(media.kind, media.uri, media.start_s, media.end_s)
