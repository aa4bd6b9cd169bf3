"""Rows as other people publish them: files of several kinds, and an adapter per data set into `Sample`.

A format is a few lines: how its first row is recognised, how a row becomes samples, and how samples become its rows.
What is seen in the wild is tolerated where it has one meaning (blank ``data_source``, options with or without letters,
"A." for "A", "1,000"); what cannot be right is a `RowError` with its line. Files are read row by row, whatever their
size.

Formats of the data sets: arXiv 2503.21776 (Video-R1), arXiv 2510.23473 (Video-Thinker), and VRBench's published rows.
"""

from __future__ import annotations

import codecs
import csv
import json
import posixpath
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..common.answers import extract_letter, format_span, parse_response, parse_spans
from ..common.samples import (
    MAX_LINE_BYTES,
    RowError,
    Sample,
    SamplesError,
    numbered_objects,
    parse_row,
    raw_text,
    refuse_constant,
    to_line,
)
from ..common.storage import Storage, split_uri

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
"""Kinds of files that rows come in."""
HUB = "hf://"
_CHUNK_CHARACTERS = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class FormatError(ValueError):
    """A source that no adapter fits; one line for a person."""


class _BadRowError(ValueError):
    """What is wrong with a row."""


_WRONG = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What an adapter raises on a row that is not what it should be."""


# ------------------------------------------------------------------------------------------------- where the rows are


@dataclass(frozen=True)
class Source:
    """A file of rows, brought to this machine."""

    name: str
    """As it was given."""
    path: Path
    """Here."""
    base: str
    """What relative media count from: a folder, ``s3://…/`` or ``hf://…/``."""


def open_source(name: str, storage: Storage | None, folder: Path) -> Source:
    """Find the rows, and fetch them to ``folder`` where they are in a store or on the hub.

    Raises:
        FormatError: there is no such file, or it cannot be fetched.
        StorageError: the store cannot be reached.
    """
    if name.startswith("s3://"):
        if storage is None:
            raise FormatError(f"{name} is in a store; say which one (storage section, AWS_ENDPOINT_URL_S3)")
        path = folder / posixpath.basename(name)
        storage.download_file(name, path)
        return Source(name, path, posixpath.dirname(name) + "/")
    if name.startswith(HUB):
        return Source(name, fetch_from_hub(name), posixpath.dirname(name) + "/")
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise FormatError(f"{name}: there is no such file")
    return Source(name, path, str(path.parent))


def fetch_from_hub(uri: str) -> Path:
    """A file of a data set on the Hugging Face hub, ``hf://datasets/<owner>/<name>[@<revision>]/<path>``, in the hub's
    cache on this machine.

    Raises:
        FormatError: another kind of URI, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import hf_hub_download

    match = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/([^@]+)", uri)
    if match is None:
        raise FormatError(f"{uri}: expected hf://datasets/<owner>/<name>[@<revision>]/<file>")
    try:
        return Path(hf_hub_download(match[1], match[3], repo_type="dataset", revision=match[2]))
    except Exception as error:  # huggingface_hub raises its own, httpx's and OSError
        lines = str(error).strip().splitlines()
        raise FormatError(
            f"{uri}: cannot be fetched from the hub ({lines[0][:150] if lines else type(error).__name__}); "
            "see HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE"
        ) from None


def resolve_uri(uri: str, base: str) -> str:
    """The full path, ``s3://`` or ``hf://`` URI of a row's media; relative ones count from ``base``, where the rows
    are.

    Raises:
        ValueError: another scheme, or a path that leaves the bucket or the repository.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme in ("s3", "hf"):
        return uri
    if separator and scheme == "file":
        return rest
    if separator:
        raise ValueError(f"media are read from paths, s3:// and hf://, not from {scheme}://")
    if posixpath.isabs(uri):
        return uri
    scheme, separator, _ = base.partition("://")
    if not separator:
        return posixpath.normpath(posixpath.join(base, uri))
    top = f"s3://{split_uri(base)[0]}" if scheme == "s3" else "/".join(base.split("/")[:5])
    path = posixpath.normpath(posixpath.join(base.removeprefix(top).strip("/"), uri))
    if path.startswith(".."):
        raise ValueError(f"{uri} leaves {'the bucket ' if scheme == 's3' else ''}{top}")
    return f"{top}/{path}"


# ----------------------------------------------------------------------------------------------------- files of objects


def read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file as Python values (a `RowError` for one that cannot be read), each with its line (the row's
    number in Parquet), from 1.

    Raises:
        SamplesError: missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SamplesError(f"{path}: rows come as {', '.join(SUFFIXES)}, not as '{suffix}'")
    if suffix in (".csv", ".tsv"):
        return _from_table(path, "," if suffix == ".csv" else "\t")
    if suffix == ".json":
        with path.open("rb") as file:
            if file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                return _from_list(path)
        return _lines_of(path)
    return numbered_objects(path)


def _lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        yield from numbered_objects(file)


def _from_list(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _List(path, file)


class _List:
    """The objects of one JSON list, read piece by piece: the list is never in memory as a whole."""

    def __init__(self, path: Path, file: IO[str]):
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._buffer, self._position, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            self._expect("[")
            if self._next() == "]":
                self._skip(1)
            else:
                while True:
                    self._next()
                    yield self._line, self._value()
                    if self._next() == "]":
                        break
                    self._expect(",")
                self._skip(1)
            if self._next():
                raise self._error("there is something behind the end of the list")
        except UnicodeDecodeError:
            raise self._error("not UTF-8") from None
        except RecursionError:
            raise self._error("nested too deeply") from None

    def _error(self, reason: str) -> SamplesError:
        return SamplesError(f"{self._path}:{self._line}: {reason}; a JSON list cannot be read beyond a mistake")

    def _more(self) -> bool:
        """Read on; what has been used goes."""
        rest = self._buffer[self._position :]
        piece = self._file.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._position = rest + piece, 0
        return bool(piece)

    def _skip(self, count: int) -> None:
        end = self._position + count
        self._line += self._buffer.count("\n", self._position, end)
        self._position = end

    def _next(self) -> str:
        """The next character that is no white space, which stays; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            self._skip(len(space[0]) if space else 0)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        found = self._next()
        if found != character:
            raise self._error(f"expected '{character}', found " + (f"'{found}'" if found else "the end of the file"))
        self._skip(1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
                if end < len(self._buffer):  # else it may be the beginning of a longer number
                    self._skip(end - self._position)
                    return value
                reason = "the list is not closed"
            except json.JSONDecodeError as error:
                reason = error.msg
            except ValueError as error:
                raise self._error(str(error)) from None
            if len(self._buffer) - self._position > MAX_LINE_BYTES:
                raise self._error(f"not JSON ({reason}), or a row of more than {MAX_LINE_BYTES} characters")
            if not self._more():
                raise self._error(f"not JSON ({reason})")


_NESTED = ("media", "options", "evidence", "metadata")
"""Columns of a table whose cells are JSON."""


def _from_table(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise SamplesError(f"{path}:{line}: not a readable table ({error})") from None
            if None in cells or None in cells.values():
                yield line, RowError(line, f"{reader.line_num} cells do not fit the header", raw_text(cells))
                continue
            row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
            try:
                row |= {name: json.loads(row[name], parse_constant=refuse_constant) for name in _NESTED if name in row}
            except (ValueError, RecursionError):
                yield line, RowError(line, f"one of the cells {', '.join(_NESTED)} is not JSON", raw_text(cells))
                continue
            yield line, row


# -------------------------------------------------------------------------------------------------------- the adapters


@dataclass(frozen=True)
class Format:
    """How a data set writes its rows."""

    name: str
    """Its name, for ``--format`` and ``data.format``."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a row looks like one of it."""
    read: Callable[[Mapping[str, Any], int], Iterable[Mapping[str, Any] | Exception]]
    """The samples of a row, as mappings (number of the row → ids where the format has none). Raises, or yields for one
    of several, a `ValueError` that says what is wrong."""
    write: Callable[[Iterable[Sample]], Iterator[dict[str, Any]]]
    """The rows of samples; what the format has no field for is lost."""
    unique_ids: bool = False
    """Whether an id that occurs twice is a mistake; else it gets its line, because it only counts rows."""


def format_named(name: str) -> Format:
    """The format called ``name``.

    Raises:
        FormatError: naming those there are.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise FormatError(f"unknown format '{name}'; there are: {', '.join(FORMATS)}") from None


def recognise(row: Any) -> Format | None:
    """The format that a row is written in; None where none fits."""
    return next((f for f in FORMATS.values() if isinstance(row, Mapping) and f.fits(row)), None)


@dataclass
class SourceRows:
    """The rows of a file as samples, read once."""

    path: Path
    format: Format
    roots: Mapping[str, str]
    """Folder or prefix that relative media paths of a source count from; ``*``: of every other source."""
    _objects: Iterator[tuple[int, Any]]

    def __iter__(self) -> Iterator[tuple[int, Sample | RowError]]:
        for number, (line, value) in enumerate(self._objects, 1):
            if isinstance(value, RowError):
                yield line, value
                continue
            for sample in self._samples(value, line, number):
                yield line, sample

    def _samples(self, value: Any, line: int, number: int) -> Iterator[Sample | RowError]:
        if not isinstance(value, Mapping):
            yield RowError(line, f"expected an object, got {type(value).__name__}", raw_text(value))
            return
        try:
            for row in self.format.read(value, number):
                if isinstance(row, Exception):
                    yield self._error(row, value, line)
                    continue
                sample = parse_row(row, line)
                if isinstance(sample, RowError):
                    sample = RowError(line, sample.reason, raw_text(value))
                yield self._rooted(sample) if isinstance(sample, Sample) else sample
        except _WRONG as error:
            yield self._error(error, value, line)

    def _error(self, error: Exception, value: Any, line: int) -> RowError:
        reason = str(error) if isinstance(error, ValueError) else f"not a row of {self.format.name} ({error!r})"
        return RowError(line, " ".join(reason.split())[:200], raw_text(value))

    def _rooted(self, sample: Sample) -> Sample:
        uri = sample.media.uri
        root = self.roots.get(sample.source, self.roots.get("*"))
        if root is None or "://" in uri or posixpath.isabs(uri):
            return sample
        return sample.model_copy(update={"media": sample.media.model_copy(update={"uri": posixpath.join(root, uri)})})


def read_rows(path: Path, format_name: str | None = None, roots: Mapping[str, str] | None = None) -> SourceRows:
    """Open a file of rows.

    Args:
        format_name: a name of `FORMATS`; None: as the first rows look.
        roots: see `SourceRows`.

    Raises:
        FormatError: the format is unknown, or none fits.
        SamplesError: the file cannot be read at all.
    """
    objects = read_objects(path)
    first: list[tuple[int, Any]] = []
    found = format_named(format_name) if format_name else None
    while found is None and len(first) < 100:
        item = next(objects, None)
        if item is None:
            break
        first.append(item)
        found = recognise(item[1])
    if found is None:
        # Bad rows alone: as our own they get their reasons.
        keys = next((sorted(value) for _, value in first if isinstance(value, Mapping)), None)
        if keys is not None and not set(keys) & {"media", "id", "question", "answer"}:
            raise FormatError(
                f"{path}: no format fits rows with the fields {', '.join(map(str, keys))[:200]}; {_KNOWN}"
            )
        found = FORMATS["vthink"]
    return SourceRows(path, found, roots or {}, chain(first, objects))


def write_rows(path: Path, samples: Iterable[Sample], format_name: str) -> int:
    """Write samples as a file of another format (JSON list, JSONL, Parquet or CSV by the file's name); their number.

    Raises:
        FormatError: unknown format, or a kind of file that is not written.
    """
    rows = format_named(format_name).write(samples)
    suffix, count = path.suffix.lower(), 0
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        records = list(rows)
        columns = dict.fromkeys(name for row in records for name in row)
        table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in records])
        pq.write_table(table, path)
        return int(table.num_rows)
    if suffix not in (".json", ".jsonl", ".csv"):
        raise FormatError(f"{path}: rows are written as .json, .jsonl, .csv or .parquet")
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            table_rows = [{k: json.dumps(v) if k in _NESTED else v for k, v in row.items()} for row in rows]
            writer = csv.DictWriter(file, sorted({name for row in table_rows for name in row}))
            writer.writeheader()
            writer.writerows(table_rows)
            return len(table_rows)
        for count, row in enumerate(rows, 1):
            text = json.dumps(row, ensure_ascii=False)
            file.write(f"{'[' if count == 1 else ','}\n{text}" if suffix == ".json" else text + "\n")
        if suffix == ".json":
            file.write("\n]\n" if count else "[]\n")
    return count


# ---------------------------------------------------------------------------------- what several formats have in common

_TYPES = {
    "multiplechoice": "multiple_choice",
    "mc": "multiple_choice",
    "mcq": "multiple_choice",
    "numerical": "numerical",
    "number": "numerical",
    "ocr": "ocr",
    "freeform": "free_form",
    "openended": "free_form",
    "regression": "regression",
}
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[.):]\s*(.*)", re.DOTALL)
_WITH_UNIT = re.compile(
    r"[$€£]?\s*([-+−]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.?\d+)?(?<=\d)(?:[eE][-+]?\d+)?)\s*(?:[%°]|[^\W\d_]{1,12}[²³]?)?\.?"
)
"""A number, perhaps with a currency before it and a unit behind."""


def problem_type_of(text: Any) -> str:
    """Our name of a problem type, however it is spelt."""
    name = re.sub(r"[\s_-]", "", str(text or "")).lower()
    if name not in _TYPES:
        raise _BadRowError(f"unknown problem_type '{str(text)[:40]}'; known: {', '.join(sorted(set(_TYPES.values())))}")
    return _TYPES[name]


def plain_options(options: Any) -> list[str]:
    """Texts of options that come as a list, with or without letters, as a mapping of letters, or as JSON text."""
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            raise _BadRowError(f"options are no list: '{options[:40]}'") from None
    if isinstance(options, Mapping):
        given = {str(letter).strip().upper(): text for letter, text in options.items() if text is not None}
        letters = list(string.ascii_uppercase[: len(given)])
        if sorted(given) != letters:
            raise _BadRowError(f"options are lettered {', '.join(sorted(given))[:60]}, not A, B, C and so on")
        options = [given[letter] for letter in letters]
    if options is None:
        return []
    if not isinstance(options, list | tuple) or not all(isinstance(o, str | int | float) for o in options):
        raise _BadRowError("options are no list of texts")
    texts = [str(option).strip() for option in options]
    lettered = [_LETTERED.fullmatch(text) for text in texts]
    if texts and all(m and m[1].upper() == letter for m, letter in zip(lettered, string.ascii_uppercase, strict=False)):
        return [match[2].strip() for match in lettered if match]
    return texts


def plain_answer(solution: Any, problem_type: str, options: Sequence[str]) -> str:
    """The answer as `Sample` has it: without tags; a letter; a number without thousands separators and unit."""
    if not isinstance(solution, str | int | float) or isinstance(solution, bool):
        raise _BadRowError(f"the answer is no text but {type(solution).__name__}")
    found = _ANSWER.findall(str(solution))
    text = (found[-1] if found else str(solution)).strip()
    if not text:
        raise _BadRowError("the answer is empty")
    if problem_type == "multiple_choice":
        return _letter(text, options)
    if problem_type in ("numerical", "regression"):
        match = _WITH_UNIT.fullmatch(text)
        if match is None:
            raise _BadRowError(f"the answer of a {problem_type} question must be a number, not '{text[:40]}'")
        return match[1].replace(",", "").replace("−", "-")
    return text


def _letter(text: str, options: Sequence[str]) -> str:
    same = [
        letter for letter, o in zip(string.ascii_uppercase, options, strict=False) if o.casefold() == text.casefold()
    ]
    letter = extract_letter(text, len(options))
    if len(same) == 1 and (letter is None or len(text) > 1):
        return same[0]
    if letter is None:
        raise _BadRowError(
            f"the answer '{text[:40]}' is neither a letter of the {len(options)} options nor one of them"
        )
    lettered = _LETTERED.fullmatch(text)
    rest = lettered[2].strip().casefold() if lettered else ""
    named = [l for l, o in zip(string.ascii_uppercase, options, strict=False) if rest and o.casefold() == rest]  # noqa: E741
    if named and letter not in named:
        raise _BadRowError(f"the answer '{text[:40]}' has the letter {letter} and the text of option {named[0]}")
    return letter


def media_kind(data_type: Any, path: str) -> str:
    """``video`` or ``image``, as the row says or, where it does not, as the file's name does."""
    kind = str(data_type or "").strip().lower()
    if kind:
        return kind
    return "image" if posixpath.splitext(path)[1].lower() in _IMAGE_SUFFIXES else "video"


def _first_folder(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return parts[0] if len(parts) > 1 else ""


# ---------------------------------------------------------------------------------------------- Video-R1, Video-Thinker

_R1_FIELDS = {"problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "data_source"}
_R1_FIELDS |= {"process"}


def _read_r1(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any]]:
    path = row["path"]
    if not isinstance(path, str) or not path.strip():
        raise _BadRowError("there is no path to a video or image")
    path = posixpath.normpath(path.strip()) if "://" not in path else path.strip()
    problem_type = problem_type_of(row["problem_type"])
    options = plain_options(row.get("options"))
    name = row.get("problem_id")
    reasoning, evidence = _trace(row.get("process"))
    yield {
        "id": f"row-{number}" if name is None or name == "" else str(name),
        "media": {"kind": media_kind(row.get("data_type"), path), "uri": path},
        "question": row["problem"],
        "options": options if problem_type == "multiple_choice" else [],
        "problem_type": problem_type,
        "answer": plain_answer(row["solution"], problem_type, options),
        "reasoning": reasoning,
        "evidence": evidence,
        "source": str(row.get("data_source") or "").strip() or _first_folder(path),
        "metadata": {key: value for key, value in row.items() if key not in _R1_FIELDS and value is not None},
    }


def _trace(process: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """Reasoning and evidence of a published trace. One ``<think>`` is taken off; a trace with segments stays as it is,
    because its order is what is learned."""
    if process is None or not str(process).strip():
        return None, []
    text = str(process).strip()
    parsed = parse_response(text)
    if parsed.segments:
        evidence = [(s.start_s, s.end_s, s.caption) for s in parsed.segments if s.caption]
        return text, [{"start_s": start, "end_s": end, "caption": caption} for start, end, caption in evidence]
    whole = re.fullmatch(r"<think>(.*)</think>", text, re.DOTALL | re.IGNORECASE)
    return (whole[1].strip() if whole and "<think>" not in whole[1] else text) or None, []


def _write_r1(samples: Iterable[Sample], with_ids: bool = True) -> Iterator[dict[str, Any]]:
    names = {"multiple_choice": "multiple choice", "free_form": "free-form", "ocr": "OCR"}
    for sample in samples:
        reasoning = sample.reasoning
        if reasoning is not None and not parse_response(reasoning).segments:
            reasoning = f"<think>{reasoning}</think>"
        yield {
            **({"problem_id": int(sample.id) if sample.id.isdecimal() else sample.id} if with_ids else {}),
            "problem": sample.question,
            "data_type": sample.media.kind,
            "problem_type": names.get(sample.problem_type, sample.problem_type),
            "options": [f"{a}. {o}" for a, o in zip(string.ascii_uppercase, sample.options, strict=False)],
            "solution": f"<answer>{sample.answer}</answer>",
            "path": sample.media.uri if posixpath.isabs(sample.media.uri) else f"./{sample.media.uri}",
            "data_source": sample.source,
            **({"process": reasoning} if reasoning is not None else {}),
            **sample.metadata,
        }


# -------------------------------------------------------------------------------------------------------------- VRBench

_STEP = re.compile(r"\s*\[([0-9:.]+)\s*->\s*([0-9:.]+)\]\s*\.?\s*$")


def _read_vrbench(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any] | Exception]:
    for name, question in row["mcq"].items():
        try:
            yield _vrbench_question(row, name, question)
        except _WRONG as error:
            yield _BadRowError(f"{name}: {error if isinstance(error, ValueError) else repr(error)}")


def _vrbench_question(row: Mapping[str, Any], name: str, question: Mapping[str, Any]) -> dict[str, Any]:
    options = plain_options(question["options"])
    steps, evidence = [], []
    numbered = sorted((question.get("reasoning_process") or {}).items(), key=lambda item: (len(item[0]), item[0]))
    for _, step in numbered:
        span = _STEP.search(step)
        times = parse_spans(f"{span[1]}-{span[2]}") if span else []
        text = step[: span.start()].strip() if span else step.strip()
        steps.append(text)
        evidence += [{"start_s": start, "end_s": end, "caption": text} for start, end in times if text]
    return {
        "id": f"{row['video_id']}-{name}",
        "media": {"kind": "video", "uri": posixpath.normpath(row["video_path"])},
        "question": question["question"],
        "options": options,
        "problem_type": "multiple_choice",
        "answer": plain_answer(question["answer"], "multiple_choice", options),
        "reasoning": "\n".join(steps) or None,
        "evidence": evidence,
        "source": "VRBench",
        "split": "test",
        "metadata": {"kind": question.get("reasoning_type") or "", "video_id": row["video_id"]},
    }


def _write_vrbench(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    videos: dict[str, dict[str, Any]] = {}
    for sample in samples:
        video = str(sample.metadata["video_id"])
        row = videos.setdefault(video, {"video_id": video, "video_path": sample.media.uri, "mcq": {}})
        steps = {e.caption: format_vrbench_span(e.start_s, e.end_s) for e in sample.evidence}
        texts = (sample.reasoning or "").splitlines()
        row["mcq"][sample.id.removeprefix(f"{video}-")] = {
            "question": sample.question,
            "options": dict(zip(string.ascii_uppercase, sample.options, strict=False)),
            "answer": sample.answer,
            "reasoning_process": {str(n): f"{text} {steps.get(text, '')}".strip() for n, text in enumerate(texts, 1)},
            "reasoning_type": sample.metadata["kind"],
        }
    yield from videos.values()


def format_vrbench_span(start_s: float, end_s: float) -> str:
    """``[00:07:44->00:08:28]``."""
    start, _, end = format_span(int(start_s) + 3600, int(end_s) + 3600).partition("-")
    hours = [f"{int(point[:2]) - 1:02d}{point[2:]}" for point in (start, end)]
    return f"[{hours[0]}->{hours[1]}]"


# --------------------------------------------------------------------------------------------------------- a user's own

_PLAIN = {"id", "video", "image", "path", "question", "options", "problem_type", "answer", "start_s", "end_s"}
_PLAIN |= {"reasoning", "evidence", "source", "split"}


def _read_plain(row: Mapping[str, Any], number: int) -> Iterator[Mapping[str, Any]]:
    row = {key: value for key, value in row.items() if value is not None and value != ""}
    places = [key for key in ("video", "image", "path") if key in row]
    if len(places) != 1:
        raise _BadRowError("a row needs exactly one of video, image and path")
    path = str(row[places[0]]).strip()
    kind = media_kind(None, path) if places == ["path"] else places[0]
    options = plain_options(row.get("options"))
    problem_type = problem_type_of(row.get("problem_type", "multiple_choice" if options else "free_form"))
    part = {key: float(row[key]) for key in ("start_s", "end_s") if key in row and _is_number(row[key], key)}
    known: dict[str, Any] = {key: row[key] for key in ("reasoning", "evidence", "source", "split") if key in row}
    yield {
        "id": str(row.get("id", f"row-{number}")),
        "media": {"kind": kind, "uri": path, **part},
        "question": row["question"],
        "options": options,
        "problem_type": problem_type,
        "answer": plain_answer(row["answer"], problem_type, options),
        **known,
        "metadata": {key: value for key, value in row.items() if key not in _PLAIN and key != "metadata"}
        | dict(row.get("metadata", {})),
    }


def _is_number(value: Any, name: str) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        raise _BadRowError(f"{name} is no number: '{str(value)[:40]}'") from None
    return True


def _write_plain(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        row = json.loads(to_line(sample))
        media = row.pop("media")
        yield {**row, media["kind"]: media["uri"], **{k: media[k] for k in ("start_s", "end_s") if k in media}}


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "vthink",
            fits=lambda row: "media" in row and "question" in row,
            read=lambda row, _: [row],
            write=lambda samples: (json.loads(to_line(sample)) for sample in samples),
            unique_ids=True,
        ),
        # Video-R1-260k and Video-R1-COT-165k (which adds `process`).
        Format("video_r1", fits=lambda row: {"problem_id", "solution"} <= set(row), read=_read_r1, write=_write_r1),
        # Video-Thinker-10K: the same fields without an id; `process` holds segments.
        Format(
            "video_thinker",
            fits=lambda row: {"problem", "solution"} <= set(row),
            read=_read_r1,
            write=lambda samples: _write_r1(samples, with_ids=False),
        ),
        Format("vrbench", fits=lambda row: {"mcq", "video_path"} <= set(row), read=_read_vrbench, write=_write_vrbench),
        Format(
            "plain",
            fits=lambda row: "question" in row and bool({"video", "image", "path"} & set(row)),
            read=_read_plain,
            write=_write_plain,
            unique_ids=True,
        ),
    )
}
"""Formats by name, in the order in which they are tried."""
_KNOWN = f"known formats: {', '.join(FORMATS)} (--format)"
