"""Tables and lists of a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from .page import number, template_block


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A table cell that is sorted by something else than what it shows."""

    content: Markup | str
    sort: float | str | None  # None: last


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A row of buttons of which one is pressed."""

    key: str  # lower-case name, as in `FilteredItem.values`
    label: str
    choices: Sequence[tuple[str, str]]  # (value without spaces, text on the button); "all" is added


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str = "",
    sortable: bool = False,
    filters: Sequence[Filter] = (),
    values: Sequence[Mapping[str, Sequence[str]]] = (),
) -> Markup:
    """A table that scrolls sideways where it is too wide; numbers are right-aligned and rounded for reading. Cells are
    text, `Markup`, numbers or `Cell`. With ``sortable``, a click on a heading sorts by that column. ``filters`` choose
    among the rows: ``values`` are, per row and filter's key, those under which it is shown."""
    body = [[_shown(cell) for cell in row] for row in rows]
    numeric = [bool(body) and all(row[i][1] for row in body) for i in range(len(columns))]
    heads = list(zip(columns, numeric, strict=True))
    shown = list(zip(body, values or [{}] * len(body), strict=True))
    inner = template_block("table", columns=heads, rows=shown, caption=caption, sortable=sortable)
    if not filters:
        return inner
    counts = _counts(filters, values)
    return template_block("filtered", filters=list(filters), counts=counts, total=len(body), content=inner)


def _shown(cell: Any) -> tuple[Any, bool, Any]:
    """What a cell shows, whether that is a number, and by what it is sorted."""
    if isinstance(cell, Cell):
        return cell.content, False, cell.sort
    return cell, isinstance(cell, int | float | np.number) and not isinstance(cell, bool), cell


def _counts(filters: Sequence[Filter], values: Sequence[Mapping[str, Sequence[str]]]) -> dict[tuple[str, str], int]:
    return {
        (f.key, value): sum(value in row.get(f.key, ()) for row in values) for f in filters for value, _ in f.choices
    }


def interval(value: float, low: float, high: float, percent: bool = True) -> Markup:
    """A value with its interval below it, in per cent or as it is."""
    shown = [f"{100 * x:.1f}" if percent else number(float(x)) for x in (value, low, high)]
    return template_block("interval", value=shown[0], low=shown[1], high=shown[2], unit=" %" if percent else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredItem:
    """One entry of a list."""

    content: Markup
    values: Mapping[str, Sequence[str]]  # for each filter's key those under which the entry is shown


def filtered_list(filters: Sequence[Filter], items: Sequence[FilteredItem]) -> Markup:
    """Entries below buttons that choose among them (without scripts, all are shown)."""
    counts = _counts(filters, [item.values for item in items])
    return template_block("filtered_list", filters=list(filters), items=list(items), counts=counts)
