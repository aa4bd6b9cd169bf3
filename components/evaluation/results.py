"""Finished evaluations, read back: what `vthink evaluate --benchmark` left in a folder, for reports and gates.

``result.json`` and ``items.jsonl`` may come from anywhere, so nothing in them is believed before it is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ..common.errors import UserError
from .benchmarks.registry import BENCHMARKS
from .config import EvaluationConfig
from .expressions import FRAMES
from .grade import Row
from .scores import Score
from .statistics import Difference, paired_difference

MAX_RESULT_BYTES = 64 * 2**20
"""Largest ``result.json`` that is read."""



def key_of(benchmark: str) -> str:
    """A benchmark's name as gate rules say it: ``video_holmes`` for ``video-holmes``."""
    return re.sub(r"\W+", "_", benchmark).strip("_")


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One model on one benchmark."""

    model: str
    """What the reader calls it."""
    where: str
    result: Mapping[str, Any]
    """Contents of ``result.json``."""
    rows: Mapping[str, list[dict[str, Any]]]
    """Items by frame condition."""

    @property
    def benchmark(self) -> str:
        """Its name, as on the command line."""
        return str(self.result["benchmark"])

    @property
    def key(self) -> str:
        """Its name, as in gate rules."""
        return key_of(self.benchmark)

    @property
    def headline(self) -> str:
        """The score that stands for the benchmark."""
        return str(self.result["headline"])

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """By frame condition: every metric and score with its interval, ``by_type``, ``by_kind``."""
        return {name: {**cell, **cell["scores"]} for name, cell in self.result["conditions"].items()}

    def same_questions(self, other: BenchmarkResult) -> bool:
        """Whether both were asked the same questions with the same answers held true."""
        mine, theirs = (one.result["settings"]["questions"] for one in (self, other))
        return self.benchmark == other.benchmark and mine == theirs

    def score(self, metric: str) -> Score:
        """How a score or metric is made of items."""
        known = BENCHMARKS.get(self.benchmark)
        if known is not None and metric in known.scores:
            return known.scores[metric]
        return Score("", lambda row: row["metrics"].get(metric))


def compare(
    first: BenchmarkResult,
    second: BenchmarkResult,
    metric: str,
    config: EvaluationConfig,
    frames: tuple[str, str] = ("ordered", "ordered"),
    group: tuple[str, str] | None = None,
) -> Difference | None:
    """The paired difference first − second; None where they share no questions or fewer than two videos.

    Args:
        first: one model (its frame condition is ``frames[0]``).
        second: the other, on the same benchmark.
        metric: a score or metric.
        config: confidence, resamples and seed.
        frames: conditions of both.
        group: ``("kind", "TCI")`` or ``("problem_type", …)``: only these items.
    """
    if not first.same_questions(second):
        return None
    score = first.score(metric)
    sides = [
        {row["id"]: (row, score.value(row)) for row in one.rows.get(condition, ()) if _in_group(row, group)}
        for one, condition in zip((first, second), frames, strict=True)
    ]
    shared = [
        (row, value, other)
        for item, (row, value) in sides[0].items()
        if value is not None and (other := sides[1].get(item, (row, None))[1]) is not None
    ]
    if len({row["video"] for row, _, _ in shared}) < 2:
        return None
    rows = [row for row, _, _ in shared]
    return paired_difference(
        [value for _, value, _ in shared],
        [value for _, _, value in shared],
        [row["video"] for row in rows],
        confidence=config.confidence,
        resamples=config.bootstrap_resamples,
        seed=config.seed,
        weights=item_weights(score, rows),
    )


def _in_group(row: Mapping[str, Any], group: tuple[str, str] | None) -> bool:
    return group is None or row[group[0]] == group[1]


def item_weights(score: Score, rows: Sequence[Row]) -> np.ndarray | None:
    """What each item counts in a mean of means; None where all count alike."""
    if score.cell is None or not rows:
        return None
    cells = [score.cell(row) for row in rows]
    groups = {group for group, _ in cells}
    parts = {group: len({cell for cell in cells if cell[0] == group}) for group in groups}
    counts: dict[tuple[str, str], int] = {}
    for cell in cells:
        counts[cell] = counts.get(cell, 0) + 1
    return np.array([1 / len(groups) / parts[cell[0]] / counts[cell] for cell in cells])


# -- reading -------------------------------------------------------------------------------------------------


def read_benchmark(folder: str | Path, model: str | None = None) -> BenchmarkResult:
    """Read what ``vthink evaluate --benchmark … --output FOLDER`` left.

    Args:
        folder: with ``result.json`` and ``items.jsonl``.
        model: what to call the model; None: its name in the result.

    Raises:
        UserError: nothing there, or not what the command writes.
    """
    folder = Path(folder)
    contents = []
    for name in ("result.json", "items.jsonl"):
        try:
            contents.append((folder / name).read_bytes())
        except OSError as error:
            raise UserError(
                f"{folder / name}: {error.strerror or error}; give a folder that `vthink evaluate --benchmark … "
                "--output` wrote"
            ) from None
    return parse_benchmark(contents[0], contents[1], f"{folder}/", model)


def parse_benchmark(result_json: bytes, items_jsonl: bytes, where: str, model: str | None = None) -> BenchmarkResult:
    """`read_benchmark` of the contents of both files; ``where`` is for messages."""
    path, items = f"{where}result.json", f"{where}items.jsonl"
    if len(result_json) > MAX_RESULT_BYTES:
        raise UserError(f"{path}: larger than {MAX_RESULT_BYTES // 2**20} MiB; not a result of vthink evaluate")
    result = _checked(result_json, path)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in result["conditions"]}
    for number, line in enumerate(items_jsonl.splitlines(), start=1):
        row = _row(line, f"{items}, line {number}")
        if row["frames"] in rows:
            rows[row["frames"]].append(row)
    for name, cell in rows.items():
        if len({row["id"] for row in cell}) != len(cell):
            raise UserError(
                f"{items}: an item is there twice under '{name}'; run `vthink evaluate --benchmark` again"
            )
    return BenchmarkResult(model or _model_name(result["model"]), where, result, rows)


class _Estimate(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    value: float
    low: float | None
    high: float | None
    n: int


class _Cell(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    scores: dict[str, _Estimate]
    by_type: dict[str, dict[str, _Estimate]] = {}
    by_kind: dict[str, dict[str, _Estimate]] = {}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    questions: str
    seed: int = 0
    video: dict[str, Any] | None = None


class _Failed(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str
    frames: str
    error: str


class _Result(BaseModel):
    """What reports and comparisons use of ``result.json``; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow", strict=True)

    benchmark: str
    title: str
    source: str
    headline: str
    model: dict[str, Any]
    conditions: dict[str, _Cell]
    settings: _Settings
    items: int
    videos: int
    failed: list[_Failed] = []
    traps: list[str] = []
    missing_videos: int = 0


def _checked(text: bytes, path: str) -> dict[str, Any]:
    try:
        result = _Result.model_validate_json(text).model_dump()
    except ValidationError as error:
        raise UserError(f"{path}{_first(error)}; not what `vthink evaluate --benchmark` writes") from None
    conditions = result["conditions"]
    for name in [*conditions, *(row["frames"] for row in result["failed"])]:
        if name not in FRAMES:
            raise UserError(f"{path}, field 'conditions.{name[:40]}': not a frame condition")
    if "ordered" not in conditions:
        raise UserError(f"{path}, field 'conditions.ordered': missing")
    for where, found in _estimates(conditions, "conditions"):
        try:
            _Estimate.model_validate(found)
        except ValidationError as error:
            raise UserError(f"{path}, field '{where}'{_first(error)}") from None
    if result["headline"] not in conditions["ordered"]["scores"]:
        raise UserError(f"{path}, field 'headline': '{result['headline'][:40]}' is none of the scores")
    return result


def _first(error: ValidationError) -> str:
    """The first mistake, in one line."""
    found = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, found["loc"]))
    return (f", field '{field}'" if field else "") + f": {found['msg'][:100]}"


def _estimates(node: Mapping[str, Any], where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            if "value" in value:
                yield f"{where}.{name}", value
            else:
                yield from _estimates(value, f"{where}.{name}")


class _Item(BaseModel):
    """What reports and comparisons use of a line of ``items.jsonl``; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    id: str
    video: str
    frames: str
    problem_type: str
    metrics: dict[str, float]
    correct: bool
    kind: str | None = None
    groups: dict[str, str] = {}
    value: float | None = None
    answer: str | None = None
    response: str | None = None
    error: str | None = None
    finish_reason: str = ""
    truth: str = ""
    question: str = ""
    options: list[str] = []
    clip: tuple[float | None, float | None] = (None, None)
    evidence: list[tuple[float, float, str]] = []
    duration_s: float = 0.0


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        return _Item.model_validate_json(line).model_dump()
    except ValidationError as error:
        raise UserError(f"{place}{_first(error)}; evaluate the benchmark again") from None


def _model_name(about: Mapping[str, Any]) -> str:
    name = str(about.get("name") or about.get("uri") or "model").rstrip("/")
    return name.rsplit("/", 1)[-1][:60] or "model"
