"""The gate: may this candidate go into service? Rules over its evaluation, against floors and the champion.

A verdict explains itself line by line. It depends on which version is the champion, so that version is part of its
fingerprint: after another has gone into service the same candidate is judged anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import __version__
from ..common.context import RunContext
from ..common.launch.lifetime import end_with_owner
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.client import registry_client
from ..common.tracking.run import Tracker
from .config import EvaluationConfig
from .expressions import BENCHMARKS, Finding, MetricPath, Pair, Rule, check_measured, judge, parse
from .statistics import Estimate
from .summary import Rows, compare

if TYPE_CHECKING:
    from .results import BenchmarkResult

EVALUATION_TAG = "vthink.evaluation_uri"
"""Tag of a registered version: the manifest of the evaluation that it passed the gate with."""


class GateError(RuntimeError):
    """A gate that cannot be judged, with the reason and what to do."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The version in service."""

    version: str
    evaluation_uri: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(finding.passed for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """The explanation: a line per rule, notes, and the verdict."""
        held = sum(finding.passed for finding in self.findings)
        word = "passed" if self.passed else "failed"
        last = f"gate {word}: {held} of {len(self.findings)} rules hold"
        return [*map(str, self.findings), *(f"note  {note}" for note in self.notes), last]


def find_champion(context: RunContext) -> Champion | None:
    """The registered version with the alias ``champion``, or None while there is none.

    Raises:
        GateError: the registry cannot be asked, or the version does not say how it was evaluated.
    """
    client = registry_client(context.tracking, context.storage)
    from mlflow.exceptions import MlflowException

    name = context.tracking.registered_model
    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise GateError(f"cannot ask the model registry for the champion of '{name}': {error}") from error
    uri = version.tags.get(EVALUATION_TAG)
    if not uri:
        raise GateError(
            f"champion version {version.version} of '{name}' has no tag {EVALUATION_TAG}; set it to the manifest of "
            "its evaluation, or remove the alias"
        )
    return Champion(str(version.version), uri)


def judge_all(
    config: EvaluationConfig, evaluation: _Evaluated, champion: _Evaluated | None, version: str = ""
) -> Verdict:
    """Judge every rule, after all were checked for mistakes.

    Args:
        config: whose ``gate`` holds the rules.
        evaluation: of the candidate.
        champion: evaluation of the champion, None while there is none.
        version: of the champion, for the explanation.

    Raises:
        ExpressionError: a rule with a mistake, or with a metric that was not measured.
    """
    rules: list[Rule] = [parse(text) for text in config.gate]
    models: dict[str, Mapping[str, Any]] = dict(evaluation.result["models"])
    models["candidate"] = models[evaluation.result["candidate"]]
    notes = []
    if champion is not None:
        models["champion"] = champion.result["models"][champion.result["candidate"]]
        if not champion.same_questions(evaluation):
            notes.append(f"champion version {version} was measured on other questions than this candidate")

    def pair(first: MetricPath, second: MetricPath) -> Estimate | None:
        sources = [champion if path.model == "champion" else evaluation for path in (first, second)]
        if first.benchmark is not None:
            pairs = zip(sources, (first, second), strict=True)
            measured = [None if source is None else source.benchmark(path) for source, path in pairs]
            return _pair_on_benchmark(measured, (first, second), config)
        sides = []
        for source, path in zip(sources, (first, second), strict=True):
            if source is None or not source.same_questions(evaluation):
                return None
            sides.append(source.rows_of(path))
        return compare(sides[0], sides[1], first.metric, config)

    return _verdict(rules, models, pair, notes)


def _verdict(rules: Sequence[Rule], models: Mapping[str, Mapping[str, Any]], pair: Pair, notes: list[str]) -> Verdict:
    for rule in rules:  # all of them, before the first is judged
        check_measured(rule, models)
    return Verdict(tuple(judge(rule, models, pair) for rule in rules), tuple(notes))


def judge_benchmarks(
    rules: Sequence[str], models: Mapping[str, Sequence[BenchmarkResult]], config: EvaluationConfig
) -> Verdict:
    """Judge rules over finished benchmarks: ``vthink gate``.

    Args:
        rules: such as ``lower_bound(video_holmes.accuracy - champion.video_holmes.accuracy) > -0.01``.
        models: results by the name that rules know a model by: ``candidate``, and perhaps ``champion``, ``base`` …
        config: confidence, resamples and seed of paired tests.

    Raises:
        ExpressionError: a rule with a mistake, or with a metric that was not measured.
        GateError: a model with two results of one benchmark.
    """
    by_key: dict[str, dict[str, BenchmarkResult]] = {}
    for model, results in models.items():
        by_key[model] = {result.key: result for result in results}
        if len(by_key[model]) < len(results):
            raise GateError(f"'{model}' has two results of one benchmark; give one")
    own = [key for results in by_key.values() for key in results]
    parsed = [parse(rule, tuple(dict.fromkeys((*BENCHMARKS, *own)))) for rule in rules]
    metrics = {name: {key: one.cells for key, one in results.items()} for name, results in by_key.items()}
    notes = []
    for key, mine in by_key.get("candidate", {}).items():
        for model, measured in by_key.items():
            if key not in measured:
                continue
            theirs = measured[key]
            if not theirs.same_questions(mine):
                notes.append(f"{model} was asked other questions of {key} than the candidate: nothing is paired")
            elif theirs.result["settings"].get("video") != mine.result["settings"].get("video"):
                notes.append(f"{model} was shown the videos of {key} otherwise (frames or pixels) than the candidate")

    def pair(first: MetricPath, second: MetricPath) -> Estimate | None:
        sides = [by_key[path.model][str(path.benchmark)] for path in (first, second)]
        return _pair_on_benchmark(sides, (first, second), config)

    return _verdict(parsed, metrics, pair, notes)


_GROUPS = {"by_type": "problem_type", "by_kind": "kind"}
"""Where an item says which group it is in."""


def _pair_on_benchmark(
    sides: Sequence[BenchmarkResult | None], paths: tuple[MetricPath, MetricPath], config: EvaluationConfig
) -> Estimate | None:
    from .results import compare as compare_results

    one, two = sides
    if one is None or two is None:
        return None
    group = paths[0].group
    only = (_GROUPS[group[0]], group[1]) if group else None
    return compare_results(one, two, paths[0].metric, config, (paths[0].frames, paths[1].frames), only)


class _Evaluated:
    """A finished evaluation: its result at once, its items when a paired rule needs them."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage = storage
        self.manifest = manifest
        self.result: dict[str, Any] = storage.read_json(manifest.files["result"])
        self._rows: Rows | None = None
        self._benchmarks: dict[str, BenchmarkResult] = {}

    def same_questions(self, other: _Evaluated) -> bool:
        """Whether both asked the same items of the same data."""
        mine, theirs = (
            (one.result["data"]["fingerprint"], one.result["split"], one.result["settings"]["max_items"])
            for one in (self, other)
        )
        return mine == theirs

    def rows_of(self, path: MetricPath) -> list[dict[str, Any]]:
        """The items that a metric is the mean of."""
        if self._rows is None:
            self._rows = {}
            for line in self._storage.read_bytes(self.manifest.files["items"]).decode().splitlines():
                row = json.loads(line)
                self._rows.setdefault((row["model"], row["frames"]), []).append(row)
        model = self.result["candidate"] if path.model in ("candidate", "champion") else path.model
        rows = self._rows[model, path.frames]
        if path.group is None:
            return rows
        return [row for row in rows if row[_GROUPS[path.group[0]]] == path.group[1]]

    def benchmark(self, path: MetricPath) -> BenchmarkResult | None:
        """A model's result on a benchmark; None where it was not measured on it."""
        from .results import parse_benchmark

        model = self.result["candidate"] if path.model in ("candidate", "champion") else path.model
        prefix = self.manifest.files.get(f"benchmarks/{model}/{path.benchmark}")
        if prefix is None:
            return None
        if prefix not in self._benchmarks:
            result, items = (self._storage.read_bytes(join(prefix, name)) for name in ("result.json", "items.jsonl"))
            self._benchmarks[prefix] = parse_benchmark(result, items, prefix, path.model)
        return self._benchmarks[prefix]


# -- the stage -----------------------------------------------------------------------------------------------


def gate_uri(context: RunContext, evaluation_uri: str) -> str:
    """Where a run's verdict on an evaluation is found: a JSON object with the gate's ``manifest``."""
    name = f"{context.run_id}-{fingerprint(evaluation_uri)}.json"
    return join(context.storage.root_uri, "gate", "verdicts", name)


def read_gate(storage: Storage, context: RunContext, evaluation_uri: str) -> Manifest:
    """The manifest of a run's verdict; ``details`` holds ``verdict``, ``lines`` and ``champion``."""
    return Manifest.read(storage, storage.read_json(gate_uri(context, evaluation_uri))["manifest"])


def gate(run_json: str, config_json: str, evaluation_uri: str) -> str:
    """Judge the candidate of an evaluation.

    Args:
        run_json: `RunContext`.
        config_json: `EvaluationConfig`.
        evaluation_uri: manifest of the evaluation.

    Returns:
        ``pass`` or ``fail``.

    Raises:
        ExpressionError: a rule with a mistake in it.
        GateError: the registry cannot be asked, or the champion does not say how it was evaluated.
        StorageError: the store or something in it is not as expected.
    """
    started = time.monotonic()
    end_with_owner()
    context = RunContext.load(run_json, "run")
    config = EvaluationConfig.load(config_json, "evaluation")
    storage = Storage(context.storage)
    manifest = Manifest.read(storage, evaluation_uri)
    champion = find_champion(context)
    identity = fingerprint(
        "gate",
        [parse(rule).text for rule in config.gate],
        manifest.fingerprint,
        None if champion is None else [champion.version, champion.evaluation_uri],
        context.redo.get("gate", 0),
        __version__,
    )
    prefix = stage_prefix(context, "gate", identity)
    found = Manifest.find(storage, prefix)
    if found is None:
        inputs = {"evaluation": evaluation_uri}
        inputs |= {"champion": champion.evaluation_uri} if champion else {}
        settings = {"gate": list(config.gate)}
        with Tracker.start(context, "gate", identity, settings, inputs) as tracker:
            against = None if champion is None else _Evaluated(storage, Manifest.read(storage, champion.evaluation_uri))
            version = champion.version if champion else ""
            verdict = judge_all(config, _Evaluated(storage, manifest), against, version)
            said = "pass" if verdict.passed else "fail"
            tracker.log_text("gate", "\n".join(verdict.lines) + "\n")
            tracker.set_tags({"vthink.gate": said, "vthink.champion": version or "none"})
            found = Manifest(
                stage="gate",
                fingerprint=identity,
                uri=prefix,
                inputs=inputs,
                counts={
                    "rules": len(verdict.findings),
                    "held": sum(finding.passed for finding in verdict.findings),
                },
                config=settings,
                details={"verdict": said, "lines": verdict.lines, "champion": version or None},
                mlflow_run_id=tracker.run_id,
                seconds=round(time.monotonic() - started, 3),
                git_commit=git_commit(),
            )
            found.write(storage)
    storage.write_json(gate_uri(context, evaluation_uri), {"manifest": found.manifest_uri})
    for line in found.details["lines"]:
        print(line)
    said = str(found.details["verdict"])
    if said not in ("pass", "fail"):
        raise GateError(f"{found.manifest_uri}: verdict '{said}' is neither pass nor fail")
    return said
