"""The calls of a curation: to the teacher or the judge, by many at once, never beyond the budget; each answered once,
journalled, checked, and asked for again where it cannot be used."""

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ...common.chat_endpoint.endpoint import CallFailedError, ChatEndpoint, EndpointError, EndpointUnusableError
from ...common.chat_endpoint.media import Part, text_part
from ...common.errors import UserError
from ...common.storage.names import canonical_json
from ...common.video.clip import Clip
from ..config import CurationConfig, TeacherConfig
from .items import DropItemError, Item, frame_parts
from .prompts import Prompts
from .replies import UnusableError

T = TypeVar("T")
Role = Literal["teacher", "judge"]
IMAGE_TOKENS = 1000  # what an image is taken to cost until the server has said what it did cost
MAX_FAILURES_IN_A_ROW = 20  # after so many calls that failed for good, without one that worked, the server is given up


class StoppedError(Exception):
    """A call that was not made, because no more calls are to be made."""


@dataclass
class Account:
    """Calls, tokens and money of a curation."""

    budget_usd: float | None = None
    calls: Counter[str] = field(default_factory=Counter)  # answered calls by role
    failed_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0  # spent, what earlier runs spent included
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more calls are to be made; those under way are waited for."""
    stop_reason: str = ""
    error: EndpointError | None = None  # why a server cannot be used, when that is what stopped it
    _reserved_usd: float = 0.0
    _under_way: int = 0
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, reason: str | EndpointError) -> None:
        """Let no further call begin."""
        if not self.stopped.is_set():
            self.stop_reason = str(reason)
            self.error = reason if isinstance(reason, EndpointError) else None
            self.stopped.set()
            self._ended.set()

    @contextlib.asynccontextmanager
    async def reserve(self, usd: float) -> AsyncIterator[None]:
        """Set aside what a call may cost at most while it is under way; where the budget is too small for it beside the
        others, wait for them, as most cost less than that. Raises StoppedError: the budget does not allow it, or no
        more calls are to be made."""
        while self.budget_usd is not None and self.usd + self._reserved_usd + usd > self.budget_usd:
            if not self._under_way:
                spent = f"${self.usd:.4f} spent, up to ${usd:.4f} for the next"
                self.stop(f"the budget of ${self.budget_usd:g} does not allow another call ({spent})")
            if self.stopped.is_set():
                break
            self._ended.clear()
            await self._ended.wait()
        self._check()
        self._reserved_usd += usd
        self._under_way += 1
        try:
            yield
        finally:
            self._reserved_usd -= usd
            self._under_way -= 1
            self._ended.set()

    def _check(self) -> None:
        if self.stopped.is_set():
            raise StoppedError(self.stop_reason)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Around each attempt of a call. Raises StoppedError: no more calls are to be made."""
        self._check()
        try:
            yield
        except Exception:
            self.failed_attempts += 1
            raise

    async def pause(self, seconds: float) -> None:
        """Wait, unless no more calls are to be made."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)


class Answer(NamedTuple):
    """What a model wrote, whether it came to its end (not cut off at ``max_tokens``), tokens in and out, its cost."""

    text: str
    finished: bool
    tokens: tuple[int, int]
    usd: float


class CurationModel:
    """A model in one role. `endpoint` is an asynchronous context manager that must be entered."""

    def __init__(self, role: Role, config: TeacherConfig, account: Account):
        """Check the settings. Raises EndpointUnusableError: no URL, no model, or no key where one is named."""
        self.role, self.config, self._account = role, config, account
        self._failures_in_a_row = 0
        setting = f"curation.{role}"
        self.endpoint = ChatEndpoint(
            config, name=f"the {role}", setting=setting, attempt=account.attempt, pause=account.pause
        )
        if not config.model:
            raise EndpointUnusableError(f"{setting}.model is not set; give it with --set {setting}.model=…")

    async def ask(self, parts: Sequence[Part], seed: int) -> Answer:
        """One answered call; waits its turn, and repeats what failed. Raises CallFailedError: the server refused this
        call, or failed at every attempt; EndpointUnusableError: the server cannot be used at all; StoppedError: no more
        calls are to be made."""
        config, account = self.config, self._account
        texts = [part["text"].encode("utf-8", "replace") for part in parts if part["type"] == "text"]
        most_input_tokens = sum(len(text) // 2 for text in texts) + IMAGE_TOKENS * (len(parts) - len(texts))
        message = {"role": "user", "content": parts[0]["text"] if len(parts) == 1 else list(parts)}
        async with account.reserve(config.usd(most_input_tokens, config.most_output_tokens)):
            try:
                reply = await self.endpoint.complete([message], {"seed": seed, **config.sampling()})
            except EndpointUnusableError as error:
                account.stop(error)
                raise
            except CallFailedError as error:
                self._failures_in_a_row += 1
                if (n := self._failures_in_a_row) >= MAX_FAILURES_IN_A_ROW:
                    account.stop(EndpointUnusableError(f"{n} calls in a row failed; the last: {error}"))
                raise
            self._failures_in_a_row = 0
            tokens_in = most_input_tokens // 2 if reply.input_tokens is None else reply.input_tokens
            tokens_out = len(reply.text) // 4 if reply.output_tokens is None else reply.output_tokens
            usd = config.usd(tokens_in, tokens_out)
            account.calls[self.role] += 1
            account.input_tokens += tokens_in
            account.output_tokens += tokens_out
            account.usd += usd
        return Answer(reply.text, reply.finished, (tokens_in, tokens_out), usd)


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
        `CurationModel.ask` does. ``step``: name of the prompt, ``judge`` for the judge, all others for the teacher;
        ``prompt``: the words, before which ``clip`` is shown; ``attempt``: traces, or samples, of this step that came
        before; ``repetition``: answers of this attempt that could not be used."""
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
