"""Which column of somebody's own table is which field of a row: by its usual names, or as ``data.columns`` says."""

import re
from collections.abc import Iterable, Mapping

from ...common.errors import UserError
from .format import Row

MEDIA = ("video", "image", "path")
NAMES: dict[str, tuple[str, ...]] = {
    "video": ("video", "video_path", "video_file", "video_name", "video_uri", "video_url", "clip", "clip_path", "mp4"),
    "image": ("image", "image_path", "image_file", "image_name", "img", "picture", "photo"),
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "media_path", "uri"),
    "question": ("question", "problem", "prompt", "query", "question_text", "instruction"),
    "answer": ("answer", "solution", "label", "correct_answer", "correct", "ground_truth", "gt", "target"),
    "options": ("options", "choices", "candidates", "option_list"),
    "id": ("id", "question_id", "qid", "uid", "sample_id", "row_id"),
    "problem_type": ("problem_type", "answer_type"),
    "reasoning": ("reasoning", "rationale", "explanation", "cot", "thought", "process"),
    "source": ("source", "dataset", "data_source"),
    "split": ("split",),
    "start_s": ("start_s", "start", "start_time", "begin"),
    "end_s": ("end_s", "end", "end_time"),
    "evidence": ("evidence",),
    "metadata": ("metadata",),
}
"""The fields of a table, each with the names that its column usually has; of several the first counts."""
_OPTION = re.compile(r"([a-z])|(?:option|choice|opt|candidate|a)_?(?:([a-z])|(\d{1,2}))")

Columns = Mapping[str, str | tuple[str, ...]]  # the column of a field; of the options, one for each


def columns_of(names: Iterable[str], chosen: Columns | None = None) -> dict[str, str | tuple[str, ...]]:
    """The fields that a table with these columns has, in the order of `NAMES`; ``chosen`` ones come first. Options may
    be spread over columns ``A B C D``, ``option_a option_b`` or ``choice1 choice2``."""
    known = {_plain(name): name for name in reversed([*names])}
    taken = {column for entry in (chosen or {}).values() for column in ([entry] if isinstance(entry, str) else entry)}
    columns = dict[str, str | tuple[str, ...]]()
    for field, usual in NAMES.items():
        if chosen and field in chosen:
            columns[field] = chosen[field]
        elif chosen and field in MEDIA and not chosen.keys().isdisjoint(MEDIA):
            columns[field] = ()  # where one is chosen, the others are not meant
        elif column := next((known[name] for name in usual if name in known and known[name] not in taken), None):
            columns[field] = column
    if "options" not in columns and len(spread := _option_columns(known)) > 1:
        columns["options"] = spread
    return columns


def by_field(row: Row, chosen: Columns | None = None) -> dict[str, object]:
    """The row of somebody's own table with our names of its fields; what is none of them keeps its own name."""
    columns = columns_of([name for name in row if isinstance(name, str)], chosen)
    fields, used = dict[str, object](), set[str]()
    for field, column in columns.items():
        if isinstance(column, str):
            used.add(column)
            fields[field] = row.get(column)
        else:
            used.update(column)
            fields[field] = [row[name] for name in column if row.get(name) not in (None, "")]
    return {name: value for name, value in row.items() if name not in used and name not in fields} | fields


def check_columns(chosen: Columns, names: Iterable[str], where: str) -> None:
    """Check ``data.columns`` against the columns that there are. Raises UserError: it names another one."""
    there = list(names)
    for field, entry in chosen.items():
        for column in [entry] if isinstance(entry, str) else entry:
            if column not in there:
                listed = ", ".join(there)[:200]
                raise UserError(f"{where}: no column '{column}' (data.columns.{field}); there are: {listed}")


def shown_columns(columns: Columns) -> str:
    """The mapping as a line for a person: ``video ← Clip File, options ← A B C D``."""
    pairs = ((field, entry if isinstance(entry, str) else " ".join(entry)) for field, entry in columns.items() if entry)
    return ", ".join(field if field == column else f"{field} ← {column}" for field, column in pairs)


def _plain(name: str) -> str:
    return re.sub(r"[\s.\-/]+", "_", name.strip().lower())


def _option_columns(known: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of single options, in their order; from A (or 0 or 1) on without a gap."""
    ordered: dict[int, str] = {}
    for name, column in known.items():
        if match := _OPTION.fullmatch(name):
            letter = match[1] or match[2]
            ordered.setdefault(ord(letter) - ord("a") + 1 if letter else int(match[3]), column)
    first = 0 if 0 in ordered else 1
    return tuple(ordered[place] for place in range(first, first + len(ordered)) if place in ordered)
