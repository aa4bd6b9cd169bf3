"""The gate's language: comparisons of metrics, read without ever executing anything.

A rule is one comparison, or several joined by ``and``, ``or``, ``not``::

    candidate.ordered.accuracy.low > base.ordered.accuracy.value
    lower_bound(candidate.accuracy - champion.accuracy) > -0.02

A metric is ``MODEL[.FRAMES][.by_type.TYPE | .by_kind.KIND].METRIC[.PART]``; frames are ``ordered`` and the
part is ``value`` where left out. Numbers, ``+ - * /``, ``abs``, ``min``, ``max`` and ``lower_bound`` (lower
end of the interval; of a difference of two metrics, of the difference paired by item) complete it.

What needs the champion is unknown while there is none (Kleene's three values), and a rule that stays unknown
is satisfied, in words. ``ast`` only parses; the nodes allowed are listed in `_check`.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .statistics import Estimate

MODELS = ("base", "sft", "grpo", "candidate", "champion")
"""``candidate`` is the last model of the chain, the one that would be registered; ``champion`` is in
service."""
FRAMES = ("ordered", "shuffled", "other_video", "reversed", "single_frame", "grey")
METRICS = (
    "accuracy",
    "score",
    "format_rate",
    "format_video_r1",
    "format_video_thinker",
    "mra",
    "wer",
    "rouge",
    "miou",
    "recall_at_30",
    "recall_at_50",
    "recall_at_70",
)
"""Names of metrics; every one is a mean over items."""
PARTS = ("value", "low", "high", "n")
GROUPS = ("by_type", "by_kind")
FUNCTIONS = ("lower_bound", "abs", "min", "max")
MAX_LENGTH = 500
"""Longest rule in characters: bounds what parsing can cost."""

_ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}


class ExpressionError(ValueError):
    """A rule with a mistake in it, in one line that names the rule, the place and what to do."""


@dataclass(frozen=True, slots=True)
class MetricPath:
    """One metric as a rule names it."""

    model: str
    frames: str
    group: tuple[str, str] | None
    """``("by_kind", "direction")``, or none for all items."""
    metric: str
    part: str | None
    """``low`` …; none where left out."""

    @classmethod
    def parse(cls, text: str) -> MetricPath:
        """Read a dotted path.

        Raises:
            ExpressionError: an unknown name, with the nearest known one.
        """
        names = text.split(".")
        model = _known(names.pop(0), MODELS, "model", text)
        frames = names.pop(0) if names and names[0] in FRAMES else "ordered"
        group = None
        if names and names[0] in GROUPS:
            if len(names) < 2:
                raise ExpressionError(f"'{text}' ends before the name of the group")
            group = (names.pop(0), names.pop(0))
        if not names:
            raise ExpressionError(f"'{text}' names no metric; metrics: {', '.join(METRICS)}")
        leading = (*METRICS, *(FRAMES if group is None else ()), *(GROUPS if group is None else ()))
        metric = _known(names.pop(0), METRICS, "metric", text, leading)
        part = _known(names.pop(0), PARTS, "part", text) if names else None
        if names:
            raise ExpressionError(f"'{text}' goes on after '{part}'")
        return cls(model, frames, group, metric, part)

    @property
    def keys(self) -> tuple[str, ...]:
        """Where the metric stands below ``models.<model>`` of ``result.json``."""
        return (self.frames, *(self.group or ()), self.metric)

    def __str__(self) -> str:
        return ".".join((self.model, *self.keys, *((self.part,) if self.part else ())))


def _known(name: str, known: Sequence[str], what: str, text: str, suggest: Sequence[str] = ()) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, suggest or known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise ExpressionError(f"unknown {what} '{name}' in '{text}'; {hint}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One expression that has been read and found well formed."""

    text: str
    tree: ast.expr

    @property
    def paths(self) -> list[MetricPath]:
        """The metrics it uses."""
        return [MetricPath.parse(text) for text in _path_texts(self.tree)]


def parse(text: str) -> Rule:
    """Read a rule.

    Raises:
        ExpressionError: it is not a rule of this language.
    """
    text = " ".join(text.split())
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"rule '{text[:40]}…': longer than {MAX_LENGTH} characters; make it several rules")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
        raise ExpressionError(f"rule '{text}': {reason}") from None
    try:
        if _check(tree) != "truth":
            raise ExpressionError("a rule compares something, such as `candidate.accuracy.low > 0.5`")
    except ExpressionError as error:
        raise ExpressionError(f"rule '{text}': {error}") from None
    return Rule(text, tree)


def _check(node: ast.expr) -> str:
    """``truth``, ``metric`` (has an interval) or ``number``; raises on everything that is not in the
    language."""
    match node:
        case ast.BoolOp():
            if any(_check(value) != "truth" for value in node.values):
                raise ExpressionError("'and' and 'or' join comparisons, not numbers")
            return "truth"
        case ast.UnaryOp(op=ast.Not()):
            if _check(node.operand) != "truth":
                raise ExpressionError("'not' negates a comparison, not a number")
            return "truth"
        case ast.Compare():
            for operation in node.ops:
                if type(operation) not in _COMPARISONS:
                    raise ExpressionError("comparisons are > >= < <= == !=")
            for value in (node.left, *node.comparators):
                _number(value)
            return "truth"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _number(node.operand)
        case ast.BinOp():
            if type(node.op) not in _ARITHMETIC:
                raise ExpressionError("arithmetic is + - * /")
            kinds = {_number(node.left), _number(node.right)}
            return "metric" if "metric" in kinds else "number"
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            raise ExpressionError(f"{node.value!r} is not a number")
        case ast.Constant(value=int() | float() as value):
            if not abs(value) <= sys.float_info.max:
                raise ExpressionError("numbers must be finite")
            return "number"
        case ast.Name() | ast.Attribute():
            return "metric" if MetricPath.parse(_dotted(node)).part is None else "number"
        case ast.Call():
            return _check_call(node)
    raise ExpressionError(f"'{ast.unparse(node)[:60]}' is not part of the gate's language")


def _number(node: ast.expr) -> str:
    kind = _check(node)
    if kind == "truth":
        raise ExpressionError(f"'{ast.unparse(node)[:60]}' is true or false, where a number is needed")
    return kind


def _check_call(node: ast.Call) -> str:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)[:40]
    _known(name, FUNCTIONS, "function", ast.unparse(node)[:60])
    if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise ExpressionError(f"{name}() takes plain arguments")
    kinds = [_number(argument) for argument in node.args]
    if name in ("lower_bound", "abs") and len(kinds) != 1:
        raise ExpressionError(f"{name}() takes one argument")
    if name in ("min", "max") and len(kinds) < 2:
        raise ExpressionError(f"{name}() takes two arguments or more")
    if name == "lower_bound":
        if kinds[0] != "metric":
            raise ExpressionError("lower_bound() takes a metric with its interval; leave out .value, .low, .high")
        return "number"
    return "metric" if "metric" in kinds else "number"


def _dotted(node: ast.expr) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ExpressionError(f"'{ast.unparse(node)[:60]}' is not a metric")
    return ".".join([node.id, *reversed(names)])


def _path_texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield _dotted(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _path_texts(child)


# -- judging -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one rule."""

    rule: str
    passed: bool
    explanation: str
    """The rule with the numbers put in, or why it could not be computed."""

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.rule}  ({self.explanation})"


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    low: float
    high: float
    text: str
    path: MetricPath | None = None


@dataclass(frozen=True, slots=True)
class _Unknown:
    text: str


Pair = Callable[[MetricPath, MetricPath], Estimate | None]
"""The paired difference of two metrics over the same items, or none where they share no items."""


def judge(rule: Rule, models: Mapping[str, Mapping[str, Any]], pair: Pair | None = None) -> Finding:
    """Evaluate a rule.

    Args:
        rule: from `parse`.
        models: by name, the ``models.<name>`` part of ``result.json``; ``champion`` is absent while there is
        none. pair: computes a paired difference; without it ``lower_bound(a - b)`` is ``a.low - b.high``.

    Raises:
        ExpressionError: a metric that was not measured (`check_measured` finds these beforehand).
    """
    try:
        truth, text = _Judge(models, pair).truth(rule.tree)
    except ArithmeticError as error:
        return Finding(rule.text, False, f"cannot be computed: {error}")
    if truth is None:
        return Finding(rule.text, True, f"{text}: there is no champion yet, so this holds by rule")
    return Finding(rule.text, truth, text)


def check_measured(rule: Rule, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every metric of a rule was measured.

    Raises:
        ExpressionError: naming the nearest metric that was.
    """
    for path in rule.paths:
        if path.model == "champion" and "champion" not in models:
            continue
        try:
            _lookup(path, models)
        except ExpressionError as error:
            raise ExpressionError(f"rule '{rule.text}': {error}") from None


def check_asked(rule: Rule, models: Sequence[str], frames: Sequence[str]) -> None:
    """Check, before anything is asked, that the models and frame conditions of a rule will be.

    Raises:
        ExpressionError: naming those that will.
    """
    for path in rule.paths:
        known_models = (*models, "candidate", "champion")
        for what, name, known in (("model", path.model, known_models), ("frames", path.frames, frames)):
            if name not in known:
                raise ExpressionError(
                    f"rule '{rule.text}': {what} '{name}' will not be evaluated; evaluated are: {', '.join(known)}"
                )


def _lookup(path: MetricPath, models: Mapping[str, Mapping[str, Any]]) -> Mapping[str, float]:
    if path.model not in models:
        raise ExpressionError(f"'{path}': no model '{path.model}' in this evaluation; it has: {', '.join(models)}")
    current: Any = models[path.model]
    for key in path.keys:
        if not isinstance(current, Mapping) or key not in current:
            measured = sorted(_measured(models[path.model]))
            wanted = ".".join(path.keys)
            near = difflib.get_close_matches(wanted, measured, n=1, cutoff=0.3)
            hint = f"; nearest: '{path.model}.{near[0]}'" if near else ""
            raise ExpressionError(f"'{path.model}.{wanted}' was not measured{hint}")
        current = current[key]
    found: Mapping[str, float] = current
    return found


def _measured(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            if "value" in value and "low" in value:
                yield prefix + key
            else:
                yield from _measured(value, f"{prefix}{key}.")


class _Judge:
    def __init__(self, models: Mapping[str, Mapping[str, Any]], pair: Pair | None) -> None:
        self.models = models
        self.pair = pair

    def truth(self, node: ast.expr) -> tuple[bool | None, str]:
        """(true, false or unknown; the text with numbers)."""
        match node:
            case ast.BoolOp():
                parts = [self.truth(value) for value in node.values]
                values = [value for value, _ in parts]
                decisive = isinstance(node.op, ast.Or)  # `or` is settled by one True, `and` by one False
                settled = decisive if decisive in values else (None if None in values else not decisive)
                word = " or " if decisive else " and "
                return settled, word.join(f"({text})" if len(parts) > 1 else text for _, text in parts)
            case ast.UnaryOp():
                value, text = self.truth(node.operand)
                return (None if value is None else not value), f"not ({text})"
            case ast.Compare():
                return self.compare(node)
        raise AssertionError(ast.dump(node))  # _check admits nothing else

    def compare(self, node: ast.Compare) -> tuple[bool | None, str]:
        numbers = [self.number(value) for value in (node.left, *node.comparators)]
        text = numbers[0].text
        holds: bool | None = True
        for left, operation, right in zip(numbers, node.ops, numbers[1:], strict=False):
            symbol, compare = _COMPARISONS[type(operation)]
            text += f" {symbol} {right.text}"
            if isinstance(left, _Unknown) or isinstance(right, _Unknown):
                holds = None if holds is not False else False
            elif math.isnan(left.value) or math.isnan(right.value):
                raise ArithmeticError(f"not a number in {text}")
            elif not compare(left.value, right.value):
                holds = False
        return holds, text

    def number(self, node: ast.expr) -> _Number | _Unknown:
        match node:
            case ast.Constant(value=int() | float() as value):
                return _Number(float(value), float(value), float(value), f"{value}")
            case ast.UnaryOp():
                operand = self.number(node.operand)
                sign = "-" if isinstance(node.op, ast.USub) else "+"
                if isinstance(operand, _Unknown) or sign == "+":
                    return replace(operand, text=f"{sign}{operand.text}")
                return _Number(-operand.value, -operand.high, -operand.low, f"-{operand.text}")
            case ast.Name() | ast.Attribute():
                return self.metric(MetricPath.parse(_dotted(node)))
            case ast.BinOp():
                return self.arithmetic(node)
            case ast.Call(func=ast.Name(id=name)):
                return self.call(name, [self.number(argument) for argument in node.args])
        raise AssertionError(ast.dump(node))  # _check admits nothing else

    def metric(self, path: MetricPath) -> _Number | _Unknown:
        if path.model == "champion" and "champion" not in self.models:
            return _Unknown(str(path))
        found = _lookup(path, self.models)
        if path.part is not None:
            value = float(found[path.part])
            return _Number(value, value, value, _show(value))
        value = float(found["value"])
        return _Number(value, float(found["low"]), float(found["high"]), _show(value), path)

    def arithmetic(self, node: ast.BinOp) -> _Number | _Unknown:
        left, right = self.number(node.left), self.number(node.right)
        symbol, operation = _ARITHMETIC[type(node.op)]
        texts = [
            f"({part.text})" if isinstance(child, ast.BinOp) and symbol in "*/-" else part.text
            for part, child in ((left, node.left), (right, node.right))
        ]
        text = f"{texts[0]} {symbol} {texts[1]}"
        if isinstance(left, _Unknown) or isinstance(right, _Unknown):
            return _Unknown(text)
        value = operation(left.value, right.value)
        if symbol == "-" and left.path and right.path and self.pair is not None:
            paired = self.pair(left.path, right.path)
            if paired is not None:
                text += f" = {_show(paired.value)} paired over {paired.n} items"
                return _Number(paired.value, paired.low, paired.high, text)
        if symbol == "/" and right.low <= 0 <= right.high:
            return _Number(value, -math.inf, math.inf, text)
        corners = [operation(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        return _Number(value, min(corners), max(corners), text)

    def call(self, name: str, arguments: Sequence[_Number | _Unknown]) -> _Number | _Unknown:
        text = f"{name}({', '.join(argument.text for argument in arguments)})"
        known = [argument for argument in arguments if isinstance(argument, _Number)]
        if len(known) < len(arguments):
            return _Unknown(text)
        first = known[0]
        if name == "lower_bound":
            return _Number(first.low, first.low, first.low, f"{text} = {_show(first.low)}")
        if name == "abs":
            ends = sorted((abs(first.low), abs(first.high)))
            low = 0.0 if first.low <= 0 <= first.high else ends[0]
            return _Number(abs(first.value), low, ends[1], text)
        choose = min if name == "min" else max
        return _Number(
            choose(a.value for a in known), choose(a.low for a in known), choose(a.high for a in known), text
        )


def _show(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:g}"
