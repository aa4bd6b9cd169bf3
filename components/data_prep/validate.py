"""Files of rows checked without decoding anything, for `vthink data validate`."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ..common.rows.files import RowError
from ..common.rows.sample import Sample
from ..common.storage.s3 import Storage
from .formats.columns import Columns, shown_columns
from .formats.read import read_rows
from .plan import IDS_TABLE, check_row
from .records import Quarantined, Reason
from .source import HUB, local_problem, media_name, open_source
from .task import open_ledger

EXAMPLES = 3  # good rows that are shown as they were understood
PROBLEMS_LISTED = 10_000  # most problems that are kept per file; all are counted
_TABLES = f"{IDS_TABLE} CREATE TABLE files (uri TEXT PRIMARY KEY, reason TEXT, detail TEXT, split TEXT) WITHOUT ROWID;"


@dataclass
class FileReport:
    """The rows of one file, and what is wrong with them."""

    path: str
    format: str  # name of the format it was read as
    rows: int = 0  # rows, good and bad
    bad: int = 0  # rows with a problem
    by_type: Counter[str] = field(default_factory=Counter)  # good rows by problem type
    by_source: Counter[str] = field(default_factory=Counter)
    by_split: Counter[str] = field(default_factory=Counter)
    media: int = 0  # different videos and images
    missing_media: int = 0  # those of them that are not there, or cannot be read
    problems: list[Quarantined] = field(default_factory=list)
    """The first `PROBLEMS_LISTED` of them, in the order of the lines."""
    columns: str = ""  # of somebody's own table: which column was understood as which field
    examples: list[Sample] = field(default_factory=list)  # the first good rows
    whole: bool = True  # whether the whole file was read

    @property
    def ok(self) -> bool:
        """Whether every row can be used, as far as can be seen without decoding."""
        return not self.bad

    def add(self, problem: Quarantined) -> None:
        """Note a problem."""
        self.bad += 1
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append(problem)


def validate_rows(
    name: str,
    storage: Storage | None = None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
    columns: Columns | None = None,
    visit: Callable[[int, Sample, str], None] | None = None,
    max_rows: int | None = None,
    max_objects: int | None = None,
) -> FileReport:
    """Read a file of rows (a path, ``s3://`` or ``hf://`` URI) and look for their media, without decoding anything.

    Args:
        storage: the store, where it or its media are there; without it media in a store are not looked for.
        format_name: how the rows are written; None: as the first of them look.
        roots: where the media of each source are (`DataPrepConfig.roots`).
        columns: which column of a table is which field (`DataPrepConfig.columns`).
        visit: called with the line, the sample and the medium's `media_name` of each good row.
        max_rows: read only so many rows; None: all.
        max_objects: look for so many media in a store, which takes a request each; None: for all."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-validate-")))
        ledger = stack.enter_context(contextlib.closing(open_ledger(folder, _TABLES)))
        source = open_source(name, storage, folder)
        rows = read_rows(source.path, format_name, roots, columns)
        report = FileReport(name, rows.format.name, columns=shown_columns(rows.columns))
        for line, row in rows:
            if report.rows == max_rows:
                report.whole = False
                break
            report.rows += 1
            media = "" if isinstance(row, RowError) else media_name(row, source.base, rows.roots)
            checked = check_row(line, row, source.base, ledger, None if rows.format.unique_ids else report.rows)
            if isinstance(checked, Quarantined):
                report.add(checked)
                continue
            uri = checked.media.uri
            file = ledger.execute("SELECT reason, detail, split FROM files WHERE uri = ?", (uri,)).fetchone()
            if file is None:
                spared = uri.startswith("s3://") and max_objects is not None and report.media >= max_objects
                file = (*((not spared and _problem(uri, storage)) or (None, "")), checked.split)
                ledger.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (uri, *file))
                report.media += 1
                report.missing_media += file[0] is not None
            reason, detail, split = file
            if reason is not None:
                report.add(Quarantined.of(line, checked, cast(Reason, reason), f"{uri}: {detail}"))
                continue
            if split != checked.split:
                report.add(Quarantined.of(line, checked, "split_leak", f"{uri} is also in the split '{split}'"))
            report.by_type[checked.problem_type] += 1
            report.by_source[checked.source] += 1
            report.by_split[checked.split] += 1
            if len(report.examples) < EXAMPLES:
                report.examples.append(checked)
            if visit is not None:
                visit(line, checked, media)
    return report


def _problem(uri: str, storage: Storage | None) -> tuple[Reason, str] | None:
    if uri.startswith("s3://"):
        return None if storage is None or storage.exists(uri) else ("missing_media", "there is no such object")
    # A request to the hub for each would take hours; preparation says what it cannot fetch.
    return None if uri.startswith(HUB) else local_problem(uri)
