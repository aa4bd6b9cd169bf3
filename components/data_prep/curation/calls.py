"""The calls of a curation: each answered once and journalled, checked, and asked for again where it cannot be used."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...common.chat_endpoint.media import text_part
from ...common.errors import UserError
from ...common.storage.names import canonical_json
from ...common.video.clip import Clip
from ..config import CurationConfig
from .items import DropItemError, Item, frame_parts
from .model import CurationModel, Role
from .prompts import Prompts
from .replies import UnusableError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRecord:
    """An answered call."""

    key: str  # identifies it: row, step, attempt, words and settings (64 hex digits)
    id: str  # the item that it was about
    role: str
    model: str
    step: str
    attempt: int
    text: str
    finished: bool  # whether it came to its end, rather than being cut off at ``max_tokens``
    tokens: tuple[int, int]  # in and out
    usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What became of an item."""

    key: str  # identifies the item and the settings (64 hex digits)
    id: str | None
    rows: tuple[str, ...] = ()  # its rows, each a line of JSON
    dropped: str = ""  # why there are none; empty where there are
    detail: str = ""


class CallJournal(AbstractContextManager["CallJournal"]):
    """Answered calls and decided items, one JSON object a line, each synced to disk before it counts. A line that was
    cut off by a kill is taken away when the file is opened again. One process at a time. A context manager."""

    def __init__(self, path: Path):
        """Open the file, or make it. Raises UserError: it is damaged, or another process writes it."""
        self.path = path
        self.spent_usd = 0.0  # of all calls in it
        self._offsets: dict[bytes, int] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another vthink data curate is writing it") from None
        self._read()

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, 1):
            try:
                record = json.loads(line if line.endswith(b"\n") else b"")
                key = bytes.fromhex(record["key"])
            except (ValueError, KeyError, TypeError):
                if self._file.read(1):
                    raise UserError(f"{self.path}:{number}: damaged; move the file away to begin anew") from None
                self._file.truncate(offset)
                break
            self._offsets[key] = offset
            self.spent_usd += record.get("usd", 0.0)
            offset += len(line)

    def call(self, key: str) -> CallRecord | None:
        """The answered call with this key."""
        record = self._record(key)
        return CallRecord(**{**record, "tokens": tuple(record["tokens"])}) if record else None

    def decision(self, key: str) -> Decision | None:
        """What became of the item with this key."""
        record = self._record(key)
        return Decision(**{**record, "rows": tuple(record.get("rows", ()))}) if record else None

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._offsets

    def _record(self, key: str) -> Any:
        """A line of the file; empty where there is none with this key."""
        if key not in self:
            return {}
        self._file.seek(self._offsets[bytes.fromhex(key)])
        return json.loads(self._file.readline())

    def add(self, record: CallRecord | Decision) -> None:
        """Append a record; it is on the disk when this returns."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._offsets[bytes.fromhex(record.key)] = offset


@dataclass
class Calls:
    """What the methods of curation ask with."""

    config: CurationConfig
    prompts: Prompts
    journal: CallJournal
    models: Mapping[Role, CurationModel]
    replayed: int = field(default=0, init=False)  # answers that came from the journal

    async def ask(
        self, item: Item, step: str, prompt: str, attempt: int = 0, repetition: int = 0, clip: Clip | None = None
    ) -> CallRecord:
        """The answer to one call about an item: from the journal, or asked for and journalled. Raises what
        `CurationModel.ask` does.

        Args:
            step: name of the prompt; ``judge`` is for the judge, all others are for the teacher.
            prompt: the words; ``clip`` is shown before them.
            attempt: traces, or samples, of this step that came before.
            repetition: answers of this attempt that could not be used.
        """
        model = self.models["judge" if step == "judge" else "teacher"]
        config = model.config
        settings = [config.model, config.temperature, config.max_tokens, config.extra]
        shown = None if clip is None else [item.media.model_dump(mode="json"), self.config.num_frames]
        identity = [item.id, model.role, step, attempt, repetition, settings, self.config.seed, shown, prompt]
        key = hashlib.sha256(canonical_json(identity).encode("utf-8", "surrogatepass")).hexdigest()
        if (record := self.journal.call(key)) is not None:
            self.replayed += 1
            return record
        parts = [*(frame_parts(clip) if clip is not None else ()), text_part(prompt)]
        answer = await model.ask(parts, int(key[:7], 16))
        made = functools.partial(CallRecord, key=key, id=item.id, role=model.role, model=config.model)
        record = made(step=step, attempt=attempt, **answer._asdict())
        self.journal.add(record)
        return record

    async def usable(
        self, item: Item, step: str, prompt: str, check: Callable[[str], T], attempt: int = 0, clip: Clip | None = None
    ) -> tuple[T, int]:
        """The teacher's checked answer, and how many before it could not be used; each is asked for with what was wrong
        with the one before. Raises DropItemError: none of them could be used."""
        words, problem = prompt, ""
        for repetition in range(self.config.max_malformed + 1):
            answer = await self.ask(item, step, words, attempt, repetition, clip)
            try:
                if not answer.finished:
                    raise UnusableError("it was cut off before its end (max_tokens)")
                return check(answer.text), repetition
            except UnusableError as error:
                problem = str(error)
                words = f"{prompt}\n\nAn earlier reply could not be used: {problem}"
        raise DropItemError("malformed_reply", f"{step}, {self.config.max_malformed + 1} times; the last: {problem}")
