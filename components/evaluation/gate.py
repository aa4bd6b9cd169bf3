"""The stage ``gate``: may this candidate go into service? Results in, a verdict that explains itself out.

The champion is part of its fingerprint: after another has gone into service the same candidate is judged anew. Numbers
are computed from the items, the record of every answer; what ``result.json`` says of them must agree."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ... import __version__
from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.process import end_with_owner
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.client import registry_client
from ..common.tracking.run import Tracker
from .conditions import ORDERED
from .config import EvaluationConfig
from .item import Item
from .metrics import metric_named
from .results import HELD_OUT, BenchmarkResult, read_stage, sealed
from .rules import GateRule, nearest
from .scores import Score
from .statistics import NO_DIFFERENCE, Difference, Resampling
from .summary import difference_of_items, in_group

EVALUATION_TAG = "vthink.evaluation_uri"
"""Tag of a registered version: the manifest of the evaluation that it passed the gate with."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The version in service."""

    version: str
    evaluation_uri: str


def find_champion(context: RunContext) -> Champion | None:
    """The registered version with the alias ``champion``, or None while there is none.

    Raises `UserError`: the registry cannot be asked, or the version does not say how it was evaluated."""
    client = registry_client(context.tracking, context.storage)
    from mlflow.exceptions import MlflowException

    name = context.tracking.registered_model
    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise UserError(f"cannot ask the model registry for the champion of '{name}': {error}") from error
    uri = version.tags.get(EVALUATION_TAG)
    if not uri:
        raise UserError(
            f"champion version {version.version} of '{name}' has no tag {EVALUATION_TAG}; set it to the manifest of "
            "its evaluation, or remove the alias"
        )
    return Champion(str(version.version), uri)


def judge_candidate(run_json: str, config_json: str, evaluation_uri: str) -> str:
    """Judge the candidate of an evaluation (the manifest at ``evaluation_uri``); ``pass`` or ``fail``.

    Raises:
        ConfigError: a rule with a mistake in it.
        UserError: a rule names what was not measured; the registry cannot be asked, or the champion does not say how it
            was evaluated; the store or something in it is not as expected."""
    started = time.monotonic()
    end_with_owner()
    context = RunContext.load(run_json, "run")
    config = EvaluationConfig.load(config_json, "evaluation")
    storage = Storage(context.storage)
    evaluation = Manifest.read(storage, evaluation_uri)
    champion = find_champion(context)
    rules = [rule.model_dump() for rule in config.gate]
    identity = fingerprint(
        "gate",
        rules,
        evaluation.fingerprint,
        None if champion is None else [champion.version, champion.evaluation_uri],
        context.redo.get("gate", 0),
        __version__,
    )
    prefix = stage_prefix(context, "gate", identity)
    manifest = Manifest.find(storage, prefix)
    if manifest is None:
        inputs = {"evaluation": evaluation_uri} | ({"champion": champion.evaluation_uri} if champion else {})
        version = champion.version if champion else None
        with Tracker.start(context, "gate", identity, {"gate": list(map(str, config.gate))}, inputs) as tracker:
            verdict = judge(config.gate, _models(storage, evaluation, champion), config.resampling)
            outcome = "pass" if verdict.passed else "fail"
            tracker.log_text("gate", "\n".join(verdict.lines) + "\n")
            tracker.set_tags({"vthink.gate": outcome, "vthink.champion": version or "none"})
            manifest = Manifest(
                stage="gate",
                fingerprint=identity,
                uri=prefix,
                inputs=inputs,
                counts={"rules": len(verdict.findings), "held": verdict.held},
                config={"gate": rules},
                details={"verdict": outcome, "lines": verdict.lines, "champion": version},
                mlflow_run_id=tracker.run_id,
                seconds=round(time.monotonic() - started, 3),
            )
            manifest.write(storage)
    storage.write_json(gate_uri(context, evaluation_uri), {"manifest": manifest.manifest_uri})
    print(*manifest.details["lines"], sep="\n")
    return str(manifest.details["verdict"])


def gate_uri(context: RunContext, evaluation_uri: str) -> str:
    """Where a run's verdict on an evaluation is found: a JSON object with the gate's ``manifest``."""
    name = f"{context.run_id}-{fingerprint(evaluation_uri)}.json"
    return join(context.storage.root_uri, "gate", "verdicts", name)


def read_gate(storage: Storage, context: RunContext, evaluation_uri: str) -> Manifest:
    """The manifest of a run's verdict; ``details`` holds ``verdict``, ``lines`` and ``champion``."""
    return Manifest.read(storage, storage.read_json(gate_uri(context, evaluation_uri))["manifest"])


def _models(storage: Storage, evaluation: Manifest, champion: Champion | None) -> dict[str, Results]:
    """Results by model: those of the evaluation, its last one also as ``candidate``, and the champion's."""
    models, candidate = read_stage(storage, evaluation)
    models["candidate"] = models[candidate]
    if champion is not None:
        theirs, name = read_stage(storage, Manifest.read(storage, champion.evaluation_uri))
        models["champion"] = theirs[name]
    for one in (one for results in models.values() for one in results.values()):
        sealed(one)
    return dict(models)


Results = Mapping[str, BenchmarkResult]  # one model's results by benchmark; the held-out split is `HELD_OUT`


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one rule."""

    rule: GateRule
    passed: bool
    explanation: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.rule}: {self.explanation}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may go into service, and why."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(finding.passed for finding in self.findings)

    @property
    def held(self) -> int:
        """How many rules hold."""
        return sum(finding.passed for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """The explanation: a line per rule, and the verdict."""
        word = "passed" if self.passed else "failed"
        last = f"gate {word}: {self.held} of {len(self.findings)} rules hold"
        return [*map(str, self.findings), last]


def judge(rules: Sequence[GateRule], models: Mapping[str, Results], resampling: Resampling) -> Verdict:
    """Judge every rule, after all were checked for names of what was not measured.

    ``models`` are results by model: ``candidate``, and those that it is compared with; ``champion`` is absent while
    nothing is in service. Raises `UserError`: a rule names what was not measured, with the nearest name that was; or
    files that contradict each other."""
    for rule in rules:
        _measured(rule, "candidate", rule.condition, models)
        if rule.other is not None and rule.other_model != "champion":
            _measured(rule, rule.other_model or "candidate", rule.other_condition, models)
    return Verdict(tuple(Finding(rule, *_outcome(rule, models, resampling)) for rule in rules))


def _outcome(rule: GateRule, models: Mapping[str, Results], resampling: Resampling) -> tuple[bool, str]:
    """Whether a rule holds, and the numbers, or why there are none."""
    result, items, score = _measured(rule, "candidate", rule.condition, models)
    mine = score.estimate(items, resampling)
    assert mine is not None  # `_measured` saw an item that counts
    if rule.level is not None:
        sides = {"at_least": mine.value >= rule.level, "at_most": mine.value <= rule.level}
        sides |= {"above": mine.low > rule.level, "below": mine.high < rule.level}
        interval = f" [{mine.low:.4f}, {mine.high:.4f}]" if rule.comparison in ("above", "below") else ""
        return sides[rule.comparison], f"{mine.value:.4f}{interval} over {mine.n:,} questions"
    model = rule.other_model or "candidate"
    if model == "champion" and model not in models:
        return True, "there is no champion yet, so this holds by rule"
    try:
        other, theirs, _ = _measured(rule, model, rule.other_condition, models)
        if not result.same_questions(other):
            raise UserError(f"{model} was asked other questions")
        if why := result.incomparable(other) or _asked_differently(rule, result, other):
            raise UserError(why)
        difference = difference_of_items(items, theirs, score, resampling)
        if difference is None:
            raise UserError("fewer than two videos were asked of both")
        lost = {item.id for item in items} ^ {item.id for item in theirs}
        if lost and rule.condition == rule.other_condition:  # an image is asked about in order alone
            raise UserError(f"{len(lost)} questions are answered by one of the two alone, such as '{min(lost)}'")
    except UserError as error:  # of an evaluation that was made under another configuration: no mistake of the rule
        why = str(error).removeprefix(f"rule '{rule}': ")
        return False, f"cannot be judged: {why}; evaluate {model} as the candidate, or leave the rule out"
    held = holds(rule, difference)
    text = (
        f"{mine.value:.4f}; paired difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"over {difference.n:,} questions of {difference.clusters:,} videos, {difference.verdict}"
    )
    if not held and difference.verdict == NO_DIFFERENCE and difference.detectable:
        text += f" (detectable: {difference.detectable:.4f})"
    return held, text


def holds(rule: GateRule, difference: Difference) -> bool:
    """Whether a paired difference, candidate − other, is what a rule about a model or condition asks for."""
    if rule.comparison == "above":
        return difference.low > rule.by
    if rule.comparison == "below":
        return difference.high < -rule.by
    return difference.low > -rule.by if metric_named(rule.metric).higher_is_better else difference.high < rule.by


def _asked_differently(rule: GateRule, ours: BenchmarkResult, theirs: BenchmarkResult) -> str | None:
    """What the other model of a rule was asked with differently, in words; None: nothing, or the rule allows it."""
    pairs = {
        name: (getattr(theirs.result.settings, name), getattr(ours.result.settings, name))
        for name in ("video", "max_new_tokens", "temperature", "top_p")
    }
    pairs["prompt"] = (theirs.result.settings.model.prompt, ours.result.settings.model.prompt)
    changed = [f"{name} {first}, not {second}" for name, (first, second) in pairs.items() if first != second]
    if not changed or rule.asked_differently:
        return None
    return f"{theirs.model} was asked differently ({'; '.join(changed)}); where that is meant: asked_differently: true"


def _measured(
    rule: GateRule, model: str, condition: str, models: Mapping[str, Results]
) -> tuple[BenchmarkResult, list[Item], Score]:
    """One side of a rule: its model under one condition, the items that it is about, and what they count.

    Raises `UserError`: it was not measured, with the nearest name that was; or files that contradict each other."""

    def unmeasured(what: str, name: str, known: Collection[str]) -> UserError:
        return UserError(f"rule '{rule}': {what} '{name}' of {model} was not measured; {nearest(name, known)}")

    if model not in models:
        raise UserError(f"rule '{rule}': there is no model '{model}' in this evaluation; it has: {', '.join(models)}")
    benchmark = rule.benchmark or HELD_OUT
    if benchmark not in models[model]:
        raise unmeasured("benchmark", benchmark, models[model])
    result = models[model][benchmark]
    items = result.items.get(condition)
    if not items:
        raise unmeasured("condition", condition, [name for name, measured in result.items.items() if measured])
    named = {"by_kind": rule.by_kind, "by_type": rule.by_type}
    group = next(((by, name) for by, name in named.items() if name is not None), None)
    chosen, cell = [item for item in items if in_group(item, group)], result.result.conditions[condition]
    if group is not None and not chosen:
        known = [name for by, name in cell.groups if by == group[0]]
        raise unmeasured("kind" if group[0] == "by_kind" else "problem type", group[1], known)
    score = result.score(rule.metric)
    if all(score.value(item) is None for item in chosen):
        raise unmeasured("metric", rule.metric, dict.fromkeys((*cell.scores, *cell.metrics)))
    _check_agreement(result, condition, rule.metric, score)
    if condition == ORDERED and len(items) != result.result.items:
        counts = f"{len(items)} items of {result.result.items} questions (ordered)"
        raise UserError(f"{result.where}: {counts}: some were lost; evaluate again")
    return result, chosen, score


def _check_agreement(result: BenchmarkResult, condition: str, metric: str, score: Score) -> None:
    """The mean in ``result.json`` is that of the items; a file that was changed, or cut off, is not judged by."""
    counted = [(item, value) for item in result.items[condition] if (value := score.value(item)) is not None]
    items = [item for item, _ in counted]
    mean = float(np.average([value for _, value in counted], weights=score.weights(items)))
    stated = result.result.conditions[condition].estimate(metric)
    if stated is None or stated.n != len(items) or not math.isclose(stated.value, mean, abs_tol=1e-5):
        there = "nothing" if stated is None else f"{stated.value:g} of {stated.n}"
        raise UserError(
            f"{result.where}: for {metric} ({condition}) result.json says {there}, the items {mean:g} of {len(items)}: "
            "one of the files was changed; evaluate again"
        )
    if score.bounded and not 0 <= mean <= 1:
        raise UserError(f"{result.where}: {metric} ({condition}) is {mean:g}, outside of 0 to 1; evaluate again")
