"""How an evaluation page opens: one sentence, one chart, what got worse, and examples that tell something."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from ...common.html import page
from ..conditions import ORDERED, condition_title, seed_of
from ..config import EvaluationConfig
from ..item import Item
from ..metrics import metric_named
from ..results import BenchmarkResult, Group
from ..statistics import Estimate
from ..summary import compare, grounding_sentence, in_one_sentence
from .cells import Board, points

_MAX_ROWS = 12  # kinds of questions in the chart of one benchmark
_MAX_LOSSES = 3  # kinds named that lost without significance
_EXAMPLES = 2  # of each sort
_MAX_CHARS = 600  # of a response in an example
_MISSED = 0.1  # a span with less IoU misses the evidence


def opening(board: Board, config: EvaluationConfig) -> Markup | None:
    """The last model beside the first, a sentence for each benchmark, and whether spans were found in the video; None
    where there is nothing to say."""
    sentences = []
    for results in board.by_benchmark.values():
        if len(results) > 1:
            sentences.append(in_one_sentence(results[0], results[-1], config.resampling))
        if (found := grounding_sentence(results[-1], config.resampling)) is not None:
            sentences.append(found)
    return page.joined(map(page.paragraph, sentences)) if sentences else None


# -- the chart


def chart(board: Board) -> Markup:
    """The metric of each kind of question with its interval: a dot per model, rings for the last one with the video
    shuffled or left out."""
    figures = []
    for key, results in board.by_benchmark.items():
        last = results[-1]
        by = "by_kind" if last.ordered.by_kind else "by_type"
        groups: list[Group | None] = [None, *(group for group in last.ordered.groups if group[0] == by)]
        rows: list[dict[str, Any]] = []
        for group in groups[: _MAX_ROWS + 1]:
            metric = last.headline if group is None else last.metric_of(group)
            dots = list(_dots(results, metric, group))
            if dots and metric_named(metric).bounded:
                name = "all questions" if group is None else group[1]
                rows.append({"name": f"{name}, n = {dots[0]['n']:,}", "dots": dots})
        series = list(dict.fromkeys((dot["series"], dot["tone"]) for row in rows for dot in row["dots"]))
        title = board.titles[key] if len(board.titles) > 1 else ""
        figures.append({"title": title, "rows": _placed(rows), "series": series, "height": _height(rows)})
    return page.render("evaluation/report/chart.jinja", figures=figures)


def _dots(results: Sequence[BenchmarkResult], metric: str, group: Group | None) -> Iterator[dict[str, Any]]:
    for place, result in enumerate(results):
        last = place == len(results) - 1
        for condition in (ORDERED, "shuffled", "blind") if last else (ORDERED,):
            cell = result.result.conditions.get(condition)
            estimate = cell.estimate(metric, group) if cell else None
            if estimate is not None:
                ring = condition != ORDERED
                name = f"{result.model}, {condition_title(condition)}" if ring else result.model
                tone = condition if ring else "last" if last else f"earlier{min(place, 2)}"
                yield {"series": name, "tone": tone, "n": estimate.n} | _ends(estimate)


def _ends(estimate: Estimate) -> dict[str, Any]:
    """Where a dot and its interval lie, in per cent of the plot's width, and what they say."""
    value, low, high = (100 * min(max(end, 0.0), 1.0) for end in (estimate.value, estimate.low, estimate.high))
    return {"at": value, "low": low, "high": high, "text": f"{value:.1f} % [{low:.1f}, {high:.1f}]"}


_LABEL, _STEP, _GAP = 18, 13, 10  # heights in pixels


def _placed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    placed, y = [], 0
    for row in rows:
        dots = [dot | {"y": y + _LABEL + _STEP * (place + 0.5)} for place, dot in enumerate(row["dots"])]
        placed.append(row | {"y": y + 12, "dots": dots})
        y += _LABEL + _STEP * len(dots) + _GAP
    return placed


def _height(rows: Sequence[dict[str, Any]]) -> int:
    return sum(_LABEL + _STEP * len(row["dots"]) + _GAP for row in rows)


# -- what got worse


def losses(board: Board, config: EvaluationConfig) -> Markup | None:
    """Kinds of questions in which the last model is worse than one before it; None where there is one model."""
    worse: list[tuple[bool, float, str]] = []  # not significant, size, in words
    shown = False
    for key, results in board.by_benchmark.items():
        last = results[-1]
        where = f" ({board.titles[key]})" if len(board.titles) > 1 else ""
        by = "by_kind" if last.ordered.by_kind else "by_type"
        for before in dict.fromkeys((results[0].model, *(one.model for one in results[-2:-1]))):
            other = next(one for one in results if one.model == before)
            if other is last:
                continue
            shown = True
            for group in (group for group in last.ordered.groups if group[0] == by):
                metric = last.metric_of(group)
                found = compare(last, other, metric, config.resampling, group=group)
                if found is None or found.value == 0:
                    continue
                up = metric_named(metric).higher_is_better
                if (found.value < 0) == up:
                    is_sure = found.verdict == ("lower" if up else "higher")
                    text = f"{group[1]}{where}: {points(found)} points of {metric_named(metric).title} against {before}"
                    worse.append((not is_sure, -abs(found.value), text))
    if not shown:
        return None
    worse.sort()
    sure = [text for unsure, _, text in worse if not unsure]
    unsure = [text for uncertain, _, text in worse if uncertain][:_MAX_LOSSES]
    if not worse:
        return page.paragraph("No kind of question got worse.")
    listed = Markup("").join(Markup("<li>{}</li>").format(text) for text in sure)
    significant = Markup("<ul>{}</ul>").format(listed) if sure else page.paragraph("Nothing significantly.")
    more = f"Lower, but not significantly: {'; '.join(unsure)}." if unsure else ""
    return significant + (page.paragraph(Markup("<small>{}</small>").format(more)) if more else Markup(""))


# -- examples


def examples(board: Board, config: EvaluationConfig) -> Markup | None:
    """A few answers of the last model: fixed, broken, and right for wrong reasons; None where there are none."""
    sorts: dict[str, list[dict[str, Any]]] = {}
    for key, results in board.by_benchmark.items():
        last = results[-1]
        before = {item.id: item for item in results[-2].items[ORDERED]} if len(results) > 1 else {}
        items = sorted(last.items[ORDERED], key=lambda item: seed_of(config.seed, "told", item.id))
        for title, why in _SORTS.items():
            for item in items:
                shown = sorts.setdefault(title, [])
                if len(shown) >= _EXAMPLES:
                    break
                reason = why(item, before.get(item.id))
                if reason:
                    shown.append(_example(item, before.get(item.id), reason, key))
    shown_sorts = [(title, shown) for title, shown in sorts.items() if shown]
    if not shown_sorts:
        return None
    return page.render("evaluation/report/examples.jinja", sorts=shown_sorts)


def _example(item: Item, before: Item | None, reason: str, key: str) -> dict[str, Any]:
    response = " ".join((item.response or "").split())
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(item.truth) if item.options else -1
    truth = f"{item.truth}. {item.options[letter]}" if 0 <= letter < len(item.options) else item.truth
    wanted = json.dumps({"set": key, "id": item.id}, ensure_ascii=False)
    return {
        "question": item.question[:_MAX_CHARS],
        "truth": truth[:200],
        "answer": (item.answer or "no answer")[:200],
        "before": (before.answer or "no answer")[:200] if before else None,
        "response": response if len(response) <= _MAX_CHARS else response[:_MAX_CHARS] + " …",
        "video": item.video_name,
        "reason": reason,
        "wanted": wanted,
    }


def _fixed(item: Item, before: Item | None) -> str:
    return "was wrong, is right" if before and item.correct and not before.correct else ""


def _broken(item: Item, before: Item | None) -> str:
    return "was right, is wrong" if before and before.correct and not item.correct else ""


def _wrong_reasons(item: Item, before: Item | None) -> str:
    if not item.correct:
        return ""
    if item.metrics.get("follows") == 0:
        return "its own reasoning says something else"
    if item.evidence and item.metrics.get("miou", 1.0) < _MISSED and "<time>" in (item.response or ""):
        return "none of its spans meets the evidence"
    return ""


_SORTS: dict[str, Callable[[Item, Item | None], str]] = {
    "Fixed": _fixed,
    "Broken": _broken,
    "Right for wrong reasons": _wrong_reasons,
}
