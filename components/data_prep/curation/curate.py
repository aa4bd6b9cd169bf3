"""x"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...common.chat_endpoint.endpoint import CallFailedError, EndpointUnusableError
from ...common.errors import UserError
from ...common.rows.files import RowError, to_line
from ...common.rows.sample import Sample
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ...common.video.workers import Decoder
from ..config import CurationConfig
from ..source import open_source
from .calls import CallJournal, Calls, Decision
from .cot import sample_traces
from .hindsight import curate_in_hindsight
from .items import DropItemError, Item, MediaReader, deciding_settings, read_items
from .model import Account, CurationModel, StoppedError
from .prompts import Prompts


@dataclass
class Summary:
    """What came of a source."""

    items: int = 0  # videos or questions in it
    decided: int = 0  # of those, the ones of which it is known what comes of them
    rows: int = 0  # rows summary
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


def checked_output(source: str | Path, output: Path, config: CurationConfig) -> CurationConfig:
    """The settings with a name for the source, when the output can be summary.

    Raises:
        UserError: it cannot, or would replace something.
    """
    if output.suffix.lower() != ".jsonl":
        raise UserError(f"{output}: rows are written as .jsonl")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"{output}: is the source; choose another file for the output")
    if output.exists() and not output.with_suffix(".journal.jsonl").exists():
        raise UserError(f"{output}: is there already, without the journal of a curation; choose another file")
    return config if config.source else config.model_copy(update={"source": Path(source).stem})


def write_output(
    output: Path, items: Iterable[Item | RowError], decision_of: Callable[[Item], Decision | None], summary: Summary
) -> None:
    """Write and count what is decided, in the order of the items; the files appear when they are whole."""
    summary.decided, summary.rows, summary.dropped = 0, 0, Counter()
    with _replacing(output) as rows, _replacing(output.with_suffix(".dropped.jsonl")) as dropped:
        for item in items:
            decision = _of_bad_row(item) if isinstance(item, RowError) else decision_of(item)
            if decision is None:
                continue
            summary.decided += 1
            summary.rows += len(decision.rows)
            rows.writelines(line + "\n" for line in decision.rows)
            if decision.dropped:
                summary.dropped[decision.dropped] += 1
                entry = {"line": item.line, "id": decision.id, "reason": decision.dropped, "detail": decision.detail}
                dropped.write(json.dumps(entry, ensure_ascii=True) + "\n")


def _of_bad_row(row: RowError) -> Decision:
    kind, _, detail = row.reason.partition(": ")
    if kind not in ("duplicate_id", "missing_media", "bad_segments"):
        kind, detail = "unreadable_row", row.reason
    return Decision(key="", id=None, dropped=kind, detail=detail)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_ABOUT_MEDIA = ("missing_media", "damaged_media", "not_a_video", "bad_segments")
"""Reasons that cost no call and may be gone tomorrow: looked for anew each time, not journalled."""


Progress = Callable[[Summary], None]


def curate(
    source: str | Path,
    output: Path,
    config: CurationConfig,
    storage: Storage | None = None,
    progress: Progress = lambda summary: None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Summary:
    """Write the training rows that come of a source.

    Beside ``output``: ``<name>.journal.jsonl``, from which a repeated call goes on, and ``<name>.dropped.jsonl``, which
    says why nothing came of an item. The output is written whenever this returns, with what is decided so far.

    Args:
        source: a path, an ``s3://`` or an ``hf://`` URI; see `read_items` for what it may hold.
        output: ``.jsonl`` to write.
        config: how.
        storage: where the source or media with ``s3://`` URIs are.
        progress: called when an item is decided.
        format_name: see `read_items`.
        roots: see `read_items`.

    Raises:
        UserError: the source, the prompts or the journal cannot be used.
        EndpointError: a server cannot be used as it is set up; what is decided has been written.
        KeyboardInterrupt: told to stop (SIGINT, SIGTERM); calls under way were waited for, what is decided has been
            written.
    """
    config = checked_output(source, output, config)
    with tempfile.TemporaryDirectory(prefix="vthink-curate-") as folder:
        rows = open_source(str(source), storage, Path(folder))
        items = functools.partial(read_items, rows, config, format_name, roots)
        if next(items(), None) is None:
            raise UserError(f"{source}: there are no rows in it")
        run = _Curation(items, config, progress)
        output.parent.mkdir(parents=True, exist_ok=True)
        with CallJournal(output.with_suffix(".journal.jsonl")) as journal:
            try:
                asyncio.run(run.work(journal, storage))
            except asyncio.CancelledError:
                pass  # interrupted twice
            finally:
                run.write(output, journal)
    if run.interrupted:
        raise KeyboardInterrupt
    if run.summary.account.error is not None:
        raise run.summary.account.error
    return run.summary


class _Curation:
    """One call of `curate`: items are taken from the source by workers, decided, and journalled."""

    _journal: CallJournal
    _calls: Calls
    _media: MediaReader

    def __init__(self, items: Callable[[], Iterator[Item | RowError]], config: CurationConfig, progress: Progress):
        self._items = items
        self._config = config
        self._progress = progress
        self._prompts = Prompts.read(config.prompts)
        self._settings = deciding_settings(config, self._prompts)
        self._unusable: dict[str, Decision] = {}  # what became of items whose media cannot be used, by their digest
        self.summary = Summary(account=Account(config.budget_usd))
        self.interrupted = False
        self._models = [CurationModel("teacher", config.teacher, self.summary.account)]
        if config.method == "hindsight":
            self._models.append(CurationModel("judge", config.judge, self.summary.account))

    async def work(self, journal: CallJournal, storage: Storage | None) -> None:
        """Decide every item that is not decided yet."""
        config = self._config
        self._journal = journal
        self.summary.account.usd = journal.spent_usd
        judge = self._models[1] if len(self._models) > 1 else None
        self._calls = Calls(config, self._prompts, journal, self._models[0], judge)
        at_once = sum(model.config.concurrency for model in self._models)
        video = VideoConfig(num_frames=config.num_frames, max_pixels=config.max_pixels)
        async with contextlib.AsyncExitStack() as stack:
            decoder = stack.enter_context(Decoder(video, min(at_once, len(os.sched_getaffinity(0)))))
            self._media = MediaReader(decoder, storage)
            for item in self._items():
                self.summary.items += 1
                if isinstance(item, Item):
                    self._media.check(item.media)
            self._handle_signals()
            for model in self._models:
                await stack.enter_async_context(model.endpoint)
            # Items are taken from the source only as fast as they are worked off.
            items = self._items()
            ended = await asyncio.gather(*(self._worker(items) for _ in range(at_once)), return_exceptions=True)
        for error in ended:  # raised only now, when every call under way has ended and is journalled
            if error is not None:
                raise error

    def _handle_signals(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # only in the main thread
                loop.add_signal_handler(number, self._interrupt, task)

    def _interrupt(self, task: asyncio.Task[None] | None) -> None:
        """The first time, let the calls under way end (they are paid for); the second time, leave."""
        if self.interrupted and task is not None:
            task.cancel()
            return
        self.interrupted = True
        self.summary.account.stop("interrupted")
        print("waiting for the calls under way; interrupt again to leave at once", file=sys.stderr, flush=True)

    async def _worker(self, items: Iterator[Item | RowError]) -> None:
        account = self.summary.account
        for item in items:
            if account.stopped.is_set():
                return
            if isinstance(item, Item):
                try:
                    if not await self._decide(item):
                        continue
                except (StoppedError, EndpointUnusableError):
                    return
                except Exception as error:
                    account.stop(f"{item.id}: {error}")  # the other workers end their calls first
                    raise
            self.summary.decided += 1
            self._progress(self.summary)

    async def _decide(self, item: Item) -> bool:
        """Find out what comes of an item, and journal it; False when its calls failed."""
        digest = item.digest(self._settings)
        if digest in self._journal:
            return True
        try:
            rows = await self._rows(item)
        except DropItemError as drop:
            decision = Decision(key=digest, id=item.id, dropped=drop.reason, detail=str(drop))
            if drop.reason in _ABOUT_MEDIA:
                self._unusable[digest] = decision
            else:
                self._journal.add(decision)
        except CallFailedError as error:
            self.summary.failed.append(f"{item.id}: {error}")
            self._progress(self.summary)
            return False
        else:
            self._journal.add(Decision(key=digest, id=item.id, rows=tuple(to_line(row) for row in rows)))
        finally:
            self.summary.replayed = self._calls.replayed
        return True

    async def _rows(self, item: Item) -> list[Sample]:
        clip = await asyncio.to_thread(self._media.read, item.media)
        if self._config.method == "cot":
            return await sample_traces(item, clip, self._calls)
        return [await curate_in_hindsight(item, clip, self._calls)]

    def write(self, output: Path, journal: CallJournal) -> None:
        """Write what is decided, in the order of the source."""

        def decision_of(item: Item) -> Decision | None:
            digest = item.digest(self._settings)
            return self._unusable.get(digest) or journal.decision(digest)

        write_output(output, self._items(), decision_of, self.summary)
