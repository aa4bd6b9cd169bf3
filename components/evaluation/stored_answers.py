"""Answers that were given elsewhere, or earlier, graded without a model: ``vthink evaluate --benchmark --answers``.

Read are our ``items.jsonl``, sample logs of lmms-eval, the JSON of Video-R1's ``eval_bench.py``, and JSONL or CSV with
``id`` and ``response``. The videos are not needed."""

import csv
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..common.answers.reading import GRADER_VERSION
from ..common.errors import UserError
from ..common.model.prompts import get_template
from ..common.rows.sample import Sample
from ..common.storage.names import fingerprint, sha256_file
from ..common.storage.s3 import Storage
from .ask import Answer
from .benchmarks.benchmark import folded
from .benchmarks.registry import find_benchmark
from .conditions import CONDITIONS, ORDERED
from .config import EvaluationConfig
from .evaluate_benchmark import open_questions, write_results
from .item import Item
from .measure import GRADERS, conclude, grade_answer, questions_fingerprint
from .metrics import left_out_metrics
from .results import ModelIdentity, Result, Settings


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A row of a file of answers."""

    place: str  # file and row, for messages
    answer: Answer  # its ``id`` is empty where the row has none
    condition: str = ORDERED
    position: int | None = None  # in the annotation file, from 0
    question: tuple[str, str] | None = None  # name of the video without its ending, and the question


_TEXTS = ("response", "output", "prediction", "answer_text")
_IDS = ("id", "question_id", "qid", "problem_id")


def read_answers(path: Path) -> Iterator[StoredAnswer]:
    """The rows of a file of answers. Raises `UserError`: not readable, or a row that is no answer, with its number."""
    for number, row in enumerate(_rows(path), 1):
        place = f"{path}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{place}: expected an object with an id and a response")
        yield _stored(row, place)


def _rows(path: Path) -> Iterator[Any]:
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix.lower() in (".jsonl", ".ndjson"):
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        else:
            data = json.loads(path.read_text("utf-8-sig"))
            named = (data.get(name) for name in ("results", "logs", "samples")) if isinstance(data, dict) else ()
            rows = next((rows for rows in named if isinstance(rows, list)), data)
            if not isinstance(rows, list):
                raise UserError(f"{path}: expected a list of answers, or an object with the list 'results'")
            yield from rows
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:] or 'JSON'} ({str(error)[:120]})") from None


def _stored(row: Mapping[str, Any], place: str) -> StoredAnswer:
    identity = next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), "")
    if "doc_id" in row and ("resps" in row or "filtered_resps" in row):  # lmms-eval
        text = row["filtered_resps"] if "filtered_resps" in row else row["resps"]
        while isinstance(text, list) and text:
            text = text[0]
        position = row["doc_id"] if isinstance(row["doc_id"], int) else None
        return StoredAnswer(place, Answer(identity, _text(text, place)), position=position)
    name = next((name for name in _TEXTS if name in row), None)
    if name is None:
        raise UserError(f"{place}: no response (expected one of the fields {', '.join(_TEXTS)}, or lmms-eval's resps)")
    condition = str(row.get("frames") or ORDERED)
    if condition not in CONDITIONS:
        raise UserError(f"{place}: '{condition[:40]}' is not a condition")
    error = row.get("error")
    tokens, seconds = row.get("token_ids"), row.get("duration_s")
    answer = Answer(
        identity,
        "" if error else _text(row[name], place),
        tuple(tokens) if isinstance(tokens, list) else (),
        str(row.get("finish_reason") or ""),
        float(seconds) if isinstance(seconds, int | float) else 0.0,
        str(error) if error else None,
    )
    asked = row.get("problem") or row.get("question")
    video = row.get("path") or row.get("video")
    known = (PurePosixPath(video).stem, folded(asked)) if isinstance(asked, str) and isinstance(video, str) else None
    return StoredAnswer(place, answer, condition, question=known)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UserError(f"{place}: the response is no text")
    return str(value)


def match_answers(
    samples: Sequence[Sample], stored: Iterator[StoredAnswer], positions: bool = True
) -> dict[tuple[str, str], Answer]:
    """Answers by condition and id of their question: by id, else by video and question, else by lmms-eval's ``doc_id``,
    the position in the annotation file (``positions``: of which there is one).

    Raises `UserError`: an answer to no question, or two to one."""
    by_id: dict[str, Sample] = {known.id: known for known in samples}
    by_question: dict[tuple[str, str], list[Sample]] = {}
    for known in samples:
        by_question.setdefault((PurePosixPath(known.media.uri).stem, folded(known.question)), []).append(known)
    answers: dict[tuple[str, str], Answer] = {}
    for row in stored:
        sample: Sample | None = by_id.get(row.answer.id)
        if sample is None and row.question is not None and len(same := by_question.get(row.question, [])) == 1:
            sample = same[0]
        if (
            sample is None
            and positions
            and not row.answer.id
            and row.position is not None
            and 0 <= row.position < len(samples)
        ):
            sample = samples[row.position]
        if sample is None:
            raise UserError(
                f"{row.place}: '{(row.answer.id or str(row.position))[:60]}' is no question of this benchmark "
                f"(its ids are such as '{samples[0].id}')"
            )
        if (row.condition, sample.id) in answers:
            raise UserError(f"{row.place}: a second answer to '{sample.id}'")
        answers[row.condition, sample.id] = row.answer
    return answers


def grade_stored(
    name: str,
    data: str,
    answers: Path,
    output: Path,
    *,
    config: EvaluationConfig,
    work_dir: Path,
    grader: str = "strict",
    storage: Storage | None = None,
) -> Result:
    """Grade stored answers to a benchmark as if a model had just given them; returns what ``result.json`` holds.

    Args:
        name, data, output: as for `evaluate_benchmark`; ``data`` needs the annotation files alone.
        grader: of `measure.GRADERS`; official: the benchmark's published rule (`benchmarks.official`).

    A question without an answer counts as wrong. Raises `UserError`: in one line."""
    started = time.monotonic()
    if grader not in GRADERS:
        raise UserError(f"unknown grader '{grader}'; there are: {', '.join(GRADERS)}")
    if grader == "official" and find_benchmark(name).official is None:
        raise UserError(f"{name}: its published rule is not here; grade with --grader strict or paper")
    about, before = _about(answers)
    chosen = {"max_items": before.max_items, "seed": before.seed} if before else {"max_items": None}
    config = config.model_copy(update=chosen)
    questions, _ = open_questions(name, data, config, storage, work_dir, videos=False)
    given = match_answers(questions.samples, read_answers(answers), positions=len(questions.files) == 1)
    answer_format = get_template(about.prompt).answer_format if about.prompt else ""
    conditions = [condition for condition in CONDITIONS if any(key[0] == condition for key in given)] or [ORDERED]
    items: dict[str, list[Item]] = {}
    for condition in dict.fromkeys([ORDERED, *conditions]):
        rows = [sample for sample in questions.samples if condition == ORDERED or (condition, sample.id) in given]
        missing = f"no answer in {answers.name}"
        items[condition] = [
            grade_answer(
                sample,
                given.get((condition, sample.id)) or Answer(sample.id, error=missing),
                "model",
                condition,
                answer_format,
                questions.benchmark,
                grader,
            )
            for sample in rows
        ]
    kept = before.model_dump() if before else {}
    kept |= {
        "benchmark": questions.benchmark.name,
        "model": about,
        "questions": questions_fingerprint(questions),
        "files": dict(questions.files),
        "max_items": config.max_items,
        "grader": GRADER_VERSION if grader == "strict" else f"{GRADER_VERSION}-{grader}",
    }
    result = conclude(
        questions, items, Settings(**kept), config, data=data, left_out=left_out_metrics(questions.samples),
        seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    return write_results(output, result, [item for cell in items.values() for item in cell])


def _about(answers: Path) -> tuple[ModelIdentity, Settings | None]:
    """Who answered: as ``settings.json`` beside our items says; else the file."""
    with suppress(OSError, ValueError):
        settings = Settings.model_validate_json((answers.parent / "settings.json").read_bytes())
        return settings.model, settings
    named = re.sub(r"_?samples?_?", "", answers.stem) or answers.stem
    digest = sha256_file(answers)
    return ModelIdentity(kind="answers", uri=str(answers), name=named[:60], fingerprint=fingerprint(digest)), None
