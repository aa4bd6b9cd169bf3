"""A published set, and what the rows of its annotation files ask."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...common.config import describe
from ...common.errors import UserError
from ...common.rows.files import RowError, numbered_objects
from ...common.rows.sample import Sample
from ..metrics import Rule
from ..scores import Score

MAX_OPTIONS = 26


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a published row asks it, before its video has been looked for."""

    sample: Sample  # ``media.uri`` is the first of ``videos``
    videos: tuple[str, ...]  # where the published layout may have the video, the likeliest place first


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of an annotation file, and where it stands."""

    file: str
    number: int  # row, from 1
    data: Mapping[str, Any]
    inside: str = ""  # where in the row, for entries that are part of one

    @property
    def place(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.number}" + (f", {self.inside}" if self.inside else "")

    def error(self, name: str, why: str) -> UserError:
        """The mistake of one field."""
        shown = f", found {str(self.data[name])[:60]!r}" if name in self.data else ""
        return UserError(f"{self.place}, field '{name}': {why}{shown}")

    def maybe(self, *names: str) -> str | None:
        """The text (or number) of the first field of these names that is there and not empty; None: no such."""
        values = (self.data.get(name) for name in names)
        texts = (str(v).strip() for v in values if isinstance(v, str | int | float) and not isinstance(v, bool))
        return next(filter(None, texts), None)

    def text(self, *names: str) -> str:
        """`maybe` of fields of which one has to be there."""
        text = self.maybe(*names)
        if text is None:
            wrong = [name for name in names if self.data.get(name) is not None]
            raise self.error(wrong[0], "expected text") if wrong else self.error(names[0], "missing or empty")
        return text

    def seconds(self, name: str) -> float | None:
        """A time in seconds; None where it is null or not there."""
        value = self.data.get(name)
        try:
            return None if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            raise self.error(name, "expected seconds") from None

    def inner(self, where: str, data: Any) -> Entry:
        """A part of this entry as an entry of its own."""
        part = Entry(self.file, self.number, data, f"{self.inside}.{where}" if self.inside else where)
        if not isinstance(data, Mapping):
            raise UserError(f"{part.place}: expected an object")
        return part

    def options(self, name: str) -> dict[str, str]:
        """Options by their published letter; null and empty ones are left out. Taken as an object by letter, a list
        with or without letters before the texts, or text that spells either (as Parquet exports do)."""
        value = self.data.get(name)
        if isinstance(value, str):
            value = spelled(value)
        if value is None or value == "":
            return {}
        if isinstance(value, Mapping):
            lettered = {str(letter).strip(" .():").upper(): text for letter, text in value.items()}
            if len(lettered) < len(value) or any(len(letter) != 1 or not letter.isupper() for letter in lettered):
                raise self.error(name, "options must be keyed by letters")
            pairs = sorted(lettered.items())
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
        """The published letter of the true one of ``options`` (by letter). The field holds the letter, with or without
        text behind it, or an option's text (``by_text``: that is tried first)."""
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

    def choice(self, options: str, answer: str, by_text: bool = False) -> dict[str, Any]:
        """`options` and `letter` of these fields, for `question`."""
        texts = self.options(options)
        return {"options": texts, "answer": self.letter(answer, texts, by_text)}

    def question(
        self,
        videos: Sequence[str],
        *,
        identity: str,
        text: str,
        answer: str,
        options: Mapping[str, str] | None = None,
        least_options: int = 2,
        problem_type: str | None = None,
        kind: str | None = None,
        groups: Mapping[str, str | None] | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        evidence: Sequence[Mapping[str, Any]] = (),
        **metadata: Any,
    ) -> Question:
        """What the entry asks: a choice where there are options, else an answer in words or with a number.

        Args:
            videos: see `Question`.
            identity: id of the question.
            text: the question.
            answer: the true one; of a choice its published letter.
            options: by published letter; they are asked as A, B, C … whichever of them were left out.
            least_options: fewer are a mistake.
            problem_type: of a question without options; None: ``numerical`` or ``free_form``, as the answer is.
            kind: the breakdown that the benchmark reports first.
            groups: further breakdowns, by name.
            start_s, end_s: the part of the video that is shown, in seconds.
            evidence: parts of the video that the answer rests on (fields of `Evidence`).
            metadata: ``captioned=False`` where captions of evidence do not say what is seen there; ``rule``, the name
                of the benchmark's own rule, for its ``grade``.

        Raises:
            UserError: a mistake, with file and row."""
        if options:
            letters = list(options)
            if len(letters) < least_options:
                raise UserError(f"{self.place}: a choice between {len(letters)} options")
            problem_type, answer = "multiple_choice", string.ascii_uppercase[letters.index(answer)]
        elif problem_type is None:
            problem_type = "numerical" if re.fullmatch(r"-?[0-9][0-9,]*(\.[0-9]+)?", answer) else "free_form"
        named = {name: value for name, value in (groups or {}).items() if value is not None}
        fields = {
            "split": "test",
            "id": identity,
            "media": {"kind": "video", "uri": videos[0], "start_s": start_s, "end_s": end_s},
            "question": text,
            "options": tuple((options or {}).values()),
            "problem_type": problem_type,
            "answer": answer,
            "evidence": tuple(evidence),
            "metadata": ({"kind": kind} if kind else {}) | ({"groups": named} if named else {}) | metadata,
        }
        try:
            return Question(Sample.model_validate(fields, context={"least_options": least_options}), tuple(videos))
        except ValidationError as error:
            raise UserError(f"{self.place}: {describe(error, Sample)}") from None


def spelled(text: str) -> Any:
    """Options (or answers) written as text: JSON, a Python list, or one per line."""
    if text.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [line for line in text.splitlines() if line.strip()] or None


def distinct(texts: Mapping[str, str]) -> dict[str, str]:
    """The same options, those of equal text told apart by spaces at the end (CG-Bench has some)."""
    told_apart: dict[str, str] = {}
    for letter, text in texts.items():
        while text in told_apart.values():
            text += " "
        told_apart[letter] = text
    return told_apart


def folded(text: str) -> str:
    """A text without what does not tell options apart."""
    return " ".join(text.split()).rstrip(".").casefold()


def entries(path: Path, name: str) -> Iterator[Entry]:
    """The rows of a ``.json`` (a list, or an object, which is one row), ``.jsonl`` or ``.parquet`` file; of a ``.txt``
    file its lines, as ``line``.

    Raises `UserError`: it is not readable as what its name says."""
    suffix = path.suffix.lower()
    rows: Iterable[Any]
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path, use_threads=False).to_pylist()
        elif suffix in (".jsonl", ".ndjson"):
            rows = (row for _, row in numbered_objects(path))
        elif suffix == ".txt":
            rows = [{"line": line} for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        else:
            data = json.loads(path.read_bytes().decode("utf-8-sig"))
            rows = data if isinstance(data, list) else [data]
        for number, row in enumerate(rows, 1):
            if isinstance(row, RowError):
                raise UserError(f"{name}, row {row.line}: {row.reason}")
            if not isinstance(row, Mapping):
                raise UserError(f"{name}, row {number}: expected an object, got {type(row).__name__}")
            yield Entry(name, number, row)
    except RecursionError:
        raise UserError(f"{name}: nested too deeply") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # JSON, UTF-8 and Arrow errors
        raise UserError(f"{name}: not readable as {suffix[1:]} ({str(error).splitlines()[0][:200]})") from None


Reader = Callable[[Entry], Iterator[Question]]  # the questions of one entry of an annotation file


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set: its files, its questions, its scores."""

    name: str  # as on the command line
    title: str
    asks: str  # what is asked, in one line
    source: str  # paper, and what its format and scores were read from
    hub: str = ""  # data set on the hub, for ``--data hub``
    files: tuple[tuple[str, ...], ...] = ()
    """Names of annotation files: the first alternative of which something is there is read, whole."""
    read: Reader = lambda entry: iter(())
    scores: Mapping[str, Score]  # what is reported, the headline first
    traps: tuple[str, ...] = ()  # what makes two numbers of this name incomparable
    grade: Rule | None = None
    """Grades an answer where the rules of `common.answers` are not the benchmark's (those with ``metadata.rule``)."""

    official: Callable[[Sample, str], dict[str, float]] | None = None
    """Its published rule: what a whole response is worth, by metric (`official.py`)."""
    metric_of: Callable[[str], str] = lambda group: "accuracy"  # the metric of a kind of question, or of a problem type

    @property
    def headline(self) -> str:
        """The score that stands for the benchmark."""
        return next(iter(self.scores))


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a benchmark that are asked."""

    benchmark: Benchmark
    samples: Sequence[Sample]  # ``media.uri`` is the video's name in its folder
    missing: Mapping[str, str]  # why there is no video, by question id: these count as wrong
    files: Mapping[str, str]  # SHA-256 of the annotation files that they were read from, by name
