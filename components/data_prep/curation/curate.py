"""Curation: reasoning traces for training, written by a teacher and checked, by a judge or by the rule reward.

Every answered call, and what became of every row, is in a journal that is synced to disk before anything else happens
with it. A run that was killed, or stopped by its budget, asks nothing twice that is in there; what a call is known by
is its row, its step and attempt, and the words that were sent, so a changed prompt is asked afresh.
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ...common.chat_endpoint.endpoint import CallFailedError, EndpointUnusableError
from ...common.errors import UserError
from ...common.rows.files import RowError, to_line
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ...common.video.workers import Decoder
from ...common.whole_file import whole_file
from ..config import CurationConfig, TeacherConfig
from ..source import open_source
from .calls import IMAGE_TOKENS, Account, CallJournal, Calls, CurationModel, Decision, StoppedError
from .items import AboutMedia, DropItemError, Item, check_store, deciding_settings, read_items, read_media
from .methods import curate_in_hindsight, sample_traces
from .prompts import Prompts
from .replies import as_asked

ReadItems = Callable[[], Iterator[Item | RowError]]


@dataclass
class Summary:
    """What came of a source."""

    items: int = 0  # videos or questions in it
    decided: int = 0  # of those, the ones of which it is known what comes of them
    rows: int = 0  # rows written
    dropped: Counter[str] = field(default_factory=Counter)  # items of which nothing came, by reason
    failed: list[str] = field(default_factory=list)
    """Items whose calls failed, with the reason; they are asked again when the command is repeated."""
    account: Account = field(default_factory=Account)
    """Calls, tokens and money; those of this run, but for the money, which is that of all runs."""
    replayed: int = 0  # answers that came from the journal

    @property
    def complete(self) -> bool:
        """Whether every item is decided."""
        return self.decided == self.items


@contextlib.contextmanager
def opened(
    source: str | Path, output: Path, config: CurationConfig, storage: Storage | None, *reading: Any
) -> Iterator[tuple[CurationConfig, ReadItems]]:
    """The settings with a name for the source, and what reads its items anew; ``reading``: as for `read_items`. Raises
    UserError: the source cannot be read; the output cannot be written, or would replace something."""
    if output.suffix.lower() != ".jsonl":
        raise UserError(f"{output}: rows are written as .jsonl")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"{output}: is the source; choose another file for the output")
    if output.exists() and not output.with_suffix(".journal.jsonl").exists():
        raise UserError(f"{output}: is there already, without the journal of a curation; choose another file")
    config = config if config.source else config.model_copy(update={"source": Path(source).stem})
    with tempfile.TemporaryDirectory(prefix="vthink-curate-") as folder:
        rows = open_source(str(source), storage, Path(folder))
        yield config, functools.partial(read_items, rows, config, *reading)


def curate(
    source: str | Path,
    output: Path,
    config: CurationConfig,
    storage: Storage | None = None,
    progress: Callable[[Summary], None] = lambda summary: None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Summary:
    """Write the training rows that come of a source (a path, ``s3://`` or ``hf://``; see `read_items`) to ``output``.

    Beside ``output``: ``<name>.journal.jsonl``, from which a repeated call goes on, and ``<name>.dropped.jsonl``, which
    says why nothing came of an item. The output is written whenever this returns, with what is decided so far.
    ``storage``: where the source or media with ``s3://`` URIs are; ``progress``: called when an item is decided.

    Raises:
        UserError: the source, the prompts or the journal cannot be used.
        EndpointError: a server cannot be used as it is set up; what is decided has been written.
        KeyboardInterrupt: told to stop (SIGINT, SIGTERM); calls under way were waited for, what is decided is written.
    """
    with opened(source, output, config, storage, format_name, roots) as (config, items):
        if next(items(), None) is None:
            raise UserError(f"{source}: there are no rows in it")
        prompts, account = Prompts.read(config.prompts), Account(config.budget_usd)
        models = {role: CurationModel(role, model, account) for role, model in config.models().items()}
        output.parent.mkdir(parents=True, exist_ok=True)
        with CallJournal(output.with_suffix(".journal.jsonl")) as journal:
            account.usd = journal.spent_usd
            run = _Curation(items, Calls(config, prompts, journal, models), Summary(account=account), progress)
            try:
                asyncio.run(run.work(storage))
            except asyncio.CancelledError:
                pass  # interrupted twice
            finally:
                run.write(output)
    if run.interrupted:
        raise KeyboardInterrupt
    if account.error is not None:
        raise account.error
    return run.summary


class _Curation:
    """One call of `curate`: items are taken from the source by workers, decided, and journalled."""

    def __init__(self, items: ReadItems, calls: Calls, summary: Summary, progress: Callable[[Summary], None]):
        self._items, self._calls, self.summary, self._progress = items, calls, summary, progress
        self._settings = deciding_settings(calls.config, calls.prompts)
        self._unusable: dict[str, Decision] = {}  # what became of items whose media cannot be used, by their digest
        self.interrupted = False

    async def work(self, storage: Storage | None) -> None:
        """Decide every item that is not decided yet."""
        config, models = self._calls.config, self._calls.models.values()
        at_once = sum(model.config.concurrency for model in models)
        video = VideoConfig(num_frames=config.num_frames, max_pixels=config.max_pixels)
        async with contextlib.AsyncExitStack() as stack:
            decoder = stack.enter_context(Decoder(video, min(at_once, len(os.sched_getaffinity(0)))))
            for item in self._items():
                self.summary.items += 1
                if isinstance(item, Item):
                    check_store(item.media, storage)
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # only in the main thread
                    loop.add_signal_handler(number, self._interrupt, task)
            for model in models:
                await stack.enter_async_context(model.endpoint)
            # Items are taken from the source only as fast as they are worked off.
            items = self._items()
            workers = (self._worker(items, decoder, storage) for _ in range(at_once))
            ended = await asyncio.gather(*workers, return_exceptions=True)
        for error in ended:  # raised only now, when every call under way has ended and is journalled
            if error is not None:
                raise error

    def _interrupt(self, task: asyncio.Task[None] | None) -> None:
        """The first time, let the calls under way end (they are paid for); the second time, leave."""
        if self.interrupted and task is not None:
            task.cancel()
            return
        self.interrupted = True
        self.summary.account.stop("interrupted")
        print("waiting for the calls under way; interrupt again to leave at once", file=sys.stderr, flush=True)

    async def _worker(self, items: Iterator[Item | RowError], decoder: Decoder, storage: Storage | None) -> None:
        account = self.summary.account
        for item in items:
            if account.stopped.is_set():
                return
            name = item.id if isinstance(item, Item) else f"line {item.line}"
            try:
                if isinstance(item, Item):
                    await self._decide(item, decoder, storage)
                self.summary.decided += 1
            except CallFailedError as error:
                self.summary.failed.append(f"{name}: {error}")
            except (StoppedError, EndpointUnusableError):
                return
            except Exception as error:
                account.stop(f"{name}: {error}")  # the other workers end their calls first
                raise
            self._progress(self.summary)

    async def _decide(self, item: Item, decoder: Decoder, storage: Storage | None) -> None:
        """Find out what comes of an item, and journal it."""
        digest, journal = item.digest(self._settings), self._calls.journal
        if digest in journal:
            return
        try:
            clip = await asyncio.to_thread(read_media, item.media, decoder, storage)
            method = sample_traces if self._calls.config.method == "cot" else curate_in_hindsight
            rows = await method(item, clip, self._calls)
        except DropItemError as drop:
            decision = Decision(key=digest, id=item.id, dropped=drop.reason, detail=str(drop))
            if drop.reason in get_args(AboutMedia):
                self._unusable[digest] = decision
                return
        else:
            decision = Decision(key=digest, id=item.id, rows=tuple(to_line(row) for row in rows))
        journal.add(decision)

    def write(self, output: Path) -> None:
        """Write and count what is decided, in the order of the source; the files appear when they are whole."""
        summary = self.summary
        summary.decided, summary.rows, summary.dropped, summary.replayed = 0, 0, Counter(), self._calls.replayed
        with (
            whole_file(output) as partial, partial.open("w", encoding="utf-8") as rows,
            whole_file(output.with_suffix(".dropped.jsonl")) as others, others.open("w", encoding="utf-8") as dropped,
        ):  # fmt: skip
            for item in self._items():
                if (decision := self._decision(item)) is None:
                    continue
                summary.decided += 1
                summary.rows += len(decision.rows)
                rows.writelines(line + "\n" for line in decision.rows)
                if reason := decision.dropped:
                    summary.dropped[reason] += 1
                    entry = {"line": item.line, "id": decision.id, "reason": reason, "detail": decision.detail}
                    dropped.write(json.dumps(entry, ensure_ascii=True) + "\n")

    def _decision(self, item: Item | RowError) -> Decision | None:
        if isinstance(item, Item):
            digest = item.digest(self._settings)
            return self._unusable.get(digest) or self._calls.journal.decision(digest)
        kind, _, detail = item.reason.partition(": ")
        if kind not in ("duplicate_id", "missing_media", "bad_segments"):
            kind, detail = "unreadable_row", item.reason
        return Decision(key="", id=None, dropped=kind, detail=detail)


@dataclass
class Estimate:
    """What deciding the undecided items takes."""

    items: int = 0  # items of the source
    decided: int = 0  # decided by earlier runs, or unusable before any call
    min_calls: int = 0  # calls when every reply can be used and every trace passes at once
    max_calls: int = 0  # calls when nothing does
    min_usd: float = 0.0  # cost of the fewest calls, when replies are a tenth as long as allowed
    max_usd: float = 0.0  # cost of the most calls, every reply as long as allowed
    spent_usd: float = 0.0  # spent by earlier runs


def estimate(
    source: str | Path, output: Path, config: CurationConfig, storage: Storage | None = None, *reading: Any
) -> Estimate:
    """How many calls `curate` would make, and what they could cost; nothing is asked, and no video is opened.
    ``reading``: format and roots, as for `read_items`."""
    prompts, journal_path, total = Prompts.read(config.prompts), output.with_suffix(".journal.jsonl"), Estimate()
    with contextlib.ExitStack() as stack:
        config, items = stack.enter_context(opened(source, output, config, storage, *reading))
        settings = deciding_settings(config, prompts)
        journal = stack.enter_context(CallJournal(journal_path)) if journal_path.exists() else None
        total.spent_usd = journal.spent_usd if journal is not None else 0.0
        for item in items():
            total.items += 1
            if isinstance(item, RowError) or (journal is not None and item.digest(settings) in journal):
                total.decided += 1
                continue
            for model, fewest, most, text_bytes, frames in _steps(item, config, prompts):
                tokens = text_bytes // 4 + IMAGE_TOKENS * frames
                total.min_calls += fewest
                total.max_calls += most
                total.min_usd += fewest * model.usd(tokens, model.max_tokens // 10)
                total.max_usd += most * model.usd(tokens, model.max_tokens)
    return total


def _steps(item: Item, config: CurationConfig, prompts: Prompts) -> Iterator[tuple[TeacherConfig, int, int, int, int]]:
    """The steps of an item: who is asked, the fewest and the most calls, and the bytes of text and frames of each."""
    teacher, frames = config.teacher, config.num_frames
    again, traces = 1 + config.max_malformed, 1 + config.max_regenerations
    captions = sum(len(segment.caption.encode()) + 40 for segment in item.segments) or 1000
    question = 600 if item.sample is None else len(as_asked(item.sample).encode())
    size = {name: len(text.encode()) for name, text in prompts.texts.items()}
    if config.method == "cot":
        yield teacher, config.num_traces, config.num_traces, size["cot"] + question, frames
        return
    if item.sample is None:
        yield teacher, 1, again, size["question"] + captions, 0
    elif not item.segments:
        yield teacher, 1, again, size["captions"] + question, frames
    yield teacher, 1, again * traces, size["trace"] + captions + question, 0
    judge_frames = frames if config.judge_sees_video else 0
    yield config.judge, 1, traces, size["judge"] + captions + question, judge_frames
