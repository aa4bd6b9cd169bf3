"""Curation: reasoning traces for training, written by a teacher and checked, by a judge or by the rule reward.

Every answered call, and what became of every row, is in a journal that is synced to disk before anything else happens
with it. A run that was killed, or stopped by its budget, asks nothing twice that is in there; what a call is known by
is its row, its step and attempt, and the words that were sent, so a changed prompt is asked afresh.

What models write is hostile until checked: `replies`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...common.chat_endpoint.endpoint import CallFailedError, EndpointUnusableError
from ...common.errors import UserError
from ...common.rows.files import RowError, to_line
from ...common.rows.sample import Sample
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ...common.video.workers import Decoder
from ..config import CurationConfig
from ..source import open_source
from .account import Account, StoppedError
from .calls import Calls
from .cot import sample_traces
from .hindsight import curate_in_hindsight
from .items import DropItemError, Item, deciding_settings, read_items
from .journal import CallJournal, Decision
from .media import MediaReader
from .model import CurationModel
from .output import Summary, checked_output, write_output
from .prompts import Prompts

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
        self._unusable: dict[str, Decision] = {}
        """What became of items whose media cannot be used, by their digest."""
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
