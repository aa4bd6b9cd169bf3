"""What a format of rows is: how it is recognised, and how a row of it becomes samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""A row as a file holds it, or the fields of a `Sample`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a data set writes its rows. A file of this folder per format, and an entry in `FORMATS`."""

    name: str
    """Its name, for ``--format`` and ``data.format``."""
    fits: Callable[[Row], bool]
    """Whether a row looks like one of it."""
    read: Callable[[Row, int], Iterable[Row | Exception]]
    """The samples of a row, as mappings (number of the row → ids where the format has none). Raises, or yields for one
    of several, a `ValueError` that says what is wrong."""
    unique_ids: bool = False
    """Whether an id that occurs twice is a mistake; else ids only count rows, and one that is taken gets a number."""
