"""What the tasks of data preparation (plan → shards → merge) hand to each other, as JSON in the store."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field

from ..common.config import Section
from ..common.rows.sample import Media, Sample
from ..common.storage.names import fingerprint, join
from ..common.storage.s3 import Storage
from ..common.video.config import MediaKind

LAYOUT = 2
"""Version of what is written; part of the fingerprint."""

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
decoder ran out of time or memory, or crashed, and was replaced; it has fewer frames than configured; its file has
another SHA-256 than the row says; its video is also in a split that is kept for measuring, byte for byte; or it looks
like one that is."""


class Record(Section):
    """One JSON object in the store."""

    @classmethod
    def read(cls, storage: Storage, uri: str) -> Self:
        """The record at ``uri``.

        Raises:
            StorageError: there is none.
        """
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

    def write(self, storage: Storage, uri: str) -> None:
        """Write it to ``uri``."""
        storage.write_json(uri, self.model_dump(mode="json"))


class Quarantined(Record):
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

    @classmethod
    def of(cls, line: int, row: Sample, reason: Reason, detail: str) -> Self:
        """A row that could be read."""
        return cls(line=line, reason=reason, detail=detail, id=row.id, uri=row.media.uri, split=row.split)


class Shard(Record):
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


class Plan(Record):
    """What `plan_data` decided."""

    shards: tuple[Shard, ...]
    rows_in: int
    """Rows of the source, good and bad."""
    left_out: dict[str, int]
    """Good rows that the configuration leaves out, by the setting that says so."""
    source: str
    """`DataPrepConfig.source`."""
    format: str
    """Name of the format of its rows."""
    source_sha256: str
    """Of the file of rows; empty for the generated world."""
    seconds: float

    @staticmethod
    def uri(prefix: str) -> str:
        """Where the plan of a stage is."""
        return join(prefix, "plan.json")


class ShardFile(Record):
    """A video or image of a shard, and the parts of it that are shown."""

    uri: str
    kind: MediaKind
    split: str
    """The split whose media file holds its frames."""
    parts: tuple[tuple[str, float | None, float | None], ...]
    """Media id, start and end in seconds of each."""


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
    """`common.video.clip.signature`, in base64."""


class PartOutcome(Record):
    """What became of the media of one part of a shard, and the files that hold their frames. Counted up while it is
    made."""

    model_config = ConfigDict(frozen=False)

    lines: int = 0
    """How many lines of the shard's files it has dealt with."""
    media: dict[str, MediaOutcome] = Field(default_factory=dict)
    """By media id."""
    sources: list[FileOutcome] = Field(default_factory=list)
    """The files that could be decoded."""
    files: dict[str, tuple[int, str]] = Field(default_factory=dict)
    """Size and SHA-256 by name below the prefix."""
    frames: int = 0
    """Frames that were sampled."""
    stored_bytes: int = 0
    """Bytes that hold them: frames or, where these would be larger, the file itself."""
    originals: int = 0
    """How many files are kept themselves."""


class ShardOutcome(Record):
    """A shard whose parts are all finished."""

    shard: Shard
    parts: int
    """How many parts it has."""
    seconds: float


def media_id(media: Media) -> str:
    """Identifies what is shown: the file, and the part of it."""
    return fingerprint(media.kind, media.uri, media.start_s, media.end_s)
