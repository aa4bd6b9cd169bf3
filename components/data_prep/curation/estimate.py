"""What a curation would take: calls and money, without asking anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...common.rows.files import RowError
from ...common.storage.s3 import Storage
from ..config import CurationConfig, TeacherConfig
from .calls import CallJournal
from .curate import opened
from .items import Item, deciding_settings
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
    prompts, journal_path, total = Prompts.read(config.prompts), output.with_suffix(".journal.jsonl"), Estimate()
    with contextlib.ExitStack() as stack:
        config, items = stack.enter_context(opened(source, output, config, storage, format_name, roots))
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
