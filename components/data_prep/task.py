"""What the tasks of data preparation share: their arguments, scratch folder, ledger and log."""

import contextlib
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..common.context import RunContext
from ..common.launch.process import end_with_owner
from ..common.storage.s3 import Storage
from ..common.video.config import VideoConfig
from .config import SYNTHESIZE, DataPrepConfig

STAGE = "prepare"
TRANSFERS = 8  # files that are fetched or sent at once


@dataclass(frozen=True)
class PrepareTask:
    """What all three tasks need, read from their JSON arguments."""

    context: RunContext
    config: DataPrepConfig
    video: VideoConfig
    storage: Storage

    @classmethod
    def read(cls, run: str, config: str, video: str) -> Self:
        """Read the sections; from now on this process ends with the one that started it."""
        end_with_owner()
        context, section = RunContext.load(run, "run"), DataPrepConfig.load(config, "data")
        return cls(context, section, VideoConfig.load(video, "video"), Storage(context.storage))

    @property
    def workers(self) -> int:
        """Decoding or encoding processes."""
        return self.config.workers or len(os.sched_getaffinity(0))

    def result_settings(self) -> dict[str, object]:
        """The settings that the result depends on: not how many processes make it, or what is tolerated."""
        ignored = {"workers", "max_quarantined"} | (set() if self.config.source == SYNTHESIZE else {SYNTHESIZE})
        return self.config.model_dump(mode="json", exclude=ignored)

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A scratch folder: below the run's, or a temporary one."""
        work = self.context.work_dir
        temporary = tempfile.TemporaryDirectory(prefix="vthink-prepare-") if work is None else None
        with temporary or contextlib.nullcontext(f"{work}/{STAGE}") as name:
            path = Path(name).absolute()
            path.mkdir(parents=True, exist_ok=True)
            yield path


def world_folder(folder: Path, prefix: str) -> Path:
    """Where the plan leaves the generated files, so that shards on the same machine need not fetch them."""
    return folder / "world" / prefix.rstrip("/").rsplit("/", 1)[-1]


@contextlib.contextmanager
def in_use(folder: Path, shared: bool, wait: bool = True) -> Iterator[bool]:
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


def log(text: str) -> None:
    """A line for the log of the task."""
    print(text, flush=True)
