"""Gate rules: what a candidate must reach, as data. A rule names a metric and compares it in one of five words::

    {metric: format_rate, at_least: 0.9}                       # the mean itself
    {metric: accuracy, condition: shuffled, at_most: 0.5}
    {metric: accuracy, above: 0.25}                            # the whole interval is above chance
    {metric: accuracy, by_kind: direction, above: sft}         # significantly better than another model, paired
    {metric: accuracy, above: blind, by: 0.05}                 # ... than itself without the video, by 0.05
    {metric: accuracy, benchmark: video-holmes, not_worse_than: champion, by: 0.01}

``at_least`` and ``at_most`` look at the mean, ``above`` and ``below`` at an end of its interval. With a model or
condition ``above``, ``below`` and ``not_worse_than`` look at the interval of the *paired* difference over the same
questions (`statistics.paired_difference`): it is above ``by``, below ``-by``, or above ``-by``.

Mistakes are found when a rule is read: unknown names, and levels that no result can miss or reach (accuracy at least
50). `check_evaluated` finds what will not be evaluated, before anything runs.
"""

import difflib
import math
import typing
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, Strict, ValidationError

from ..common.config import ConfigError, Section, describe
from .benchmarks.registry import BENCHMARKS
from .conditions import CONDITIONS, ORDERED
from .metrics import METRICS, metric_named

MODELS = ("base", "sft", "champion")  # what a candidate can be compared with; ``champion`` is in service

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Comparison = Literal["at_least", "at_most", "above", "below", "not_worse_than"]
_COMPARISONS: tuple[Comparison, ...] = typing.get_args(Comparison)


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of an unknown name: the nearest known one, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known) or 'none'}"


def _known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} '{name}'; {nearest(name, known)}")


class GateRule(Section):
    """One thing that must hold before a model goes into service."""

    metric: str
    """Of the candidate: a metric, or a score of the benchmark."""
    benchmark: str | None = None
    """A public benchmark (``video-holmes`` …) or a set of one's own; null: the held-out split."""
    condition: str = ORDERED
    """How the videos are shown: ``ordered``, ``shuffled``, ``blind`` …"""
    by_kind: str | None = None
    """Only questions of this kind (``metadata.kind``)."""
    by_type: str | None = None
    """Only questions of this problem type (``multiple_choice`` …)."""
    at_least: Number | None = None
    """The mean is this or more."""
    at_most: Number | None = None
    """The mean is this or less."""
    above: Number | str | None = None
    """A number: the interval is above it. A model or condition: significantly higher than that, by more than ``by``."""
    below: Number | str | None = None
    """A number: the interval is below it. A model or condition: significantly lower than that, by more than ``by``."""
    not_worse_than: str | None = None
    """A model: a loss of ``by`` or more against it can be excluded."""
    by: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Margin of a comparison with a model or condition, in units of the metric (0.02: two points)."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_expression(cls, rule: Any) -> Any:
        if isinstance(rule, str):  # as rules once were
            raise ValueError(
                "a rule is no expression: write {metric: accuracy, above: base} or {metric: accuracy, at_least: 0.5} "
                "(components/evaluation/README.md)"
            )
        return rule

    @pydantic.field_validator("above", "below", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        if not isinstance(value, float | int | str | None) or isinstance(value, bool):
            raise ValueError("expected a number, a model or a condition")
        return value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        words = [word for word in _COMPARISONS if getattr(self, word) is not None]
        if len(words) != 1:
            there = ", ".join(words) or "none"
            raise ValueError(f"a rule has exactly one of {', '.join(_COMPARISONS)}; it has {there}")
        if self.by_kind is not None and self.by_type is not None:
            raise ValueError("by_kind and by_type are both there: leave one out")
        if self.benchmark is None or self.benchmark in BENCHMARKS:
            scores = BENCHMARKS.get(self.benchmark).scores if self.benchmark else ()
            _known("metric", self.metric, (*METRICS, *scores))
        _known("condition", self.condition, CONDITIONS)
        if self.other is not None:
            _known("model or condition", self.other, MODELS if words == ["not_worse_than"] else (*MODELS, *CONDITIONS))
            if self.other == self.condition:
                raise ValueError(f"{self.metric} under '{self.condition}' is compared with itself")
            if words == ["not_worse_than"] and not self.by:
                raise ValueError("not_worse_than needs a margin, such as by: 0.02; without a loss at all: above")
        elif self.by:
            raise ValueError("'by' belongs to a comparison with a model or condition")
        if (level := self.level) is not None:  # one that every result, or none, is on the right side of says nothing
            bounded = metric_named(self.metric).bounded
            most = 1.0 if bounded else math.inf
            if not (0 < level <= most if words[0] in ("at_least", "below") else 0 <= level < most):
                ends = "between 0 and 1; metrics are fractions: 0.5, not 50" if bounded else "0 or more"
                raise ValueError(
                    f"{words[0]} {level:g} holds or fails whatever is measured, since {self.metric} is {ends}"
                )
        return self

    @pydantic.model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if value != type(self).model_fields[key].default}

    @property
    def comparison(self) -> Comparison:
        """The one comparison that is set."""
        return next(word for word in _COMPARISONS if getattr(self, word) is not None)

    @property
    def level(self) -> float | None:
        """The number that is compared with; None where it is a model or condition."""
        return None if self.other is not None else float(getattr(self, self.comparison))

    @property
    def other(self) -> str | None:
        """The model or condition that is compared with; None where it is a number."""
        value = getattr(self, self.comparison)
        return value if isinstance(value, str) else None

    @property
    def other_model(self) -> str | None:
        """`other` where it is a model."""
        return self.other if self.other in MODELS else None

    @property
    def other_condition(self) -> str:
        """The condition of the other side of a comparison."""
        return self.other if self.other is not None and self.other_model is None else self.condition

    def __str__(self) -> str:
        condition = None if self.condition == ORDERED else self.condition
        parts = (self.benchmark, condition, self.by_kind and f"kind {self.by_kind}", self.by_type)
        inside = ", ".join(part for part in parts if part)
        margin = f" by {self.by:g}" if self.by else ""
        value = self.other if self.level is None else f"{self.level:g}"
        return f"{self.metric}{f' ({inside})' if inside else ''} {self.comparison.replace('_', ' ')} {value}{margin}"


DEFAULT_GATE = (
    GateRule(metric="format_rate", at_least=0.9),
    GateRule(metric="accuracy", above="base"),
    GateRule(metric="accuracy", not_worse_than="champion", by=0.02),
)


def read_rule(data: Any, source: str) -> GateRule:
    """A rule from a mapping. Raises `ConfigError`: a mistake in it."""
    try:
        return GateRule.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, GateRule)}") from None


def check_evaluated(
    rules: Iterable[GateRule],
    *,
    models: Collection[str] | None = None,
    conditions: Collection[str] | None = None,
    benchmarks: Collection[str] | None = None,
) -> None:
    """Check, before anything is asked, that all that rules name will be evaluated; None: not known yet. The last one of
    ``models`` is the candidate; ``conditions`` are those of the held-out split (benchmarks are asked with frames in
    order). Raises `ValueError`: a rule names something else; says what is evaluated."""
    for rule in rules:
        of_split = conditions if rule.benchmark is None else (ORDERED,)
        checks = [("condition", rule.condition, of_split), ("condition", rule.other_condition, of_split)]
        checks += [("benchmark", rule.benchmark, benchmarks)] if rule.benchmark is not None else []
        checks += [("model", rule.other_model, models)] if rule.other_model not in (None, "champion") else []
        for what, name, evaluated in checks:
            if evaluated is not None and name not in evaluated:
                raise ValueError(
                    f"rule '{rule}': {what} '{name}' will not be evaluated; evaluated are: "
                    f"{', '.join(evaluated) or 'none'}; evaluate it too, or leave the rule out of evaluation.gate"
                )
        if models and rule.other_model == list(models)[-1]:
            raise ValueError(
                f"rule '{rule}': {rule.other_model} is the candidate itself; leave the rule out of evaluation.gate"
            )
