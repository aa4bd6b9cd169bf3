"""What a curation would take."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.rows.files import RowError
from ...common.storage.s3 import Storage
from ..config import CurationConfig
from ..source import open_source
from .curate import _checked, _settings
from .endpoint import IMAGE_TOKENS, usd
from .items import Item, read_items
from .journal import Journal
from .prompts import Prompts
from .replies import as_asked


@dataclass
class Estimate:
    """What deciding the undecided items takes."""

    items: int = 0
    """Items of the source."""
    decided: int = 0
    """Decided by earlier runs, or unusable before any call."""
    min_calls: int = 0
    """Calls when every reply can be used and every trace passes at once."""
    max_calls: int = 0
    """Calls when nothing does."""
    min_usd: float = 0.0
    """Cost of the fewest calls, when replies are a tenth as long as allowed."""
    max_usd: float = 0.0
    """Cost of the most calls, every reply as long as allowed."""
    spent_usd: float = 0.0
    """Spent by earlier runs."""


def estimate(
    source: str | Path,
    output: Path,
    config: CurationConfig,
    storage: Storage | None = None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Estimate:
    """How many calls `curate` would make, and what they could cost; nothing is asked, and no video is opened."""
    config = _checked(source, output, config)
    prompts = Prompts.read(config.prompts)
    settings, journal_path, counted = _settings(config, prompts), output.with_suffix(".journal.jsonl"), Estimate()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-curate-"))
        found = open_source(str(source), storage, Path(folder))
        journal = stack.enter_context(Journal(journal_path)) if journal_path.exists() else None
        counted.spent_usd = journal.spent_usd if journal is not None else 0.0
        for item in read_items(found, config, format_name, roots):
            counted.items += 1
            if isinstance(item, RowError) or (journal and journal.find(item.digest(settings)) is not None):
                counted.decided += 1
                continue
            for role, fewest, most, text_bytes, frames in _calls(item, config, prompts):
                endpoint: Any = getattr(config, role)
                tokens = text_bytes // 4 + IMAGE_TOKENS * frames
                counted.min_calls += fewest
                counted.max_calls += most
                counted.min_usd += fewest * usd(endpoint, tokens, endpoint.max_tokens // 10)
                counted.max_usd += most * usd(endpoint, tokens, endpoint.max_tokens)
    return counted


def _calls(item: Item, config: CurationConfig, prompts: Prompts) -> Iterator[tuple[str, int, int, int, int]]:
    """Role, fewest and most calls, bytes of text and frames of each step of an item."""
    again, traces = 1 + config.max_malformed, 1 + config.max_regenerations
    captions = sum(len(segment.caption.encode()) + 40 for segment in item.segments) or 1000
    asked = 600 if item.sample is None else len(as_asked(item.sample).encode())
    size = {name: len(prompts.texts[name].encode()) for name in prompts.texts}
    if config.method == "cot":
        yield "teacher", config.num_traces, config.num_traces, size["cot"] + asked, config.num_frames
        return
    if item.sample is None:
        yield "teacher", 1, again, size["question"] + captions, 0
    elif not item.segments:
        yield "teacher", 1, again, size["captions"] + asked, config.num_frames
    yield "teacher", 1, again * traces, size["trace"] + captions + asked, 0
    yield "judge", 1, traces, size["judge"] + captions + asked, config.num_frames if config.judge_sees_video else 0
