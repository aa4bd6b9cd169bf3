"""From items to numbers: estimates per condition and group, paired comparisons, and what MLflow gets of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..common.tracking.run import Trace
from .conditions import CONDITIONS, ORDERED, seed_of
from .item import Item
from .results import BenchmarkResult, Cell, Comparison, Estimates, EvaluationResult, Group
from .scores import Score, estimates, metric_score
from .statistics import Difference, Estimate, Resampling, paired_difference

_GROUPED_BY = {"by_type": "problem_type", "by_kind": "kind"}


def in_group(item: Item, group: Group | None) -> bool:
    """Whether an item is of a group, ``("by_kind", "direction")``; None: of all items."""
    return group is None or getattr(item, _GROUPED_BY[group[0]]) == group[1]


def summarize(items: Sequence[Item], scores: Mapping[str, Score], resampling: Resampling) -> Cell:
    """Every score and metric of one model under one condition: over all items, and by every breakdown."""

    def metrics(chosen: Sequence[Item]) -> Estimates:
        names = dict.fromkeys(name for item in chosen for name in item.metrics)
        return estimates({name: metric_score(name) for name in names}, chosen, resampling)

    def by(values: Sequence[str | None]) -> dict[str, Estimates]:
        return {
            name: metrics([item for item, value in zip(items, values, strict=True) if value == name])
            for name in dict.fromkeys(values)
            if name is not None
        }

    dimensions = dict.fromkeys(name for item in items for name in item.groups)
    return Cell(
        scores=estimates(scores, items, resampling),
        by_type=by([item.problem_type for item in items]),
        by_kind=by([item.kind for item in items]),
        by={dimension: by([item.groups.get(dimension) for item in items]) for dimension in dimensions},
        failed=sum(item.error is not None for item in items),
        **metrics(items),
    )


# -- paired comparisons ----------------------------------------------------------------------------------------


def difference_of_items(
    first: Iterable[Item], second: Iterable[Item], score: Score, resampling: Resampling
) -> Difference | None:
    """The paired difference first − second over the items that both have, clustered by video. None where they share
    fewer than two videos."""
    others = {item.id: score.value(item) for item in second}
    shared = [
        (item, value, other)
        for item in first
        if (value := score.value(item)) is not None and (other := others.get(item.id)) is not None
    ]
    if len({item.video for item, _, _ in shared}) < 2:
        return None
    items, values, theirs = zip(*shared, strict=True)
    videos = [item.video for item in items]
    return paired_difference(values, theirs, videos, **asdict(resampling), weights=score.weights(items))


def compare(
    first: BenchmarkResult,
    second: BenchmarkResult,
    metric: str,
    resampling: Resampling,
    conditions: tuple[str, str] = (ORDERED, ORDERED),
    group: Group | None = None,
) -> Difference | None:
    """The paired difference first − second by a score or metric, under a condition of each, over the items of a group.
    None where they share no questions or fewer than two videos."""
    if not first.same_questions(second) or first.incomparable(second):
        return None
    ours, theirs = (
        [item for item in result.items.get(condition, ()) if in_group(item, group)]
        for result, condition in zip((first, second), conditions, strict=True)
    )
    return difference_of_items(ours, theirs, first.score(metric), resampling)


def comparisons(
    results: Sequence[BenchmarkResult], resampling: Resampling, *, held_out: bool = False
) -> list[Comparison]:
    """Models on one benchmark: each over those before it by the headline, and neighbours by kind of question.
    ``held_out``: of the held-out split: by kind for every pair, and ordered over the other conditions, too."""
    pairs = [
        ((later, ORDERED), (earlier, ORDERED))
        for place, later in enumerate(results)
        for earlier in reversed(results[:place])
    ]
    if held_out:
        others = [name for name in CONDITIONS if name != ORDERED]
        pairs += [((one, ORDERED), (one, name)) for one in results for name in others if one.items.get(name)]
    made = []
    for (first, condition), (second, other) in pairs:
        kinds = dict.fromkeys(item.kind for item in first.items[condition] if item.kind is not None)
        closest = held_out or (first is results[-1] and second is results[-2])
        # Spans that are as good with other pixels were not found in the video.
        whole = (first.headline, "miou") if other in ("blind", "other_video") else (first.headline,)
        by_kind = [(first.metric_of(("by_kind", kind)), kind) for kind in kinds if closest and len(kinds) > 1]
        for metric, kind in [*((name, None) for name in whole), *by_kind]:
            group: Group | None = None if kind is None else ("by_kind", kind)
            difference = compare(first, second, metric, resampling, (condition, other), group)
            if difference is not None:
                sides: dict[str, Any] = {"first": f"{first.model}.{condition}", "second": f"{second.model}.{other}"}
                benchmark = None if held_out else first.key
                made.append(Comparison(**asdict(difference), **sides, metric=metric, kind=kind, benchmark=benchmark))
    return made


def in_one_sentence(first: BenchmarkResult, last: BenchmarkResult, resampling: Resampling) -> str:
    """Which of two models is better on a benchmark, by how much, and how sure that is; and how often each answered."""
    score, title = last.headline, last.result.title
    mine, theirs = last.ordered.scores[score], first.ordered.estimate(score)
    difference = compare(last, first, score, resampling)
    if difference is None or theirs is None:
        return (
            f"{last.model} and {first.model} cannot be compared on {title}: not the same questions, or too few videos."
        )
    size = f"{100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    values = f"{100 * mine.value:.1f} % against {100 * theirs.value:.1f} %"
    if difference.verdict in ("higher", "lower"):
        better = "better" if difference.verdict == "higher" else "worse"
        sentence = (
            f"{last.model} is {better} than {first.model} on {title}: {size}, p = {difference.p_value:.2g} ({values})"
        )
    else:
        seen = f"; {100 * difference.detectable:.1f} points would have been seen" if difference.detectable else ""
        sentence = f"{last.model} and {first.model} cannot be told apart on {title}: {size} ({values}){seen}"
    rates = [one.ordered.metrics.get(name) for one in (last, first) for name in ("answer_found", "tagged")]
    if None not in rates:
        found, tagged, before, tagged_before = (f"{100 * rate.value:.0f} %" for rate in rates if rate is not None)
        sentence += f". Answers were there in {found} (tagged: {tagged}), before in {before} ({tagged_before})"
    return sentence + "."


def grounding_sentence(result: BenchmarkResult, resampling: Resampling) -> str | None:
    """Whether spans were found in the video: mIoU beyond that of the same model without the video, or with another
    one's pixels. None where spans, or such conditions, were not measured."""
    here = result.ordered.metrics.get("miou")
    for condition in ("blind", "other_video"):
        difference = compare(result, result, "miou", resampling, (ORDERED, condition))
        if here is None or difference is None:
            continue
        beyond = f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
        without = "without the video" if condition == "blind" else "with another video's pixels"
        none = "" if difference.verdict == "higher" else ": nothing shows that they were found in the video"
        return f"Spans of {result.model}: {beyond} mIoU beyond what it has {without} (mIoU {here.value:.2f}){none}."
    return None


# -- what is recorded ------------------------------------------------------------------------------------------


def _estimates(result: EvaluationResult) -> Iterator[tuple[str, str, Group | None, str, Estimate]]:
    """(model, condition, group, metric, estimate) of everything that was measured on the held-out split."""
    for model, about in result.models.items():
        for condition in CONDITIONS:
            if (cell := about.conditions.get(condition)) is not None:
                for group, measured in [(None, cell.metrics), *cell.groups.items()]:
                    for metric, estimate in measured.items():
                        yield model, condition, group, metric, estimate


def flat_metrics(result: EvaluationResult) -> dict[str, float]:
    """``evaluation/model/condition/metric[/group]`` → value."""
    suffix = {"by_type": "/", "by_kind": "/kind_"}
    return {
        f"evaluation/{model}/{condition}/{metric}{suffix[group[0]] + group[1] if group else ''}": estimate.value
        for model, condition, group, metric, estimate in _estimates(result)
    }


def result_table(result: EvaluationResult) -> dict[str, list[Any]]:
    """``result.json`` as columns: one row per model, condition, metric and group."""
    names = ("model", "frames", "group", "metric", "value", "low", "high", "n")
    rows = [
        (model, condition, ".".join(group or ("all",)), metric, e.value, e.low, e.high, e.n)
        for model, condition, group, metric, e in _estimates(result)
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def items_table(items: Sequence[Item]) -> dict[str, list[Any]]:
    """Every item, without its token ids."""
    names = ("id", "model", "problem_type", "kind", "response", "answer", "truth", "score", "correct", "error")
    table: dict[str, list[Any]] = {name: [getattr(item, name) for item in items] for name in names}
    return {"id": table["id"], "model": table["model"], "frames": [item.condition for item in items]} | table


def item_traces(items: Sequence[Item], count: int, seed: int) -> list[Trace]:
    """Question and answer of some of the candidate's items, drawn by the seed."""
    inputs, outputs = ("question", "options", "video", "clip"), ("response", "answer", "truth", "score", "correct")
    return [
        Trace(
            name=item.id,
            inputs={name: getattr(item, name) for name in inputs},
            outputs={name: getattr(item, name) for name in (*outputs, "error")},
            tags={
                "vthink.model": item.model,
                "vthink.kind": item.kind or item.problem_type,
                "vthink.outcome": item.outcome,
            },
        )
        for item in sorted(items, key=lambda item: seed_of(seed, "shown", item.id))[:count]
    ]
