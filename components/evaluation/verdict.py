"""Judging a candidate by the rules of a gate: results in, a verdict that explains itself out.

Numbers are computed from the items, the record of every answer; what ``result.json`` says of them must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from .config import EvaluationConfig
from .metrics import metric_named
from .results import HELD_OUT, BenchmarkResult, Group
from .rules import MODELS, GateRule, nearest
from .statistics import NO_DIFFERENCE, Difference, Estimate
from .summary import compare, in_group

Results = Mapping[str, BenchmarkResult]
"""One model's results by benchmark."""


def results_of(results: Sequence[BenchmarkResult]) -> Results:
    """Results of one model by benchmark; where there is one alone, rules that name no benchmark are about it.

    Raises:
        UserError: two results of one benchmark.
    """
    by_name = {result.benchmark: result for result in results}
    if len(by_name) < len(results):
        raise UserError(f"'{results[0].model}' has two results of one benchmark; give one")
    return by_name | ({HELD_OUT: results[0]} if len(results) == 1 else {})


_SETTINGS = ("prompt", "video", "max_new_tokens", "temperature", "top_p")
"""What two models may be asked with differently, as far as it is recorded."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one rule."""

    rule: GateRule
    passed: bool
    explanation: str
    """The numbers, or why there are none."""

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.rule}: {self.explanation}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may go into service, and why."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

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
        """The explanation: a line per rule, notes, and the verdict."""
        word = "passed" if self.passed else "failed"
        last = f"gate {word}: {self.held} of {len(self.findings)} rules hold"
        return [*map(str, self.findings), *(f"note  {note}" for note in self.notes), last]


def judge(rules: Sequence[GateRule], models: Mapping[str, Results], config: EvaluationConfig) -> Verdict:
    """Judge every rule, after all were checked for names of what was not measured.

    Args:
        rules: that must all hold.
        models: results by model: ``candidate``, and those that it is compared with; ``champion`` is absent while
            nothing is in service.
        config: confidence, resamples and seed of intervals and paired tests.

    Raises:
        UserError: a rule names what was not measured, with the nearest name that was; or files that contradict
            each other.
    """
    for rule in rules:
        _side(rule, "candidate", rule.condition, models, config)
        if rule.other_model is None:
            _side(rule, "candidate", rule.other_condition, models, config)
        elif rule.other_model != "champion":
            _side(rule, rule.other_model, rule.condition, models, config)
    notes = dict.fromkeys(note for rule in rules for note in _notes(rule, models))
    return Verdict(tuple(_finding(rule, models, config) for rule in rules), tuple(notes))


def _finding(rule: GateRule, models: Mapping[str, Results], config: EvaluationConfig) -> Finding:
    mine = _side(rule, "candidate", rule.condition, models, config)
    if rule.level is not None:
        return _against_level(rule, rule.level, mine)
    model = rule.other_model or "candidate"
    if model == "champion":
        if model not in models:
            return Finding(rule, True, "there is no champion yet, so this holds by rule")
        try:
            _side(rule, model, rule.condition, models, config)
        except UserError as error:  # of an evaluation made under another configuration: no mistake of the rule
            return _undecided(rule, str(error))
    benchmark = rule.benchmark or HELD_OUT
    first, second = models["candidate"][benchmark], models[model][benchmark]
    if not first.same_questions(second):
        return _undecided(rule, f"{model} was asked other questions")
    conditions = (rule.condition, rule.other_condition)
    difference = compare(first, second, rule.metric, config.resampling, conditions, _group(rule))
    if difference is None:
        return _undecided(rule, "fewer than two videos were asked of both")
    return _against_other(rule, mine, difference)


def _against_level(rule: GateRule, level: float, mine: Estimate) -> Finding:
    held = {
        "at_least": mine.value >= level,
        "at_most": mine.value <= level,
        "above": mine.low > level,
        "below": mine.high < level,
    }[rule.comparison]
    interval = f" [{mine.low:.4f}, {mine.high:.4f}]" if rule.comparison in ("above", "below") else ""
    return Finding(rule, held, f"{mine.value:.4f}{interval} over {mine.n:,} questions")


def holds(rule: GateRule, difference: Difference) -> bool:
    """Whether a paired difference, candidate − other, is what a rule about a model or condition asks for."""
    if rule.comparison == "above":
        return difference.low > rule.by
    if rule.comparison == "below":
        return difference.high < -rule.by
    higher_is_better = metric_named(rule.metric).higher_is_better
    return difference.low > -rule.by if higher_is_better else difference.high < rule.by


def _against_other(rule: GateRule, mine: Estimate, difference: Difference) -> Finding:
    held = holds(rule, difference)
    text = (
        f"{mine.value:.4f}; paired difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] "
        f"over {difference.n:,} questions of {difference.clusters:,} videos, {difference.verdict}"
    )
    if not held and difference.verdict == NO_DIFFERENCE and difference.detectable:
        text += f" (detectable: {difference.detectable:.4f})"
    return Finding(rule, held, text)


def _undecided(rule: GateRule, why: str) -> Finding:
    hint = "; evaluate it as the candidate was, or leave the rule out" if rule.other_model else ""
    return Finding(rule, False, f"cannot be judged: {why}{hint}")


def _notes(rule: GateRule, models: Mapping[str, Results]) -> list[str]:
    """What the other model of a rule was asked with differently."""
    benchmark = rule.benchmark or HELD_OUT
    theirs = models.get(rule.other_model or "candidate", {}).get(benchmark)
    if theirs is None:
        return []
    changed = [
        f"{name} {value}, not {mine}"
        for name, value, mine in zip(
            _SETTINGS, _recorded(theirs), _recorded(models["candidate"][benchmark]), strict=True
        )
        if value != mine
    ]
    place = f" on {rule.benchmark}" if rule.benchmark else ""
    return [f"{rule.other_model} was asked differently{place}: {'; '.join(changed)}"] if changed else []


def _recorded(result: BenchmarkResult) -> list[object]:
    """The values of `_SETTINGS`."""
    settings = result.result.settings
    return [settings.model.prompt, *(getattr(settings, name) for name in _SETTINGS[1:])]


# -- numbers -------------------------------------------------------------------------------------------------


def _group(rule: GateRule) -> Group | None:
    if rule.by_kind is not None:
        return "by_kind", rule.by_kind
    return ("by_type", rule.by_type) if rule.by_type is not None else None


def _side(
    rule: GateRule, model: str, condition: str, models: Mapping[str, Results], config: EvaluationConfig
) -> Estimate:
    """A rule's metric of one model under one condition.

    Raises:
        UserError: it was not measured, with the nearest name that was; or files that contradict each other.
    """

    def unmeasured(what: str, name: str, known: Sequence[str]) -> UserError:
        return UserError(f"rule '{rule}': {what} '{name}' of {model} was not measured; {nearest(name, known)}")

    if model not in models:
        there = ", ".join(name for name in (*MODELS, "candidate") if name in models)
        raise UserError(f"rule '{rule}': there is no model '{model}' in this evaluation; it has: {there}")
    benchmark = rule.benchmark or HELD_OUT
    if benchmark not in models[model]:
        raise unmeasured(
            "benchmark", benchmark or "held-out split", [name for name in models[model] if name != HELD_OUT]
        )
    result = models[model][benchmark]
    items = result.items.get(condition)
    if not items:
        raise unmeasured("condition", condition, [name for name, asked in result.items.items() if asked])
    group = _group(rule)
    chosen = [item for item in items if in_group(item, group)]
    if group is not None and not chosen:
        known = [name for by, name in result.result.conditions[condition].groups if by == group[0]]
        raise unmeasured(group[0].removeprefix("by_").replace("type", "problem type"), group[1], known)
    score = result.score(rule.metric)
    _check_agreement(result, condition, rule.metric)
    estimate = score.estimate(chosen, config.resampling)
    if estimate is None:
        cell = result.result.conditions[condition]
        raise unmeasured("metric", rule.metric, list(cell.metrics | cell.scores))
    return estimate


def _check_agreement(result: BenchmarkResult, condition: str, metric: str) -> None:
    """The mean in ``result.json`` is that of the items; a file that was changed, or cut off, is not judged by."""
    score = result.score(metric)
    counted = [(item, value) for item in result.items[condition] if (value := score.value(item)) is not None]
    stated = result.result.conditions[condition].estimate(metric)
    if stated is None or not counted:
        return
    if score.bounded and not 0 <= stated.value <= 1:
        raise UserError(f"{result.where}result.json: {metric} is {stated.value:g}, outside of 0 to 1; evaluate again")
    weights = score.weights([item for item, _ in counted])
    mean = float(np.average([value for _, value in counted], weights=weights))
    if stated.n != len(counted) or not math.isclose(stated.value, mean, abs_tol=1e-5):
        raise UserError(
            f"{result.where}: result.json says {metric} {stated.value:g} of {stated.n} items, items.jsonl "
            f"{mean:g} of {len(counted)}: one of them was changed; evaluate again"
        )
