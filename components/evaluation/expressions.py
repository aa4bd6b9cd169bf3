"""The gate's language: comparisons of metrics, read without ever executing anything.

A rule is one comparison, or several joined by ``and``, ``or``, ``not``::

    candidate.ordered.accuracy.low > base.ordered.accuracy.value
    lower_bound(candidate.accuracy - champion.accuracy) > -0.02

    lower_bound(video_holmes.accuracy - champion.video_holmes.accuracy) > -0.01

A metric is ``[MODEL.][BENCHMARK.][FRAMES.][by_type.TYPE. | by_kind.KIND.]METRIC[.PART]``. Without a benchmark it is
the held-out split's; the model is ``candidate`` where a benchmark begins the path, frames are ``ordered`` and the
part is ``value`` where left out. Numbers, ``+ - * /``, ``abs``, ``min``, ``max`` complete it, and

- ``lower_bound``, ``upper_bound``: an end of the interval; of a difference of two metrics on the same items, of the
  difference paired by item;
- ``p_value(a - b)``: of the paired test over videos (`statistics.paired_difference`).

Mistakes are found when a rule is read, before anything runs: unknown names, with the nearest known one, numbers where
a comparison is needed, comparisons that no result can fulfil or fail (``accuracy > 50``).

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

from .statistics import Difference, Estimate

MODELS = ("base", "sft", "grpo", "candidate", "champion")
"""``candidate`` is the last model of the chain, the one that would be registered; ``champion`` is in
service."""
FRAMES = ("ordered", "shuffled", "other_video", "reversed", "single_frame", "blind")
METRICS = (
    "accuracy",
    "accuracy_paper",
    "score",
    "format_rate",
    "format_video_r1",
    "format_video_thinker",
    "mra",
    "mra_inclusive",
    "wer",
    "rouge",
    "miou",
    "recall_at_30",
    "recall_at_50",
    "recall_at_70",
    "clue_iou",
    "caption_rouge_l",
    "caption_bleu_1",
    "caption_bleu_4",
    "caption_meteor",
)
"""Names of metrics; every one is a mean over items, and but for ``wer`` in [0, 1]."""
BENCHMARKS = (
    "video_holmes",
    "cg_bench",
    "cg_bench_reasoning",
    "vrbench",
    "vrbench_summary",
    "videommmu",
    "vsi_bench",
    "mmvu",
    "mvbench",
    "tempcompass",
    "videomme",
)
"""Public benchmarks as rules name them (`benchmarks.BENCHMARKS`, with ``_`` for ``-``)."""
SCORES = (
    "overall",
    "overall_video_r1",
    "accuracy_choice",
    "accuracy_open",
    "accuracy_by_task",
    "multi_choice",
    "yes_no",
    "caption_matching",
    "captioning_overlap",
)
"""Scores of benchmarks (`benchmarks.Benchmark.scores`) that are no metric of every item."""
UNBOUNDED = ("wer",)
"""Metrics that can exceed 1."""
PARTS = ("value", "low", "high", "n")
GROUPS = ("by_type", "by_kind")
FUNCTIONS = ("lower_bound", "upper_bound", "p_value", "abs", "min", "max")
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
    benchmark: str | None
    """None: the held-out split."""
    frames: str
    group: tuple[str, str] | None
    """``("by_kind", "direction")``, or none for all items."""
    metric: str
    part: str | None
    """``low`` …; none where left out."""

    @classmethod
    def parse(cls, text: str, benchmarks: Sequence[str] = BENCHMARKS) -> MetricPath:
        """Read a dotted path.

        Raises:
            ExpressionError: an unknown name, with the nearest known one.
        """
        names = text.split(".")
        if names[0] in benchmarks:
            model = "candidate"
        else:
            model = _known(names.pop(0), MODELS, "model", text, (*MODELS, *benchmarks))
        benchmark = names.pop(0) if names and names[0] in benchmarks else None
        frames = names.pop(0) if names and names[0] in FRAMES else "ordered"
        group = None
        if names and names[0] in GROUPS:
            if len(names) < 2:
                raise ExpressionError(f"'{text}' ends before the name of the group")
            group = (names.pop(0), names.pop(0))
        metrics = METRICS if benchmark is None else (*METRICS, *SCORES)
        if not names:
            raise ExpressionError(f"'{text}' names no metric; metrics: {', '.join(metrics)}")
        others = () if group else (*FRAMES, *GROUPS, *(benchmarks if benchmark is None else ()))
        metric = _known(names.pop(0), metrics, "metric", text, (*metrics, *others))
        part = _known(names.pop(0), PARTS, "part", text) if names else None
        if names:
            raise ExpressionError(f"'{text}' goes on after '{part}'")
        return cls(model, benchmark, frames, group, metric, part)

    @property
    def keys(self) -> tuple[str, ...]:
        """Where the metric stands below ``models.<model>`` of ``result.json``."""
        return (*((self.benchmark,) if self.benchmark else ()), self.frames, *(self.group or ()), self.metric)

    def pairs_with(self, other: MetricPath) -> bool:
        """Whether both are the same metric of the same questions, so that a difference is paired by item."""
        mine, theirs = ((p.benchmark, p.group, p.metric) for p in (self, other))
        return mine == theirs and (self.model, self.frames) != (other.model, other.frames)

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
    benchmarks: tuple[str, ...] = BENCHMARKS
    """Names of benchmarks that it may use."""

    @property
    def paths(self) -> list[MetricPath]:
        """The metrics it uses."""
        return [MetricPath.parse(text, self.benchmarks) for text in _path_texts(self.tree)]


def parse(text: str, benchmarks: tuple[str, ...] = BENCHMARKS) -> Rule:
    """Read a rule.

    Args:
        text: of the rule.
        benchmarks: names of benchmarks that it may use.

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
        if _check(tree, benchmarks) != "truth":
            raise ExpressionError("a rule compares something, such as `candidate.accuracy.low > 0.5`")
    except ExpressionError as error:
        raise ExpressionError(f"rule '{text}': {error}") from None
    return Rule(text, tree, benchmarks)


def _check(node: ast.expr, benchmarks: Sequence[str]) -> str:
    """``truth``, ``metric`` (has an interval) or ``number``; raises on everything that is not in the
    language."""
    match node:
        case ast.BoolOp():
            if any(_check(value, benchmarks) != "truth" for value in node.values):
                raise ExpressionError("'and' and 'or' join comparisons, not numbers")
            return "truth"
        case ast.UnaryOp(op=ast.Not()):
            if _check(node.operand, benchmarks) != "truth":
                raise ExpressionError("'not' negates a comparison, not a number")
            return "truth"
        case ast.Compare():
            for operation in node.ops:
                if type(operation) not in _COMPARISONS:
                    raise ExpressionError("comparisons are > >= < <= == !=")
            for value in (node.left, *node.comparators):
                _number(value, benchmarks)
            _check_possible(node, benchmarks)
            return "truth"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _number(node.operand, benchmarks)
        case ast.BinOp():
            if type(node.op) not in _ARITHMETIC:
                raise ExpressionError("arithmetic is + - * /")
            kinds = {_number(node.left, benchmarks), _number(node.right, benchmarks)}
            return "metric" if "metric" in kinds else "number"
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            raise ExpressionError(f"{node.value!r} is not a number")
        case ast.Constant(value=int() | float() as value):
            if not abs(value) <= sys.float_info.max:
                raise ExpressionError("numbers must be finite")
            return "number"
        case ast.Name() | ast.Attribute():
            return "metric" if MetricPath.parse(_dotted(node), benchmarks).part is None else "number"
        case ast.Call():
            return _check_call(node, benchmarks)
    raise ExpressionError(f"'{ast.unparse(node)[:60]}' is not part of the gate's language")


def _number(node: ast.expr, benchmarks: Sequence[str]) -> str:
    kind = _check(node, benchmarks)
    if kind == "truth":
        raise ExpressionError(f"'{ast.unparse(node)[:60]}' is true or false, where a number is needed")
    return kind


def _check_call(node: ast.Call, benchmarks: Sequence[str]) -> str:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)[:40]
    _known(name, FUNCTIONS, "function", ast.unparse(node)[:60])
    if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise ExpressionError(f"{name}() takes plain arguments")
    kinds = [_number(argument, benchmarks) for argument in node.args]
    if name in ("lower_bound", "upper_bound", "p_value", "abs") and len(kinds) != 1:
        raise ExpressionError(f"{name}() takes one argument")
    if name in ("min", "max") and len(kinds) < 2:
        raise ExpressionError(f"{name}() takes two arguments or more")
    if name in ("lower_bound", "upper_bound"):
        if kinds[0] != "metric":
            raise ExpressionError(f"{name}() takes a metric with its interval; leave out .value, .low, .high")
        return "number"
    if name == "p_value":
        match node.args[0]:
            case ast.BinOp(op=ast.Sub(), left=ast.Attribute() as left, right=ast.Attribute() as right):
                sides = [MetricPath.parse(_dotted(side), benchmarks) for side in (left, right)]
                if not any(side.part for side in sides) and sides[0].pairs_with(sides[1]):
                    return "number"
        raise ExpressionError(
            "p_value() takes the difference of one metric between two models or two frame conditions, such as "
            "p_value(candidate.accuracy - base.accuracy)"
        )
    return "metric" if "metric" in kinds else "number"


# What a number can be, whatever is measured: finds the comparisons that say nothing.


def _check_possible(node: ast.Compare, benchmarks: Sequence[str]) -> None:
    sides = (node.left, *node.comparators)
    for left, operation, right in zip(sides, node.ops, sides[1:], strict=False):
        if ast.dump(left) == ast.dump(right):
            raise ExpressionError(f"'{ast.unparse(left)[:60]}' is compared with itself")
        (a, b), (c, d) = _range(left, benchmarks), _range(right, benchmarks)
        if any(map(math.isnan, (a, b, c, d))):
            continue
        symbol, compare = _COMPARISONS[type(operation)]
        if isinstance(operation, ast.Eq | ast.NotEq):
            outcomes = {symbol == "!="} if b < c or d < a else {True, False}
        else:
            outcomes = {compare(x, y) for x in (a, b) for y in (c, d)}
        if len(outcomes) == 1:
            word = "fail" if True in outcomes else "hold"
            lies = [f"'{ast.unparse(side)[:60]}' {_lies(*ends)}" for side, ends in ((left, (a, b)), (right, (c, d)))]
            hint = "; metrics are fractions: 0.5, not 50" if max(abs(a), abs(c)) > 1 else ""
            raise ExpressionError(f"this can never {word}: {' and '.join(lies)}{hint}")


def _lies(low: float, high: float) -> str:
    if low == high:
        return f"is {low:g}"
    if math.isinf(high):
        return f"is at least {low:g}" if not math.isinf(low) else "can be anything"
    return f"is between {low:g} and {high:g}" if not math.isinf(low) else f"is at most {high:g}"


def _range(node: ast.expr, benchmarks: Sequence[str]) -> tuple[float, float]:
    """The least and the greatest value that a number can have; nan where that cannot be said."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value), float(value)
        case ast.UnaryOp():
            low, high = _range(node.operand, benchmarks)
            return (-high, -low) if isinstance(node.op, ast.USub) else (low, high)
        case ast.Name() | ast.Attribute():
            path = MetricPath.parse(_dotted(node), benchmarks)
            return (1, math.inf) if path.part == "n" else (0, math.inf if path.metric in UNBOUNDED else 1)
        case ast.BinOp():
            (a, b), (c, d) = _range(node.left, benchmarks), _range(node.right, benchmarks)
            if isinstance(node.op, ast.Div) and c <= 0 <= d:
                return -math.inf, math.inf
            ends = [_ARITHMETIC[type(node.op)][1](x, y) for x in (a, b) for y in (c, d)]
            return (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends), max(ends))
        case ast.Call(func=ast.Name(id=name)):
            ranges = [_range(argument, benchmarks) for argument in node.args]
            lows, highs = zip(*ranges, strict=True)
            if name == "p_value":
                return 0, 1
            if name == "abs":
                low, high = sorted(map(abs, ranges[0]))
                return (0 if lows[0] <= 0 <= highs[0] else low), high
            choose = {"min": min, "max": max}.get(name)
            return (choose(lows), choose(highs)) if choose else ranges[0]
    return math.nan, math.nan


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
    difference: Estimate | None = None
    """The paired difference that this number is."""


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
        truth, text = _Judge(models, pair, rule.benchmarks).truth(rule.tree)
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


def check_asked(rule: Rule, models: Sequence[str], frames: Sequence[str], benchmarks: Sequence[str] = ()) -> None:
    """Check, before anything is asked, that the models, benchmarks and frame conditions of a rule will be.

    Raises:
        ExpressionError: naming those that will.
    """
    for path in rule.paths:
        if path.benchmark is not None and path.benchmark not in benchmarks:
            raise ExpressionError(
                f"rule '{rule.text}': benchmark '{path.benchmark}' will not be evaluated; evaluated are: "
                f"{', '.join(benchmarks) or 'none, only the held-out split'} (evaluation.benchmarks)"
            )
        known_models = (*models, "candidate", "champion")
        asked = frames if path.benchmark is None else ("ordered",)  # benchmarks are asked with frames in order only
        for what, name, known in (("model", path.model, known_models), ("frames", path.frames, asked)):
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
            if path.model == "champion" and path.benchmark and path.benchmark not in models[path.model]:
                hint = "; evaluate the version in service with this benchmark too, or leave the rule out"
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
    def __init__(self, models: Mapping[str, Mapping[str, Any]], pair: Pair | None, benchmarks: Sequence[str]) -> None:
        self.models = models
        self.pair = pair
        self.benchmarks = benchmarks

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
                return self.metric(MetricPath.parse(_dotted(node), self.benchmarks))
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
            if found[path.part] is None:
                raise ArithmeticError(f"{path} has no end: too few videos")
            value = float(found[path.part])
            return _Number(value, value, value, _show(value))
        value, low, high = (found[name] for name in ("value", "low", "high"))
        low = -math.inf if low is None else float(low)  # no end: too few videos
        return _Number(float(value), low, math.inf if high is None else float(high), _show(float(value)), path)

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
        if symbol == "-" and left.path and right.path and self.pair is not None and left.path.pairs_with(right.path):
            paired = self.pair(left.path, right.path)
            if paired is not None:
                text += f" = {_show(paired.value)} paired over {paired.n} items"
                if isinstance(paired, Difference):
                    text += f" of {paired.clusters} videos, {paired.verdict}"
                return _Number(paired.value, paired.low, paired.high, text, difference=paired)
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
        if name in ("lower_bound", "upper_bound"):
            end = first.low if name == "lower_bound" else first.high
            return _Number(end, end, end, f"{text} = {_show(end)}")
        if name == "p_value":
            if not isinstance(first.difference, Difference):
                raise ArithmeticError(f"{text}: not measured on the same items")
            p = first.difference.p_value
            return _Number(p, p, p, f"{text} = {_show(p)}")
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
