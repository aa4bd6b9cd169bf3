"""What a curation would take: calls and money, without asking anything."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...common.rows.files import RowError
from ...common.storage.s3 import Storage
from ..config import CurationConfig, TeacherConfig
from ..source import open_source
from .calls import CallJournal
from .curate import checked_output
from .items import Item, deciding_settings, read_items
from .model import IMAGE_TOKENS
from .prompts import Prompts
from .replies import as_asked


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
    source: str | Path,
    output: Path,
    config: CurationConfig,
    storage: Storage | None = None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Estimate:
    """How many calls `curate` would make, and what they could cost; nothing is asked, and no video is opened."""
    config = checked_output(source, output, config)
    prompts = Prompts.read(config.prompts)
    settings, journal_path, total = deciding_settings(config, prompts), output.with_suffix(".journal.jsonl"), Estimate()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-curate-"))
        rows = open_source(str(source), storage, Path(folder))
        journal = stack.enter_context(CallJournal(journal_path)) if journal_path.exists() else None
        total.spent_usd = journal.spent_usd if journal is not None else 0.0
        for item in read_items(rows, config, format_name, roots):
            total.items += 1
            if isinstance(item, RowError) or (journal is not None and item.digest(settings) in journal):
                total.decided += 1
                continue
            for step in _steps(item, config, prompts):
                tokens = step.text_bytes // 4 + IMAGE_TOKENS * step.frames
                total.min_calls += step.fewest
                total.max_calls += step.most
                total.min_usd += step.fewest * step.model.usd(tokens, step.model.max_tokens // 10)
                total.max_usd += step.most * step.model.usd(tokens, step.model.max_tokens)
    return total


@dataclass(frozen=True)
class _Step:
    """The calls of one step of an item."""

    model: TeacherConfig
    fewest: int
    most: int
    text_bytes: int
    frames: int = 0


def _steps(item: Item, config: CurationConfig, prompts: Prompts) -> Iterator[_Step]:
    teacher, frames = config.teacher, config.num_frames
    again, traces = 1 + config.max_malformed, 1 + config.max_regenerations
    captions = sum(len(segment.caption.encode()) + 40 for segment in item.segments) or 1000
    question = 600 if item.sample is None else len(as_asked(item.sample).encode())
    size = {name: len(text.encode()) for name, text in prompts.texts.items()}
    if config.method == "cot":
        yield _Step(teacher, config.num_traces, config.num_traces, size["cot"] + question, frames)
        return
    if item.sample is None:
        yield _Step(teacher, 1, again, size["question"] + captions)
    elif not item.segments:
        yield _Step(teacher, 1, again, size["captions"] + question, frames)
    yield _Step(teacher, 1, again * traces, size["trace"] + captions + question)
    judge_frames = frames if config.judge_sees_video else 0
    yield _Step(config.judge, 1, traces, size["judge"] + captions + question, judge_frames)
