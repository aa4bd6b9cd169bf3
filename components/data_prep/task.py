"""What the three tasks of data preparation share."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.context import RunContext
from ..common.launch.lifetime import end_with_owner
from ..common.rows.sample import Sample
from ..common.storage.s3 import Storage
from ..common.video.config import VideoConfig
from .config import DataPrepConfig
from .outcomes import Shard

STAGE = "prepare"


SYNTHESIZE = "synthesize"


LISTED = 10_000
"""Longest list of leaks and duplicates in ``contamination.json``; their numbers are always whole."""


_TRANSFERS = 8


class PrepareError(RuntimeError):
    """Data preparation cannot go on: nothing to read, or too much of it unusable. One line for a person."""


@dataclass(frozen=True)
class _Job:
    """What all three tasks need, read from their JSON arguments."""

    context: RunContext
    config: DataPrepConfig
    video: VideoConfig
    storage: Storage

    @classmethod
    def read(cls, run: str, config: str, video: str) -> _Job:
        end_with_owner()
        context = RunContext.load(run, "run")
        return cls(
            context, DataPrepConfig.load(config, "data"), VideoConfig.load(video, "video"), Storage(context.storage)
        )

    def inputs(self) -> dict[str, Any]:
        """The configuration that the result depends on: not how many processes make it, or what is
        tolerated."""
        ignored = {"workers", "max_quarantined"} | (set() if self.config.source == SYNTHESIZE else {SYNTHESIZE})
        return self.config.model_dump(mode="json", exclude=ignored)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A scratch folder: below the run's, or a temporary one."""
        if self.context.work_dir is not None:
            path = Path(self.context.work_dir).absolute() / STAGE
            path.mkdir(parents=True, exist_ok=True)
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="vthink-prepare-") as name:
            yield Path(name)

    def world_folder(self, folder: Path, prefix: str) -> Path:
        """Where the plan leaves the generated files, so that shards on the same machine need not fetch
        them."""
        return folder / "world" / prefix.rstrip("/").rsplit("/", 1)[-1]


@contextlib.contextmanager
def _in_use(folder: Path, shared: bool, wait: bool = True) -> Iterator[bool]:
    """Hold a folder that several processes on this machine use, alone or together with others; whether it worked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def open_ledger(folder: Path, tables: str) -> sqlite3.Connection:
    """What a task has to remember of each row, file or medium: in a file, because there may be millions."""
    ledger = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    ledger.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN; {tables}")
    return ledger


def _parse(entry: bytes, task: Shard) -> tuple[int, int, Sample]:
    """Number of the row, line in the source, and the row."""
    number, line, row = entry.decode().split("\t", 2)
    return int(number), int(line), Sample.load(row, task.rows_uri)


def _find_json(storage: Storage, uri: str) -> Any:
    """The object, or None where there is none, or only the start of one that was cut off while being written."""
    if not storage.exists(uri):
        return None
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError:
        return None


def _workers(config: DataPrepConfig) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, a line now and then elsewhere; call it with (done, in all)."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 10 and done < total:
            last = time.monotonic()
            _say(f"{what}: {done} of {total}")

    yield line
