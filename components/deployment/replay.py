"""Held-out items that the candidate is asked again: which ones, and their original files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ..common.errors import UserError
from ..common.rows.prepared import PreparedSet
from ..common.rows.sample import Media, Sample
from ..common.storage.manifest import Manifest
from ..common.storage.names import StorageError, fingerprint, sha256_file
from ..common.storage.s3 import Storage
from .config import DeploymentConfig


class EvaluationSettings(BaseModel):
    """What of evaluation's settings the smoke test repeats."""

    model_config = ConfigDict(frozen=True)
    split: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    @property
    def repeatable(self) -> bool:
        """Whether the same answers must come again: a nucleus this small is greedy (Video-R1 evaluates with 0.001)."""
        return self.temperature == 0 or self.top_p <= 0.01


class RecordedAnswer(BaseModel):
    """A row of evaluation's ``items.jsonl``."""

    model_config = ConfigDict(frozen=True)
    id: str
    model: str
    condition: str = Field(validation_alias=AliasChoices("condition", "frames"))
    error: str | None
    answer: str | None = None
    response: str | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """A held-out item that is asked again."""

    sample: Sample
    path: Path
    """The original file."""
    recorded: RecordedAnswer


def choose_replays(
    storage: Storage, section: DeploymentConfig, evaluated: Manifest, data: str, limit: int, scratch: Path
) -> tuple[list[Replay], list[str]]:
    """The items to ask again, always the same ones, and why others were passed over.

    Args:
        storage: where manifests and ``s3://`` media are.
        section: how many items, and of which kinds.
        evaluated: evaluation's manifest; what failed there, and answers longer than ``limit``, cannot be repeated.
        data: manifest URI of the prepared data.
        limit: longest answer of the server, in tokens.
        scratch: for downloaded media.
    """
    by_id = {}
    for sample in PreparedSet.open(storage, data, scratch).split(evaluated.config["split"]).samples:
        part = sample.media.start_s is not None or sample.media.end_s is not None
        if section.serves_plain_vllm and part:  # such a server sees whole videos only
            continue
        if not section.smoke_kinds or sample.metadata.get("kind") in section.smoke_kinds:
            by_id[sample.id] = sample
    rows = map(RecordedAnswer.model_validate_json, storage.read_bytes(evaluated.files["items"]).splitlines())
    candidate = evaluated.details["candidate"]
    usable = [
        row
        for row in rows
        if row.model == candidate and row.condition == "ordered" and not row.error
        and row.id in by_id and len(row.token_ids) <= limit
    ]  # fmt: skip
    usable.sort(key=lambda row: fingerprint("smoke", row.id))  # neighbours in a data set are alike
    return _with_files(storage, by_id, usable, section.smoke_items, scratch)


def _with_files(
    storage: Storage, by_id: dict[str, Sample], rows: Sequence[RecordedAnswer], count: int, scratch: Path
) -> tuple[list[Replay], list[str]]:
    replays: list[Replay] = []
    skipped: list[str] = []
    for row in rows:
        if len(replays) == count or len(skipped) == 8 * count:
            break
        sample = by_id[row.id]
        try:
            replays.append(Replay(sample, local_copy(storage, sample.media, scratch), row))
        except (OSError, StorageError, UserError) as error:
            skipped.append(f"{sample.id}: {error}")
    return replays, skipped


def local_copy(storage: Storage, media: Media, scratch: Path) -> Path:
    """The original file of a row: where it is, or downloaded once; its checksum is checked.

    Raises:
        UserError: it is not the file that the row was prepared from.
    """
    path = Path(media.uri)
    if media.uri.startswith("s3://"):
        path = scratch / "media" / (fingerprint(media.uri) + PurePosixPath(media.uri).suffix)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.download_file(media.uri, path)
    if media.sha256 is not None and sha256_file(path) != media.sha256:
        raise UserError(f"{media.uri} has changed since the data was prepared")
    return path
