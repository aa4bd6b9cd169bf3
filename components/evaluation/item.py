"""One graded answer, a line of ``items.jsonl``; and the journal of them, so that nothing is asked twice.

In a folder the journal is ``items.jsonl`` itself: lines are appended and forced to disk batch by batch, and a line that
was cut off is dropped. In the store every batch is an object: what a killed evaluation can lose is a batch."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from ..common.errors import UserError
from ..common.storage.names import join

if TYPE_CHECKING:
    from ..common.storage.s3 import Storage


class Item(BaseModel):
    """A question, what a model answered to it under a condition, and how good that was. Lines may come from anywhere,
    so nothing in them is believed before it is checked; other keys are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    id: str
    video: str
    """What items are clustered by."""
    name: str = ""
    """What a person calls the video."""
    model: str = "model"
    condition: str = Field(validation_alias="frames", serialization_alias="frames")
    """Name of the condition that it was asked under; ``frames`` in the file."""
    problem_type: str
    kind: str | None = None
    groups: dict[str, str] = {}
    """Further breakdowns by name."""
    response: str | None = None
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    answer: str | None = None
    """What was read from the response."""
    truth: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    clip: tuple[float | None, float | None] = (None, None)
    """The part of the video that was asked about, in seconds."""
    evidence: tuple[tuple[float, float, str], ...] = ()
    """Start, end and caption of the parts that the answer rests on."""
    metrics: dict[str, float]
    duration_s: float = 0.0
    """Length of the clip that was shown."""
    error: str | None = None
    """Why there is no answer."""
    value: float | None = None
    """What it counts in the headline of its benchmark."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def score(self) -> float:
        """The grade of the answer."""
        return self.metrics.get("score", 0.0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return bool(self.metrics.get("accuracy", 0.0))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def format(self) -> bool:
        """Whether the response has the shape that was asked for."""
        return bool(self.metrics.get("format_rate", 0.0))

    @property
    def video_name(self) -> str:
        """What a person calls the video; of older items what they are clustered by."""
        return self.name or self.video

    @property
    def outcome(self) -> str:
        """``failed``, ``right`` or ``wrong``."""
        return "failed" if self.error is not None else "right" if self.correct else "wrong"

    def to_line(self) -> bytes:
        """The line of ``items.jsonl``."""
        return self.model_dump_json(by_alias=True).encode("utf-8", "replace") + b"\n"


def read_items(contents: bytes, where: str) -> Iterator[Item]:
    """The items of an ``items.jsonl``, line by line; a `UserError` that names ``where`` where a line is none."""
    for number, line in enumerate(contents.splitlines(), start=1):
        yield parse_record(Item, line, f"{where}, line {number}")


R = TypeVar("R", bound=BaseModel)


def parse_record(kind: type[R], data: bytes, where: str, otherwise: str = "evaluate again") -> R:
    """What a file or line holds; a `UserError` with its first mistake, in one line, and what to do."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, mistake["loc"]))
        what = (f", field '{field}'" if field else "") + f": {mistake['msg'].removeprefix('Value error, ')[:100]}"
        raise UserError(f"{where}{what}; {otherwise}") from None


class FileLog:
    """A file of items, one per line; one process at a time (the file is locked)."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file; a `UserError` where another process writes it."""
        self.path = path
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another evaluation is writing it; give another --output") from None

    def read(self) -> list[Item]:
        """The items that were kept, in order; a `UserError` where the file holds something else."""
        self._file.seek(0)
        *lines, _ = self._file.read().split(b"\n")
        items: list[Item] = []
        for number, line in enumerate(lines, 1):
            try:
                items.append(parse_record(Item, line, f"{self.path}, line {number}"))
            except UserError:
                if number < len(lines):
                    raise
                lines.pop()  # cut off, or blocks of the file that never reached the disk
        self._file.truncate(sum(len(line) + 1 for line in lines))
        return items

    def append(self, items: Sequence[Item]) -> None:
        """Keep more; when this returns they stay."""
        self._file.write(b"".join(item.to_line() for item in items))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._file.close()


class StoreLog:
    """Items in the store below a prefix, an object per batch."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self.prefix = storage, prefix
        self._number = 0

    def read(self) -> list[Item]:
        """The items that were kept, in order."""
        pieces = sorted(piece.uri for piece in self._storage.list(self.prefix))
        self._number = len(pieces)
        lines = ((uri, line) for uri in pieces for line in self._storage.read_bytes(uri).splitlines())
        return [parse_record(Item, line, uri) for uri, line in lines]

    def append(self, items: Sequence[Item]) -> None:
        """Keep more; when this returns they stay."""
        name = f"{self._number:06d}-{uuid.uuid4().hex[:8]}.jsonl"  # no name that another process could take
        self._storage.write_bytes(join(self.prefix, name), b"".join(item.to_line() for item in items))
        self._number += 1

    def close(self) -> None:
        """Nothing is held."""


class Journal:
    """Items by (condition, id): what is there has been asked; the last line of a key counts. A context manager."""

    def __init__(self, log: FileLog | StoreLog) -> None:
        self._log = log
        self.items: dict[tuple[str, str], Item] = {}
        try:
            self._add(log.read())
        except BaseException:
            log.close()
            raise

    def _add(self, items: Sequence[Item]) -> None:
        self.items |= {(item.condition, item.id): item for item in items}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.items

    def append(self, items: Iterable[Item]) -> None:
        """Keep items, in place of earlier ones of the same key; when this returns they stay."""
        if items := list(items):
            self._log.append(items)
            self._add(items)

    def forget_failed(self) -> None:
        """Leave out the items that failed, so that they are asked again."""
        self.items = {key: item for key, item in self.items.items() if item.error is None}
