"""What an evaluation leaves, as typed values: `Result` of one model on one benchmark, `EvaluationResult` of the stage.

``result.json`` and ``items.jsonl`` may come from anywhere, so nothing in them is believed before it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass as checked

from ..common.errors import UserError
from ..common.storage.names import fingerprint, join
from .benchmarks.registry import BENCHMARKS, benchmark_key
from .conditions import CONDITIONS, ORDERED
from .item import Item, parse_record, read_items
from .scores import Score, metric_score
from .statistics import Difference, Estimate

if TYPE_CHECKING:
    from ..common.storage.manifest import Manifest
    from ..common.storage.s3 import Storage

HELD_OUT = "held-out"  # name of the held-out split as a benchmark
MAX_RESULT_BYTES = 64 * 2**20  # largest ``result.json`` that is read
Estimates = dict[str, Estimate]  # by metric or score
Group = tuple[str, str]  # ``("by_kind", "direction")`` or ``("by_type", "regression")``: some of the items


class _Record(BaseModel):
    """A part of a file: other keys are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


class ModelIdentity(_Record):
    """What identifies a model, for ``result.json``."""

    kind: str = ""
    """``folder``, ``s3``, ``registry``, ``hub`` or ``endpoint``."""
    uri: str = ""
    fingerprint: str = ""
    prompt: str = ""
    """Name of its prompt template."""
    name: str | None = None
    """As its server calls it."""
    version: int | None = None
    """In the registry."""
    source: str | None = None
    """Where the registry has it from."""
    frames: str | None = None
    """Who chooses the frames, where it is not us."""

    @property
    def label(self) -> str:
        """What it is called where nobody says."""
        return (self.name or self.uri).rstrip("/").rsplit("/", 1)[-1][:60] or "model"


class Cell(_Record):
    """One model under one condition. In the file the metrics stand beside the other keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Estimates = Field(init=False)

    scores: Estimates = {}
    """The figures of the benchmark."""
    by_type: dict[str, Estimates] = {}
    by_kind: dict[str, Estimates] = {}
    by: dict[str, dict[str, Estimates]] = {}
    """Further breakdowns: dimension → value → metrics."""
    failed: int = 0

    @property
    def metrics(self) -> Estimates:
        """Metrics over all items."""
        return self.__pydantic_extra__

    @property
    def groups(self) -> dict[Group, Estimates]:
        """Metrics by kind and by problem type."""
        parts = (("by_type", self.by_type), ("by_kind", self.by_kind))
        return {(by, name): estimates for by, groups in parts for name, estimates in groups.items()}

    def with_scores_as_metrics(self) -> Cell:
        """The same, with scores in place of the metrics of their names."""
        breakdowns: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return Cell(**breakdowns | self.metrics | self.scores)

    def estimate(self, metric: str, group: Group | None = None) -> Estimate | None:
        """A score or metric, over all items or those of a group; None where it was not measured."""
        if group is not None:
            return self.groups.get(group, {}).get(metric)
        return self.scores.get(metric) or self.metrics.get(metric)


def _is_condition(name: str) -> str:
    if name not in CONDITIONS:
        raise ValueError(f"'{name[:40]}' is not a condition")
    return name


class FailedItem(_Record):
    """A question that got no answer."""

    id: str
    condition: Annotated[str, AfterValidator(_is_condition)] = Field(
        validation_alias="frames", serialization_alias="frames"
    )
    error: str
    model: str | None = None


class Settings(_Record):
    """Everything that the answers of a model to a benchmark depend on."""

    benchmark: str = ""
    model: ModelIdentity = ModelIdentity()
    protocol: str | None = None
    video: dict[str, Any] | None = None
    """`VideoConfig` of the frames; null where the model was given the files."""
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    max_items: int | None = None
    questions: str
    """Fingerprint of the questions and of the answers that are held true."""
    files: dict[str, str] = {}
    """SHA-256 of the annotation files by name."""
    grader: str = "1"
    """Version of reading and grading (`common.answers.reading`)."""


class Result(_Record):
    """``result.json`` of one model on one benchmark."""

    benchmark: str
    title: str
    asks: str = ""
    source: str
    traps: tuple[str, ...] = ()
    model: ModelIdentity
    headline: str
    metrics: Estimates = {}
    """Scores and abilities, frames in order."""
    definitions: dict[str, str] = {}
    conditions: dict[str, Cell]
    failed: tuple[FailedItem, ...] = ()
    data: str = ""
    items: int
    videos: int
    missing_videos: int = 0
    left_out: dict[str, str] = {}
    """What was not measured, and why."""
    settings: Settings
    confidence: float = 0.95
    reliance: dict[str, Difference | None] = {}
    """The headline, ordered − another condition, paired."""
    items_sha256: str = ""
    """Of the ``items.jsonl`` that this was computed from."""
    asked_now: int = 0
    """Answers of this run; the others were kept from earlier ones."""
    seconds: float = 0.0
    version: str = ""
    git_commit: str | None = None

    @field_validator("conditions")
    @classmethod
    def _known(cls, cells: dict[str, Cell]) -> dict[str, Cell]:
        for name in cells:
            _is_condition(name)
        if ORDERED not in cells:
            raise ValueError(f"'{ORDERED}' is missing")
        return cells

    @model_validator(mode="after")
    def _headline_is_a_score(self) -> Self:
        if self.headline not in self.conditions[ORDERED].scores:
            raise ValueError(f"headline '{self.headline[:40]}' is none of the scores")
        return self


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One model on one benchmark (the held-out split is one), with its items."""

    model: str  # what the reader calls it
    where: str
    result: Result
    items: Mapping[str, Sequence[Item]]  # by condition

    @property
    def benchmark(self) -> str:
        """Its name, as on the command line."""
        return self.result.benchmark

    @property
    def key(self) -> str:
        """Its name in metrics and files."""
        return benchmark_key(self.benchmark)

    @property
    def headline(self) -> str:
        """The score that stands for the benchmark."""
        return self.result.headline

    @property
    def ordered(self) -> Cell:
        """Its numbers with frames in order."""
        return self.result.conditions[ORDERED]

    def same_questions(self, other: BenchmarkResult) -> bool:
        """Whether both were asked the same questions with the same answers held true."""
        return self.benchmark == other.benchmark and self.result.settings.questions == other.result.settings.questions

    def incomparable(self, other: BenchmarkResult) -> str | None:
        """Why its grades say nothing beside those of another result; None: they do."""
        mine, theirs = self.result.settings.grader, other.result.settings.grader
        if mine == theirs:
            return None
        return (
            f"{self.model} was graded by version {mine}, {other.model} by version {theirs}, which read answers "
            "differently; grade the stored answers of the older one again (vthink evaluate --answers)"
        )

    def metric_of(self, group: Group) -> str:
        """The metric of a kind of question, or of a problem type."""
        return BENCHMARKS.get(self.benchmark).metric_of(group[1]) if self.benchmark in BENCHMARKS else "accuracy"

    def score(self, metric: str) -> Score:
        """How a score or metric is made of items."""
        if self.benchmark in BENCHMARKS and metric in (scores := BENCHMARKS.get(self.benchmark).scores):
            return scores[metric]
        return metric_score(metric)


def read_benchmark(folder: str | Path, model: str | None = None) -> BenchmarkResult:
    """Read what ``vthink evaluate --benchmark … --output FOLDER`` left (``model``: what to call the model).

    Raises `UserError`: nothing there, or not what the command writes."""
    folder = Path(folder)
    try:
        contents = [(folder / name).read_bytes() for name in ("result.json", "items.jsonl")]
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror or error}; give a folder that `vthink evaluate --benchmark … --output` "
            "wrote"
        ) from None
    return parse_benchmark(contents[0], contents[1], f"{folder}/", model)


def parse_benchmark(result_json: bytes, items_jsonl: bytes, where: str, model: str | None = None) -> BenchmarkResult:
    """`read_benchmark` of the contents of both files; ``where`` is for messages."""
    result = read_result(result_json, f"{where}result.json")
    items_path = f"{where}items.jsonl"
    check_seal(result.items_sha256, items_jsonl, items_path)
    items = items_by_condition(read_items(items_jsonl, items_path), result.conditions, items_path)
    return BenchmarkResult(model or result.model.label, where, result, items)


def sealed(result: BenchmarkResult) -> BenchmarkResult:
    """A result whose items are known to be those that were measured; a `UserError` where it says nothing of them."""
    if not result.result.items_sha256:
        where = f"{result.where}result.json"
        raise UserError(f"{where}: says nothing of its items (items_sha256); evaluate, or grade, again")
    return result


def check_seal(sha256: str, items_jsonl: bytes, path: str) -> None:
    """See that items are those that a ``result.json`` was computed from, where it says; a `UserError` where not."""
    if sha256 and hashlib.sha256(items_jsonl).hexdigest() != sha256:
        raise UserError(f"{path}: not the items that result.json was computed from; evaluate (or grade) again")


def read_result(result_json: bytes, path: str) -> Result:
    """What ``result.json`` holds; a `UserError` that names ``path`` where it is none."""
    if len(result_json) > MAX_RESULT_BYTES:
        raise UserError(f"{path}: larger than {MAX_RESULT_BYTES // 2**20} MiB; not a result of vthink evaluate")
    return parse_record(Result, result_json, path, "not what `vthink evaluate --benchmark` writes")


def items_by_condition(items: Iterable[Item], conditions: Iterable[str], where: str) -> dict[str, list[Item]]:
    """Items of one model by the conditions that are wanted; a `UserError` where one is there twice."""
    cells: dict[str, list[Item]] = {name: [] for name in conditions}
    for item in items:
        if item.condition in cells:
            cells[item.condition].append(item)
    for name, cell in cells.items():
        if len({item.id for item in cell}) != len(cell):
            raise UserError(f"{where}: an item is there twice under '{name}'; evaluate again")
    return cells


class EvaluatedModel(_Record):
    """One model of a pipeline. In the file its conditions and benchmarks stand beside the other keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Cell | dict[str, Cell]] = Field(init=False)

    uri: str
    fingerprint: str

    @property
    def conditions(self) -> dict[str, Cell]:
        """The held-out split, by condition."""
        return {name: value for name, value in self.__pydantic_extra__.items() if isinstance(value, Cell)}


@checked(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Comparison(Difference):
    """A paired difference, first − second."""

    first: str
    """``model.condition``."""
    second: str
    metric: str
    kind: str | None = None
    """Only questions of this kind; null: all."""
    benchmark: str | None = None
    """Key of the benchmark; null: the held-out split."""


class DataReference(_Record):
    """The prepared data that were asked about."""

    uri: str
    fingerprint: str


class EvaluationResult(_Record):
    """``result.json`` of the stage: every model on the held-out split, and on the benchmarks of the configuration."""

    models: dict[str, EvaluatedModel]
    """In the order of the chain."""
    baselines: dict[str, dict[str, Cell]] = {}
    """Grounding that needs no model."""
    comparisons: tuple[Comparison, ...] = ()
    candidate: str
    """The last model of the chain, the one that would be registered."""
    failed: tuple[FailedItem, ...] = ()
    split: str
    items: int
    videos: int
    left_out: dict[str, str] = {}
    data: DataReference
    prompt: str
    settings: dict[str, Any]
    """The section ``evaluation`` without its gate."""
    grader: str = "1"
    """Version of reading and grading."""
    items_sha256: str = ""
    """Of the ``items.jsonl`` that this was computed from."""

    @property
    def questions(self) -> str:
        """Fingerprint of the questions."""
        names = ("max_items",) if self.settings.get("max_items") is None else ("max_items", "seed")
        return fingerprint(self.data.fingerprint, self.split, {name: self.settings.get(name) for name in names})

    def on_split(self, model: str, items: Iterable[Item], where: str) -> BenchmarkResult:
        """One model on the held-out split, as a benchmark; ``items`` are of all models, ``where`` is for messages."""
        about = self.models[model]
        names = ("temperature", "top_p", "max_new_tokens", "max_items")
        named: dict[str, Any] = {name: self.settings.get(name) for name in names}
        named |= {"seed": int(self.settings.get("seed") or 0), "questions": self.questions, "grader": self.grader}
        identity = ModelIdentity(kind="s3", uri=about.uri, fingerprint=about.fingerprint, prompt=self.prompt)
        result = Result(
            benchmark=HELD_OUT,
            title=f"split “{self.split}”",
            source=self.data.uri,
            model=identity,
            headline="accuracy",
            conditions=about.conditions,
            failed=tuple(item for item in self.failed if item.model == model),
            items_sha256=self.items_sha256,
            items=self.items,
            videos=self.videos,
            left_out=self.left_out,
            settings=Settings(benchmark=HELD_OUT, model=identity, **named),
        )
        mine = (item for item in items if item.model == model)
        return BenchmarkResult(model, where, result, items_by_condition(mine, about.conditions, where))


def read_evaluation(result_json: bytes, where: str) -> EvaluationResult:
    """The stage's ``result.json``; a `UserError` that names ``where`` where it is none."""
    return parse_record(EvaluationResult, result_json, where)


_FILES = {"result": "result.json", "items": "items.jsonl", "report": "report.html", "benchmarks": "benchmarks.html"}


def stage_files(prefix: str, benchmarks: Iterable[BenchmarkResult]) -> dict[str, str]:
    """Where the files of an evaluation are: ``result``, ``items``, ``report``; with benchmarks a page, and a folder for
    each."""
    folders = {f"benchmarks/{one.model}/{one.key}": one.where for one in benchmarks}
    return {name: join(prefix, file) for name, file in _FILES.items() if folders or name != "benchmarks"} | folders


def read_stage(storage: Storage, manifest: Manifest) -> tuple[dict[str, dict[str, BenchmarkResult]], str]:
    """A finished evaluation: by model and benchmark its results with their items; and the name of the candidate.

    Raises `UserError`: a file is not as the stage writes it."""
    files = manifest.files
    result = read_evaluation(storage.read_bytes(files["result"]), files["result"])
    items_jsonl = storage.read_bytes(files["items"])
    check_seal(result.items_sha256, items_jsonl, files["items"])
    items = list(read_items(items_jsonl, files["items"]))
    results = {name: {HELD_OUT: result.on_split(name, items, manifest.uri)} for name in result.models}
    for file, prefix in files.items():
        if file.startswith("benchmarks/"):
            model = file.split("/")[1]
            contents = [storage.read_bytes(join(prefix, name)) for name in ("result.json", "items.jsonl")]
            one = parse_benchmark(contents[0], contents[1], prefix, model)
            results[model][one.benchmark] = one
    return results, result.candidate
