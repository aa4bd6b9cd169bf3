"""Public benchmarks: adapters from their published files to `Sample`, and the scores that each one reports.

An adapter tolerates what the published files really hold (letters missing before options, options that are
null, answers with text behind the letter) and refuses everything else with file, row and field: a file that is
read halfway would be another benchmark under the same name. What each benchmark asks, how its scores are
defined and which traps it has stands in README.md beside this file. Nothing here needs torch.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from ..common import answers as graders
from ..common.config import Section, describe
from ..common.samples import MAX_LINE_BYTES, RowError, Sample, parse_row
from ..common.storage import sha256_file
from .measures import Row, Score

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_OPTIONS = 26
CUT_ALREADY = "_segment"
"""Ending of folders (of lmms-eval's copy of MVBench) whose videos are the parts that are asked about."""


class BenchmarkError(ValueError):
    """A benchmark that cannot be read, in one line: which file, row and field, and what to do."""


# -- what a benchmark is -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a published row asks it, before its video has been looked for."""

    sample: Sample
    """``media.uri`` is the first of ``videos``."""
    videos: tuple[str, ...]
    """Where the published layout may have the video, the likeliest place first."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set: its files, its questions, its scores."""

    name: str
    """As on the command line."""
    title: str
    asks: str
    """What is asked, in one line."""
    source: str
    """Paper, and what its format and scores were read from."""
    hub: str = ""
    """Data set on the hub, for ``--data hub``."""
    files: tuple[tuple[str, ...], ...]
    """Names of annotation files: the first alternative of which something is there is read, whole."""
    read: Callable[[Entry], Iterator[Question]]
    """The questions of one entry of an annotation file."""
    scores: Mapping[str, Score]
    """What is reported, the headline first."""
    traps: tuple[str, ...] = ()
    """What makes two numbers of this name incomparable."""
    grade: Callable[[Sample, str | None], float] | None = None
    """Grades an answer where the rules of `common.answers` are not the benchmark's (``metadata.rule`` set)."""

    @property
    def headline(self) -> str:
        """The score that stands for the benchmark."""
        return next(iter(self.scores))


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """The questions of a benchmark in a folder."""

    benchmark: Benchmark
    samples: list[Sample]
    """``media.uri`` is the video's name in the folder."""
    missing: dict[str, str]
    """Why there is no video, by question id: these count as wrong."""
    files: dict[str, str]
    """SHA-256 of the annotation files that were read, by name."""


# -- folders -------------------------------------------------------------------------------------------------


class DataFolder:
    """The names below a folder, and the ways in which people lay out the same videos."""

    def __init__(self, where: str, names: Iterable[str]) -> None:
        """Args: ``where``: for messages; ``names``: relative, with ``/`` between parts."""
        self.where = where
        self.names = sorted(names)
        videos = [name for name in self.names if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
        images = [name for name in self.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        self._known = {*videos, *images}
        self._by_stem: dict[str, list[str]] = {}
        for name in videos:
            self._by_stem.setdefault(_stem(name).rpartition("/")[2], []).append(name)

    def annotations(self, alternatives: Sequence[Sequence[str]]) -> list[str]:
        """The annotation files of the first alternative that is there, wherever in the folder they lie.

        Raises:
            BenchmarkError: there is none.
        """
        for patterns in alternatives:
            found = [name for name in self.names if any(PurePosixPath(name).match(p) for p in patterns)]
            if found:
                return found
        wanted = " or ".join(dict.fromkeys(patterns[0] for patterns in alternatives))
        raise BenchmarkError(f"{self.where}: no annotation file; expected {wanted} (as published) somewhere in it")

    def video(self, candidates: Sequence[str]) -> str | None:
        """The video's (or, as it stands, an image's) name in the folder, or None.

        Tried in turn: the candidates as they stand, below other folders, with another ending. A file that only
        shares its last name with a candidate is another video, and a name that several files have is nobody's.
        """
        for candidate in candidates:
            if candidate in self._known:
                return candidate
        for candidate in candidates:
            stem = _stem(candidate)
            alike = [
                name
                for name in self._by_stem.get(stem.rpartition("/")[2], [])
                if f"/{_stem(name)}".endswith(f"/{stem}")
            ]
            same = [name for name in alike if name.endswith(candidate)]
            for found in (same, alike):
                if len(found) == 1:
                    return found[0]
        return None


def _stem(name: str) -> str:
    """A video's name without its ending; a dot that begins no ending of a video belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else str(path)


def load(benchmark: Benchmark, folder: DataFolder, local: Callable[[str], Path]) -> BenchmarkSet:
    """Read a benchmark's annotation files and find its videos.

    Args:
        benchmark: whose.
        folder: what is there.
        local: gives the path on this machine of a name in the folder.

    Raises:
        BenchmarkError: no annotation file, one that is not as published, or not one video.
    """
    samples: list[Sample] = []
    missing: dict[str, str] = {}
    files: dict[str, str] = {}
    seen: dict[str, int] = {}
    for name in folder.annotations(benchmark.files):
        path = local(name)
        files[name] = sha256_file(path)
        for entry in entries(path, name):
            for question in benchmark.read(entry):
                sample = question.sample
                seen[sample.id] = seen.get(sample.id, 0) + 1
                if seen[sample.id] > 1:  # published ids repeat
                    sample = sample.model_copy(update={"id": f"{sample.id}#{seen[sample.id]}"})
                found = folder.video(question.videos)
                if found is None:
                    missing[sample.id] = f"no video: none of {', '.join(question.videos[:3])} in {folder.where}"
                else:
                    changed: dict[str, Any] = {"uri": found}
                    if PurePosixPath(found).parent.name.endswith(CUT_ALREADY):
                        changed |= {"start_s": None, "end_s": None}
                    media = sample.media.model_copy(update=changed)
                    sample = sample.model_copy(update={"media": media})
                samples.append(sample)
    if not samples:
        raise BenchmarkError(f"{folder.where}: no question in {', '.join(files)}")
    if len(missing) == len(samples):
        first = next(iter(missing.values()))
        raise BenchmarkError(
            f"{folder.where}: none of the videos of {benchmark.title} is there ({first}); unpack the archives"
        )
    return BenchmarkSet(benchmark, samples, missing, files)


# -- entries of annotation files -----------------------------------------------------------------------------


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

    def error(self, name: str, why: str) -> BenchmarkError:
        """The mistake of one field."""
        shown = f", found {str(self.data[name])[:60]!r}" if name in self.data else ""
        return BenchmarkError(f"{self.place}, field '{name}': {why}{shown}")

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
            raise BenchmarkError(f"{part.place}: expected an object")
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
        return _distinct(texts)

    def letter(self, name: str, options: Mapping[str, str], by_text: bool = False) -> str:
        """The true option's published letter.

        Args:
            name: the field, which holds the letter, with or without text behind it, or an option's text.
            options: by published letter.
            by_text: the field holds the text; a letter is tried second.
        """
        value = self.text(name)
        marked = re.match(r"[(\[]?([A-Za-z])(?:[)\].:,;]|\s*$|\s+[(\-–—:])", value)
        wanted = _folded(value)
        same = [letter for letter, text in options.items() if _folded(text) == wanted]
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
            raise BenchmarkError(f"{self.place}: {describe(error, Sample)}") from None


def _spelled(text: str) -> Any:
    """Options written as text: JSON, a Python list, or one per line."""
    if text.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [line for line in text.splitlines() if line.strip()] or None


def _distinct(texts: Mapping[str, str]) -> dict[str, str]:
    """The same options, those of equal text told apart by spaces at the end (CG-Bench has some)."""
    taken: set[str] = set()
    found = {}
    for letter, text in texts.items():
        while text in taken:
            text += " "
        taken.add(text)
        found[letter] = text
    return found


def _folded(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def entries(path: Path, name: str) -> Iterator[Entry]:
    """The rows of a ``.json`` (a list, or an object, which is one row), ``.jsonl`` or ``.parquet`` file.

    Raises:
        BenchmarkError: it is not readable as what its name says.
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
                raise BenchmarkError(f"{name}, row {number}: expected an object, got {type(row).__name__}")
            yield Entry(name, number, row)
    except BenchmarkError:
        raise
    except RecursionError:
        raise BenchmarkError(f"{name}: nested too deeply") from None
    except OSError as error:
        raise BenchmarkError(f"{name}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # JSON, UTF-8 and Arrow errors
        raise BenchmarkError(f"{name}: not readable as {suffix[1:]} ({str(error).splitlines()[0][:200]})") from None


def _lines(path: Path, name: str) -> Iterator[Any]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise BenchmarkError(f"{name}, row {number}: longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8-sig"))
                except ValueError as error:
                    raise BenchmarkError(f"{name}, row {number}: not JSON ({error})") from None


# -- building blocks of adapters -----------------------------------------------------------------------------


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
        raise BenchmarkError(f"{entry.place}: a choice between {len(letters)} options")
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


def _accuracy(row: Row) -> float:
    return float(row["metrics"]["accuracy"])


def _metric(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["metrics"].get(name)


def _if_choice(row: Row) -> float | None:
    return _accuracy(row) if row["problem_type"] == "multiple_choice" else None


def _if_open(row: Row) -> float | None:
    return None if row["problem_type"] == "multiple_choice" else _accuracy(row)


def _kind(row: Row) -> tuple[str, str]:
    return str(row["kind"]), ""


ACCURACY = Score("share of questions whose option letter is right; a failed one is wrong", _accuracy)


# -- Video-Holmes --------------------------------------------------------------------------------------------


def _video_holmes(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("video ID"), entry.options("Options")
    yield choice(
        entry,
        [f"videos/{video}.mp4", f"{video}.mp4"],
        identity=f"{video}-{entry.text('Question ID')}",
        question=entry.text("Question"),
        options=options,
        answer=entry.letter("Answer", options),
        kind=entry.text("Question Type"),
    )


VIDEO_HOLMES = Benchmark(
    name="video-holmes",
    title="Video-Holmes",
    asks="clues of 270 short suspense films put together: 1,837 questions of 7 types, 6 options",
    source="arXiv 2505.21374; TencentARC/Video-Holmes",
    hub="TencentARC/Video-Holmes",
    files=(("test_Video-Holmes.json",),),
    read=_video_holmes,
    scores={"accuracy": ACCURACY},
)

# -- CG-Bench ------------------------------------------------------------------------------------------------


def _cg_bench(entry: Entry, reasoning: bool = False) -> Iterator[Question]:
    category = entry.text("sub_category")
    if reasoning and not category.endswith("Cognition"):
        return
    video, options = entry.text("video_uid"), entry.options("choices")
    clues = entry.data.get("clue_intervals")
    if not isinstance(clues, Sequence) or isinstance(clues, str):
        raise entry.error("clue_intervals", "expected a list of [start, end]")
    evidence = []
    for clue in clues:
        if not isinstance(clue, Sequence) or isinstance(clue, str) or len(clue) != 2:
            raise entry.error("clue_intervals", "expected a list of [start, end]")
        evidence.append({"start_s": clue[0], "end_s": clue[1], "caption": "(clue)"})
    yield choice(
        entry,
        [f"{video}.mp4"],
        identity=entry.text("qid"),
        question=entry.text("question"),
        options=options,
        answer=entry.letter("right_answer", options),
        kind=category,
        groups={"domain": entry.maybe("domain")},
        evidence=evidence,
        captioned=False,
    )


_CG_SCORES = {
    "accuracy": ACCURACY,
    "clue_iou": Score(
        "mean IoU of the union of clue intervals with the union of the first five segments that the response "
        "names (CG-Bench's mIoU asks for the intervals in a prompt of its own: not comparable)",
        _metric("clue_iou"),
    ),
}
_CG_TRAPS = (
    "published accuracies are with 32 to 128 frames, some with subtitles; clue accuracy shows only the clues",
    "a clue's mIoU compares unions of intervals, the papers' grounding mIoU takes the best span per truth",
)
CG_BENCH = Benchmark(
    name="cg-bench",
    title="CG-Bench",
    asks="needles in long videos: 12,129 questions on 1,219 videos (mini: 3,000), 5 to 8 options, with clue intervals",
    source="arXiv 2412.12075; CG-Bench/CG-Bench, run/utils.py",
    hub="CG-Bench/CG-Bench",
    files=(("cgbench.json",), ("cgbench_mini.json",)),
    read=_cg_bench,
    scores=_CG_SCORES,
    traps=_CG_TRAPS,
)
CG_BENCH_REASONING = Benchmark(
    name="cg-bench-reasoning",
    title="CG-Bench-Reasoning",
    asks="the questions of CG-Bench whose sub_category ends in Cognition",
    source="arXiv 2510.23473 (Video-Thinker), which does not say which questions; CG-Bench/CG-Bench",
    hub="CG-Bench/CG-Bench",
    files=CG_BENCH.files,
    read=partial(_cg_bench, reasoning=True),
    scores=_CG_SCORES,
    traps=("the choice of questions is inferred, not published", *_CG_TRAPS),
)

# -- VRBench -------------------------------------------------------------------------------------------------

_VRBENCH_STEP = re.compile(r"\[\s*([0-9:.]+)\s*-+>\s*([0-9:.]+)\s*\]")


def _vrbench(entry: Entry, summary: bool = False) -> Iterator[Question]:
    video = entry.text("video_id")
    asked = entry.data.get("mcq")
    if not isinstance(asked, Mapping) or not asked:
        raise entry.error("mcq", "expected an object of questions")
    places = [entry.text("video_path"), f"{video}.mp4"] if entry.maybe("video_path") else [f"{video}.mp4"]
    for key, value in asked.items():
        one = entry.inner(f"mcq.{key}", value)
        options = one.options("options")
        question = one.text("question")
        yield choice(
            one,
            [place.removeprefix("./").lstrip("/") for place in places],
            identity=f"{video}-{key}",
            question=f"Summary of the video: {entry.text('video_summary')}\n{question}" if summary else question,
            options=options,
            answer=one.letter("answer", options),
            kind=one.maybe("reasoning_type"),
            evidence=_vrbench_steps(one),
        )


def _vrbench_steps(entry: Entry) -> list[dict[str, Any]]:
    """The reasoning steps that name their time; some do not, and some name an impossible one."""
    steps = entry.data.get("reasoning_process")
    found = []
    for step in steps.values() if isinstance(steps, Mapping) else ():
        match = _VRBENCH_STEP.search(str(step))
        spans = graders.parse_spans(f"{match[1]}-{match[2]}") if match else []
        caption = _VRBENCH_STEP.sub("", str(step)).strip(" .")
        if spans and caption:
            found.append({"start_s": spans[0][0], "end_s": spans[0][1], "caption": caption})
    return found


_VRBENCH_TRAP = "with the video's summary in the prompt (vrbench-summary) a model need not see the video: never mix"
VRBENCH = Benchmark(
    name="vrbench",
    title="VRBench",
    asks="several steps of reasoning over long narrative videos: 4 options, with timed reasoning steps",
    source="arXiv 2506.10857; OpenGVLab/VRBench",
    hub="OpenGVLab/VRBench",
    files=(("VRBench_eval.jsonl",), ("VRBench*.jsonl",), ("vrbench*.jsonl",)),
    read=_vrbench,
    scores={"accuracy": ACCURACY, "miou": Score("see grounding in README.md", _metric("miou"))},
    traps=(_VRBENCH_TRAP, "open-ended and process ratings by a language model are not computed here"),
)
VRBENCH_SUMMARY = Benchmark(
    name="vrbench-summary",
    title="VRBench with the summary",
    asks="VRBench with the published summary of the video before the question",
    source=VRBENCH.source,
    hub="OpenGVLab/VRBench",
    files=VRBENCH.files,
    read=partial(_vrbench, summary=True),
    scores=VRBENCH.scores,
    traps=VRBENCH.traps,
)

# -- VideoMMMU -----------------------------------------------------------------------------------------------

_TRACKS = ("Perception", "Comprehension", "Adaptation")


def _videommmu(entry: Entry) -> Iterator[Question]:
    identity, options = entry.text("id"), entry.options("options")
    track = entry.maybe("track", "category", "subset")
    track = next((t for t in _TRACKS if t.lower() in (track or entry.file).lower()), None)
    if track is None:
        raise entry.error("track", f"neither the row nor the file's name says which of {', '.join(_TRACKS)} this is")
    parts = identity.split("_")
    groups = {"subject": "_".join(parts[1:-1]) or None}
    videos = [f"{identity}.mp4"]
    name = f"{track.lower()}-{identity}"
    answer = entry.data.get("answer")
    if isinstance(answer, Sequence) and not isinstance(answer, str):  # several spellings of one open answer
        entry = Entry(entry.file, entry.number, {**entry.data, "answer": next(iter(answer), None)})
    if options and "open" not in (entry.maybe("question_type") or ""):
        letter = entry.letter("answer", options)
        question = entry.text("question")
        yield choice(
            entry,
            videos,
            identity=name,
            question=question,
            options=options,
            answer=letter,
            kind=track,
            groups=groups,
        )
        return
    yield open_answer(
        entry,
        videos,
        identity=name,
        question=entry.text("question"),
        answer=entry.text("answer"),
        kind=track,
        groups=groups,
    )


VIDEOMMMU = Benchmark(
    name="videommmu",
    title="VideoMMMU",
    asks="learning from 300 lectures: 900 questions in the tracks perception, comprehension and adaptation",
    source="arXiv 2501.13826; lmms-lab/VideoMMMU, lmms-eval tasks/videommmu",
    hub="lmms-lab/VideoMMMU",
    files=(
        tuple(f"{t}{end}" for t in _TRACKS for end in ("/*.parquet", ".parquet", ".jsonl", ".json")),
        ("*videommmu*.json", "*VideoMMMU*.json", "*videommmu*.jsonl", "*VideoMMMU*.jsonl"),
    ),
    read=_videommmu,
    scores={"accuracy": Score("share of questions answered right, over the three tracks", _accuracy)},
    traps=(
        "open questions: ours compares numbers to 2 decimals and words by ROUGE; lmms-eval looks whether the truth "
        "occurs in the response",
        "knowledge gain is (after − before) / (1 − before) of the adaptation track, before being without the lecture: "
        "--reliance, then `conditions.blind.by_kind`",
    ),
)

# -- VSI-Bench -----------------------------------------------------------------------------------------------

VSI_CHOICES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
VSI_NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")


def _vsi_bench(entry: Entry) -> Iterator[Question]:
    kind = entry.text("question_type")
    scene = entry.text("scene_name")
    videos = [f"{entry.text('dataset')}/{scene}.mp4", f"{scene}.mp4"]
    question, identity = entry.text("question"), entry.text("id")
    if kind in VSI_CHOICES:
        options = entry.options("options")
        answer = entry.letter("ground_truth", options)
        yield choice(entry, videos, identity=identity, question=question, options=options, answer=answer, kind=kind)
    elif kind in VSI_NUMBERS:
        answer = entry.text("ground_truth")
        yield open_answer(
            entry,
            videos,
            identity=identity,
            question=question,
            answer=answer,
            kind=kind,
            problem_type="regression",
        )
    else:
        raise entry.error("question_type", f"expected one of {', '.join((*VSI_CHOICES, *VSI_NUMBERS))}")


def _vsi_value(inclusive: bool) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        if row["kind"] in VSI_CHOICES:
            return _accuracy(row)
        found: float | None = row["metrics"].get("mra_inclusive" if inclusive else "mra")
        return found

    return value


def _vsi_task(row: Row) -> tuple[str, str]:
    direction = "object_rel_direction"
    kind = str(row["kind"])
    return (direction, kind) if kind.startswith(direction) else (kind, "")


def _vsi_half(row: Row) -> tuple[str, str]:
    return ("accuracy" if row["kind"] in VSI_CHOICES else "mra"), ""


_MRA = "mean over the number questions of the share of θ in 0.5, 0.55 … 0.95 with relative error {} 1 − θ"
VSI_BENCH = Benchmark(
    name="vsi-bench",
    title="VSI-Bench",
    asks="space in 288 indoor tours: 5,130 questions, 6 types with options, 4 with numbers",
    source="arXiv 2412.14171; nyu-visionx/VSI-Bench; lmms-eval tasks/vsibench; Video-R1 src/eval_bench.py",
    hub="nyu-visionx/VSI-Bench",
    files=(("test.jsonl",), ("test-*.parquet", "test.parquet"), ("*vsi*bench*.json", "*vsi*bench*.jsonl")),
    read=_vsi_bench,
    scores={
        "overall": Score(
            "mean over 8 tasks of accuracy or MRA (<=), direction being the mean of easy, medium and hard (the "
            "benchmark's own score, as in lmms-eval)",
            _vsi_value(True),
            _vsi_task,
        ),
        "overall_video_r1": Score(
            "mean of the mean accuracy and the mean MRA (<), over questions (Video-R1)", _vsi_value(False), _vsi_half
        ),
        "accuracy": Score("share of the questions with options answered right", _if_choice),
        "mra": Score(_MRA.format("<") + " (Video-R1)", _metric("mra")),
        "mra_inclusive": Score(_MRA.format("<=") + " (lmms-eval)", _metric("mra_inclusive")),
    },
    traps=("overall and overall_video_r1 differ by several points on the same answers: never compare across them",),
)

# -- MMVU ----------------------------------------------------------------------------------------------------


def _mmvu(entry: Entry) -> Iterator[Question]:
    identity, question = entry.text("id"), entry.text("question")
    path = entry.text("video_path", "video")
    path = path.split("/resolve/main/", 1)[-1].removeprefix("./").lstrip("/")
    paths = [path, path.removeprefix("videos/")]
    subject = entry.data.get("metadata", {})
    subject = subject.get("subject") if isinstance(subject, Mapping) else None
    groups = {"subject": str(subject) if subject else None}
    if entry.text("question_type") == "multiple-choice":
        options = entry.options("choices")
        answer = entry.letter("answer", options)
        yield choice(
            entry,
            paths,
            identity=identity,
            question=question,
            options=options,
            answer=answer,
            kind="multiple-choice",
            groups=groups,
        )
    else:
        answer = entry.text("answer")
        yield open_answer(
            entry, paths, identity=identity, question=question, answer=answer, kind="open-ended", groups=groups
        )


MMVU = Benchmark(
    name="mmvu",
    title="MMVU",
    asks="expert questions on videos of 27 subjects: 1,000 in validation, 625 of them with 5 options",
    source="arXiv 2501.12380; yale-nlp/MMVU, data/validation.json",
    hub="yale-nlp/MMVU",
    files=(("validation.json",), ("validation*.parquet",), ("*mmvu*.json", "*MMVU*.json")),
    read=_mmvu,
    scores={
        "accuracy_choice": Score("share of the multiple-choice questions answered right (Video-R1's MMVU)", _if_choice),
        "accuracy_open": Score(
            "share of the open questions answered right: numbers to 2 decimals, words by ROUGE (the benchmark asks "
            "GPT-4o: not comparable)",
            _if_open,
        ),
    },
    traps=("the benchmark's own score mixes both kinds, the open ones judged by a language model",),
)

# -- MVBench -------------------------------------------------------------------------------------------------

MVBENCH_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "moving_count": ("clevrer/video_validation",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "character_order": ("perception/videos",),
    "object_shuffle": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "moving_direction": ("clevrer/video_validation",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/video_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "moving_attribute": ("clevrer/video_validation",),
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "unexpected_action": ("FunQA_test/test",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "action_count": ("perception/videos",),
}
"""Tasks, and where the published archives put their videos (lmms-eval's first); ``_segment``: cut already."""


def _mvbench(entry: Entry) -> Iterator[Question]:
    task = entry.maybe("task_type") or next(
        (name for name in (PurePosixPath(entry.file).stem, *PurePosixPath(entry.file).parts) if _task(name)), ""
    )
    task = _task(task) or ""
    if not task:
        raise BenchmarkError(f"{entry.file}: named for none of the 20 tasks ({', '.join(sorted(MVBENCH_FOLDERS))})")
    video, options = entry.text("video"), entry.options("candidates")
    yield choice(
        entry,
        [f"{folder}/{video}" for folder in MVBENCH_FOLDERS[task]],
        identity=f"{task}-{entry.number}",
        question=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options, by_text=True),
        kind=task,
        start_s=entry.seconds("start"),
        end_s=entry.seconds("end"),
    )


def _task(name: str) -> str | None:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return plain if plain in MVBENCH_FOLDERS else None


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    asks="20 tasks of 200 questions on short videos, 2 to 5 options",
    source="arXiv 2311.17005; OpenGVLab/MVBench; lmms-eval tasks/mvbench",
    hub="OpenGVLab/MVBench",
    files=(
        tuple(f"{task}.json" for task in MVBENCH_FOLDERS),
        tuple(f"{task}/*.parquet" for task in MVBENCH_FOLDERS),
    ),
    read=_mvbench,
    scores={
        "accuracy": ACCURACY,
        "accuracy_by_task": Score("mean over the tasks of their accuracies", _accuracy, _kind),
    },
    traps=(
        "lmms-eval leaves empty answers out of the denominator; here they are wrong",
        "episodic_reasoning is published as folders of frames: convert them to videos (3 fps), or they are missing",
        "with whole videos of STAR, STA and TVQA the part between start and end is shown, with *_segment all",
    ),
)

# -- TempCompass ---------------------------------------------------------------------------------------------

_TEMPCOMPASS_TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")
_TEMPCOMPASS_LINE = re.compile(r"\s*(?:(?:option|sentence|caption|information)\s+)?([A-Z1-9])\s*[:.)]\s*(.+)", re.I)


def _tempcompass(entry: Entry) -> Iterator[Question]:
    task = next((t for t in _TEMPCOMPASS_TASKS if _plain(t) in _plain(entry.file)), None)
    if task is None:
        raise BenchmarkError(f"{entry.file}: named for none of the tasks {', '.join(_TEMPCOMPASS_TASKS)}")
    if "question" in entry.data:  # rows, as on the hub
        yield _tempcompass_question(entry, task, entry.text("video_id"), entry.text("dim"), f"{entry.number}")
        return
    for video, dims in entry.data.items():  # one object by video and dimension, as in the repository
        for dim, questions in entry.inner(video, dims).data.items():
            if not isinstance(questions, Sequence) or isinstance(questions, str):
                raise BenchmarkError(f"{entry.place}, {video}.{dim}: expected a list of questions")
            for place, question in enumerate(questions, 1):
                one = entry.inner(f"{video}.{dim}[{place}]", question)
                yield _tempcompass_question(one, task, video, dim, f"{dim}-{place}")


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _tempcompass_question(entry: Entry, task: str, video: str, dim: str, place: str) -> Question:
    text = entry.text("question")
    about: dict[str, Any] = {"kind": task, "groups": {"dim": dim}, "identity": f"{_plain(task)}-{video}-{place}"}
    videos = [f"videos/{video}.mp4", f"{video}.mp4"]
    answer = entry.text("answer", "mc_answer") if task == "captioning" else entry.text("answer")
    if task == "yes_no":
        if answer.lower() not in ("yes", "no"):
            raise entry.error("answer", "expected yes or no")
        return open_answer(
            entry, videos, question=text, answer=answer.lower(), rule="yes_no", problem_type="free_form", **about
        )
    if task == "captioning":
        if not re.match(r"[A-D]\.", answer):
            raise entry.error("answer", "expected the letter of an information")
        return open_answer(
            entry, videos, question=text, answer=answer, rule="captioning", problem_type="free_form", **about
        )
    first, *lines = text.splitlines()
    options: dict[str, str] = {}
    heads: dict[str, str] = {}
    for line in lines:
        match = _TEMPCOMPASS_LINE.fullmatch(line.rstrip())
        if match is None:
            raise entry.error("question", f"the line {line[:40]!r} is no option")
        letter = match[1].upper() if match[1].isalpha() else string.ascii_uppercase[int(match[1]) - 1]
        options[letter], heads[letter] = match[2].strip(), _folded(line)
    wanted = _folded(answer)
    found = [letter for letter in options if wanted in (heads[letter], _folded(options[letter]))]
    letter = found[0] if found else entry.letter("answer", options)
    return choice(entry, videos, question=first, options=_distinct(options), answer=letter, **about)


def _tempcompass_grade(sample: Sample, said: str | None) -> float:
    said = (said or "")[: graders.MAX_ANSWER_CHARS]
    if sample.metadata["rule"] == "yes_no":
        words = re.findall(r"[a-z]+", said.lower())
        return float(bool(words) and words[0] == sample.answer and not {"yes", "no"} <= set(words))
    return float(_nearest_information(sample.question, said) == sample.answer[0])


def _nearest_information(question: str, caption: str) -> str | None:
    """The information of a captioning question whose words the caption holds the most of; None where two tie."""
    words = set(re.findall(r"[a-z0-9]+", caption.lower()))
    shares = {}
    for line in question.splitlines():
        match = re.fullmatch(r"\s*Information ([A-D]):\s*(\{.*\})\s*", line)
        if match is None:
            continue
        try:
            said = ast.literal_eval(match[2])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            said = match[2]
        values = " ".join(map(str, said.values())) if isinstance(said, Mapping) else str(said)
        wanted = set(re.findall(r"[a-z0-9]+", values.lower()))
        shares[match[1]] = len(wanted & words) / len(wanted) if wanted else 0.0
    best = max(shares.values(), default=0.0)
    winners = [letter for letter, share in shares.items() if share == best > 0]
    return winners[0] if len(winners) == 1 else None


def _tempcompass_value(*tasks: str) -> Callable[[Row], float | None]:
    return lambda row: _accuracy(row) if row["kind"] in map(_plain, tasks) else None


TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    asks="action, speed, direction, change and order in 410 clips that come in conflicting pairs; 7,540 questions",
    source="arXiv 2403.00476; llyx97/TempCompass, questions/ and eval_*.py",
    hub="lmms-lab/TempCompass",
    files=(
        tuple(f"{task}.json" for task in _TEMPCOMPASS_TASKS),
        tuple(f"{task}/*.parquet" for task in (*_TEMPCOMPASS_TASKS, "multi_choice")),
    ),
    read=_tempcompass,
    scores={
        "accuracy": Score(
            "mean of the accuracies of the three tasks that rules can grade: multi-choice, yes_no, caption_matching",
            _tempcompass_value("multi-choice", "yes_no", "caption_matching"),
            _kind,
        ),
        "multi_choice": Score("share of questions with options answered right", _tempcompass_value("multi-choice")),
        "yes_no": Score("share of answers that begin with the right one of yes and no", _tempcompass_value("yes_no")),
        "caption_matching": Score(
            "share of pairs of captions of which the right one is chosen", _tempcompass_value("caption_matching")
        ),
        "captioning_overlap": Score(
            "share of captions that hold more of the words of the true information than of any other (the benchmark "
            "lets GPT-3.5 judge: not comparable)",
            _tempcompass_value("captioning"),
        ),
    },
    traps=(
        "which of the tasks stand behind Video-R1's figure is UNVERIFIED",
        "published yes/no and matching answers that no rule reads go to GPT-3.5; here they are wrong",
    ),
    grade=_tempcompass_grade,
)

# -- VideoMME ------------------------------------------------------------------------------------------------


def _videomme(entry: Entry) -> Iterator[Question]:
    video, options = entry.text("videoID"), entry.options("options")
    yield choice(
        entry,
        [f"data/{video}.mp4", f"{video}.mp4"],
        identity=entry.text("question_id"),
        question=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options),
        kind=entry.text("duration"),
        groups={name: entry.maybe(name) for name in ("task_type", "domain", "sub_category")},
    )


VIDEOMME = Benchmark(
    name="videomme",
    title="VideoMME",
    asks="900 videos from 11 seconds to an hour: 2,700 questions with 4 options, by length, domain and task",
    source="arXiv 2405.21075; lmms-lab/Video-MME",
    hub="lmms-lab/Video-MME",
    files=(("test-*.parquet",), ("*videomme*.json", "*Video-MME*.json", "*videomme*.jsonl", "*Video-MME*.jsonl")),
    read=_videomme,
    scores={"accuracy": ACCURACY},
    traps=("subtitles are not shown; published figures come with and without them",),
)

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        VIDEO_HOLMES,
        CG_BENCH,
        CG_BENCH_REASONING,
        VRBENCH,
        VRBENCH_SUMMARY,
        VIDEOMMMU,
        VSI_BENCH,
        MMVU,
        MVBENCH,
        TEMPCOMPASS,
        VIDEOMME,
    )
}
"""The benchmarks there are, by name."""


# -- sets of one's own ---------------------------------------------------------------------------------------


class OwnFields(Section):
    """Where a row of one's own annotation file keeps what; every value is the name of a field."""

    id: str | None = None
    """Id of the question; null: its row."""
    video: str = "video"
    """The video, as `OwnSet.videos` needs it."""
    question: str = "question"
    """The question."""
    options: str | None = None
    """Options, as a list or by letter; null: there are none."""
    answer: str = "answer"
    """The true option (its letter or its text), number or text."""
    kind: str | None = None
    """The breakdown."""
    start_s: str | None = None
    """Start of the part that is shown, in seconds."""
    end_s: str | None = None
    """Its end."""


class OwnSet(Section):
    """A set of one's own, as a short YAML file describes it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """Name of the set."""
    title: str = ""
    """Name in reports."""
    annotations: str
    """Name of the annotation file (``.json``, ``.jsonl`` or ``.parquet``), wherever in the folder it is."""
    videos: str = "{video}"
    """Where a video is, e.g. ``videos/{video}.mp4``."""
    problem_type: Literal["numerical", "ocr", "free_form", "regression"] | None = None
    """How questions without options are graded; null: by number where the answer is one, else as free text."""
    fields: OwnFields | None = None
    """Names of the fields; null: the file holds rows of ours (README.md), with evidence where it is known."""


def own_set(path: Path) -> Benchmark:
    """The benchmark that a YAML file describes.

    Raises:
        BenchmarkError: the file is not there or not as `OwnSet` says.
    """
    try:
        described = OwnSet.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise BenchmarkError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise BenchmarkError(f"{path}: {describe(error, OwnSet)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if described.fields is not None and "{video}" not in described.videos:
        raise BenchmarkError(f"{path}: 'videos' must hold {{video}}, got '{described.videos}'")
    read = partial(_own_row, described) if described.fields else _own_sample
    return Benchmark(
        name=described.name,
        title=described.title or described.name,
        asks=f"the questions of {described.annotations}",
        source=str(path.name),
        files=((described.annotations,),),
        read=read,
        scores={"accuracy": Score("share of questions answered right; a failed one is wrong", _accuracy)},
    )


def _own_sample(entry: Entry) -> Iterator[Question]:
    row = parse_row({key: value for key, value in entry.data.items() if key != "media_id"}, entry.number)
    if isinstance(row, RowError):
        raise BenchmarkError(f"{entry.file}, row {row.line}: {row.reason}")
    yield Question(row, (row.media.uri.removeprefix("./"),))


def _own_row(described: OwnSet, entry: Entry) -> Iterator[Question]:
    fields = described.fields
    assert fields is not None
    videos = [described.videos.replace("{video}", entry.text(fields.video))]
    about: dict[str, Any] = {
        "identity": entry.text(fields.id) if fields.id else str(entry.number),
        "question": entry.text(fields.question),
        "kind": entry.maybe(fields.kind) if fields.kind else None,
    }
    options = entry.options(fields.options) if fields.options else {}
    if options:
        yield choice(
            entry,
            videos,
            options=options,
            answer=entry.letter(fields.answer, options),
            start_s=entry.seconds(fields.start_s) if fields.start_s else None,
            end_s=entry.seconds(fields.end_s) if fields.end_s else None,
            **about,
        )
    else:
        answer = entry.text(fields.answer)
        yield open_answer(entry, videos, answer=answer, problem_type=described.problem_type, **about)


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name, or a set of one's own by its YAML file.

    Raises:
        BenchmarkError: there is none, with the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        return own_set(Path(name))
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(BENCHMARKS)}"
    raise BenchmarkError(f"unknown benchmark '{name}'; {hint}; your own set: a .yaml file that describes it")
