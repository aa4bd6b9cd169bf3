"""What comes of a curation: rows, why nothing came of an item, and a summary."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...common.errors import UserError
from ...common.rows.files import RowError
from ..config import CurationConfig
from .account import Account
from .items import Item
from .journal import Decision


@dataclass
class Summary:
    """What came of a source."""

    items: int = 0
    """Videos or questions in it."""
    decided: int = 0
    """Of those, the ones of which it is known what comes of them."""
    rows: int = 0
    """Rows summary."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Items of which nothing came, by reason."""
    failed: list[str] = field(default_factory=list)
    """Items whose calls failed, with the reason; they are asked again when the command is repeated."""
    account: Account = field(default_factory=Account)
    """Calls, tokens and money; those of this run, but for the money, which is that of all runs."""
    replayed: int = 0
    """Answers that came from the journal."""

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
