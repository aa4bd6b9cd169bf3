"""Files of rows checked without decoding anything, for `vthink data validate`."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..common.storage.s3 import Storage
from .formats.read import read_rows
from .plan import IDS_TABLE, check_row
from .records import Quarantined
from .source import HUB, open_source
from .task import open_ledger

PROBLEMS_LISTED = 10_000  # most problems that are kept per file; all are counted
_TABLES = f"{IDS_TABLE} CREATE TABLE files (uri TEXT PRIMARY KEY, present INTEGER, split TEXT) WITHOUT ROWID;"


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
    missing_media: int = 0  # those of them that are not there
    problems: list[Quarantined] = field(default_factory=list)
    """The first `PROBLEMS_LISTED` of them, in the order of the lines."""

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
    name: str, storage: Storage | None = None, format_name: str | None = None, roots: Mapping[str, str] | None = None
) -> FileReport:
    """Read a file of rows (a path, ``s3://`` or ``hf://`` URI) and look for their media, without decoding anything;
    without ``storage`` those in a store are not looked for. ``format_name``: how the rows are written; None: as the
    first of them look; ``roots``: where the media of each source are (`DataPrepConfig.roots`)."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-validate-")))
        ledger = stack.enter_context(contextlib.closing(open_ledger(folder, _TABLES)))
        source = open_source(name, storage, folder)
        rows = read_rows(source.path, format_name, roots)
        report = FileReport(name, rows.format.name)
        for line, row in rows:
            report.rows += 1
            checked = check_row(line, row, source.base, ledger, None if rows.format.unique_ids else report.rows)
            if isinstance(checked, Quarantined):
                report.add(checked)
                continue
            uri = checked.media.uri
            file = ledger.execute("SELECT present, split FROM files WHERE uri = ?", (uri,)).fetchone()
            if file is None:
                file = (_is_there(uri, storage), checked.split)
                ledger.execute("INSERT INTO files VALUES (?, ?, ?)", (uri, *file))
                report.media += 1
                report.missing_media += not file[0]
            present, split = file
            if not present:
                report.add(Quarantined.of(line, checked, "missing_media", f"{uri} is not there"))
                continue
            if split != checked.split:
                report.add(Quarantined.of(line, checked, "split_leak", f"{uri} is also in the split '{split}'"))
            report.by_type[checked.problem_type] += 1
            report.by_source[checked.source] += 1
            report.by_split[checked.split] += 1
    return report


def _is_there(uri: str, storage: Storage | None) -> bool:
    if uri.startswith("s3://"):
        return storage is None or storage.exists(uri)
    if uri.startswith(HUB):
        return True  # a request each would take hours; preparation says what it cannot fetch
    try:
        return Path(uri).is_file() and Path(uri).stat().st_size > 0
    except (OSError, ValueError):
        return False
