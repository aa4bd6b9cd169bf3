"""Rows of annotation files."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...common.config import describe
from ...common.errors import UserError
from ...common.rows.files import MAX_LINE_BYTES
from ...common.rows.sample import Sample

MAX_OPTIONS = 26


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a published row asks it, before its video has been looked for."""

    sample: Sample
    """``media.uri`` is the first of ``videos``."""
    videos: tuple[str, ...]
    """Where the published layout may have the video, the likeliest place first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of an annotation file, and where it stands."""

    file: str
    number: int
    """Row, from 1."""
    data: Mapping[str, Any]
    inside: str = ""
    """Where in the row, for entries that are part of one."""

    @property
    def place(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.number}" + (f", {self.inside}" if self.inside else "")

    def error(self, name: str, why: str) -> UserError:
        """The mistake of one field."""
        shown = f", found {str(self.data[name])[:60]!r}" if name in self.data else ""
        return UserError(f"{self.place}, field '{name}': {why}{shown}")

    def text(self, *names: str) -> str:
        """The text (or number) of the first field of these names that is there and not empty."""
        for name in names:
            value = self.data.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
        for name in names:
            if self.data.get(name) is not None:
                raise self.error(name, "expected text")
        raise self.error(names[0], "missing or empty")

    def maybe(self, *names: str) -> str | None:
        """`text`, or None where no such field is there or all are empty."""
        for name in names:
            value = self.data.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
                return str(value).strip()
        return None

    def seconds(self, name: str) -> float | None:
        """A time in seconds; None where it is null or not there."""
        value = self.data.get(name)
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self.error(name, "expected seconds") from None

    def inner(self, where: str, data: Any) -> Entry:
        """A part of this entry as an entry of its own."""
        part = Entry(self.file, self.number, data, f"{self.inside}.{where}" if self.inside else where)
        if not isinstance(data, Mapping):
            raise UserError(f"{part.place}: expected an object")
        return part

    def options(self, name: str) -> dict[str, str]:
        """Options by their published letter; null and empty ones are left out.

        Taken as an object by letter, a list with or without letters before the texts, or text that spells
        either (as Parquet exports do).
        """
        value = self.data.get(name)
        if isinstance(value, str):
            value = _spelled(value)
        if value is None or value == "":
            return {}
        if isinstance(value, Mapping):
            found = {str(letter).strip(" .():").upper(): text for letter, text in value.items()}
            if len(found) < len(value) or any(len(letter) != 1 or not letter.isupper() for letter in found):
                raise self.error(name, "options must be keyed by letters")
            pairs = sorted(found.items())
        elif isinstance(value, Sequence):
            pairs = list(zip(string.ascii_uppercase, value, strict=False))
            if len(value) > MAX_OPTIONS:
                raise self.error(name, f"more than {MAX_OPTIONS} options")
        else:
            raise self.error(name, "expected options")
        texts = {letter: str(text).strip() for letter, text in pairs if text is not None and str(text).strip()}
        marks = {letter: re.match(rf"\(?{letter}[.):]\s*(?=\S)", text) for letter, text in texts.items()}
        if sum(mark is not None for mark in marks.values()) >= 2:  # once may be chance: "A. Smith"
            texts = {letter: text[mark.end() :] if (mark := marks[letter]) else text for letter, text in texts.items()}
        return distinct(texts)

    def letter(self, name: str, options: Mapping[str, str], by_text: bool = False) -> str:
        """The true option's published letter.

        Args:
            name: the field, which holds the letter, with or without text behind it, or an option's text.
            options: by published letter.
            by_text: the field holds the text; a letter is tried second.
        """
        value = self.text(name)
        marked = re.match(r"[(\[]?([A-Za-z])(?:[)\].:,;]|\s*$|\s+[(\-–—:])", value)
        wanted = folded(value)
        same = [letter for letter, text in options.items() if folded(text) == wanted]
        loose = re.match(r"([A-Z])\b", value)
        tried = [marked and marked[1].upper(), same[0] if same else None, loose and loose[1]]
        for letter in [tried[1], tried[0], tried[2]] if by_text else tried:
            if letter in options:
                return str(letter)
        raise self.error(name, f"is none of the options {', '.join(options) or '(there are none)'}")

    def sample(self, **values: Any) -> Sample:
        """A `Sample`, with its mistakes named by file and row."""
        try:
            return Sample.model_validate({"split": "test", **values})
        except ValidationError as error:
            raise UserError(f"{self.place}: {describe(error, Sample)}") from None


def _spelled(text: str) -> Any:
    """Options written as text: JSON, a Python list, or one per line."""
    if text.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [line for line in text.splitlines() if line.strip()] or None


def distinct(texts: Mapping[str, str]) -> dict[str, str]:
    """The same options, those of equal text told apart by spaces at the end (CG-Bench has some)."""
    taken: set[str] = set()
    found = {}
    for letter, text in texts.items():
        while text in taken:
            text += " "
        taken.add(text)
        found[letter] = text
    return found


def folded(text: str) -> str:
    """A text without what does not tell options apart."""
    return " ".join(text.split()).rstrip(".").casefold()


def entries(path: Path, name: str) -> Iterator[Entry]:
    """The rows of a ``.json`` (a list, or an object, which is one row), ``.jsonl`` or ``.parquet`` file.

    Raises:
        UserError: it is not readable as what its name says.
    """
    suffix = path.suffix.lower()
    rows: Iterable[Any]
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path, use_threads=False).to_pylist()
        elif suffix in (".jsonl", ".ndjson"):
            rows = _lines(path, name)
        else:
            data = json.loads(path.read_bytes().decode("utf-8-sig"))
            rows = data if isinstance(data, list) else [data]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise UserError(f"{name}, row {number}: expected an object, got {type(row).__name__}")
            yield Entry(name, number, row)
    except RecursionError:
        raise UserError(f"{name}: nested too deeply") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # JSON, UTF-8 and Arrow errors
        raise UserError(f"{name}: not readable as {suffix[1:]} ({str(error).splitlines()[0][:200]})") from None


def _lines(path: Path, name: str) -> Iterator[Any]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{name}, row {number}: longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise UserError(f"{name}, row {number}: not JSON ({error})") from None


def choice(
    entry: Entry,
    videos: Sequence[str],
    *,
    identity: str,
    question: str,
    options: Mapping[str, str],
    answer: str,
    kind: str | None,
    groups: Mapping[str, str | None] | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    evidence: Sequence[Mapping[str, Any]] = (),
    captioned: bool = True,
) -> Question:
    """A multiple-choice question.

    Args:
        entry: for messages.
        videos: see `Question`.
        identity: id of the question.
        options: by published letter; they are asked as A, B, C … whichever of them were left out.
        answer: published letter of the true one.
        kind: the breakdown that the benchmark reports first.
        groups: further breakdowns, by name.
        start_s, end_s: the part of the video that is shown, in seconds.
        evidence: parts of the video that the answer rests on (fields of `Evidence`).
        captioned: whether their captions say what is seen there.
    """
    letters = list(options)
    if len(letters) < 2:
        raise UserError(f"{entry.place}: a choice between {len(letters)} options")
    sample = entry.sample(
        id=identity,
        media=_media(videos, start_s, end_s),
        question=question,
        options=tuple(options.values()),
        problem_type="multiple_choice",
        answer=string.ascii_uppercase[letters.index(answer)],
        evidence=tuple(evidence),
        metadata=_metadata(kind, groups) | ({} if captioned else {"captioned": False}),
    )
    return Question(sample, tuple(videos))


def open_answer(
    entry: Entry,
    videos: Sequence[str],
    *,
    identity: str,
    question: str,
    answer: str,
    kind: str | None,
    groups: Mapping[str, str | None] | None = None,
    problem_type: str | None = None,
    rule: str | None = None,
) -> Question:
    """A question that is answered in words or with a number.

    Args:
        problem_type: None: ``numerical`` where the answer is a number, else ``free_form``.
        rule: name of the benchmark's own rule, for its ``grade``.
    """
    if problem_type is None:
        problem_type = "numerical" if re.fullmatch(r"-?[0-9][0-9,]*(\.[0-9]+)?", answer) else "free_form"
    sample = entry.sample(
        id=identity,
        media=_media(videos, None, None),
        question=question,
        problem_type=problem_type,
        answer=answer,
        metadata=_metadata(kind, groups) | ({"rule": rule} if rule else {}),
    )
    return Question(sample, tuple(videos))


def _media(videos: Sequence[str], start_s: float | None, end_s: float | None) -> dict[str, Any]:
    return {"kind": "video", "uri": videos[0], "start_s": start_s, "end_s": end_s}


def _metadata(kind: str | None, groups: Mapping[str, str | None] | None) -> dict[str, Any]:
    named = {name: value for name, value in (groups or {}).items() if value is not None}
    return {**({"kind": kind} if kind else {}), **({"groups": named} if named else {})}
