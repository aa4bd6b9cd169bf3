"""Tables and charts of evaluation pages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ...common.html import blocks, charts, page
from ...common.html.blocks import Cell, Filter
from ...common.html.charts import Bar
from ..config import EvaluationConfig
from ..expressions import FRAMES
from ..statistics import NO_DIFFERENCE
from ..summary import Rows

if TYPE_CHECKING:
    from ...common.video.clip import Clip

_FRAMES = {
    "ordered": "in order",
    "shuffled": "shuffled",
    "reversed": "backwards",
    "single_frame": "one frame",
    "blind": "no video",
    "other_video": "another video's",
}


_METRICS = {
    "accuracy": "accuracy",
    "accuracy_paper": "accuracy, graded as published",
    "score": "graded score",
    "format_rate": "format",
    "mra": "MRA",
    "mra_inclusive": "MRA (≤)",
    "wer": "WER",
    "rouge": "ROUGE",
    "miou": "mIoU",
    "recall_at_30": "R@0.3",
    "recall_at_50": "R@0.5",
    "recall_at_70": "R@0.7",
    "clue_iou": "clue IoU",
    "caption_rouge_l": "caption ROUGE-L",
    "caption_bleu_1": "caption BLEU-1",
    "caption_bleu_4": "caption BLEU-4",
    "caption_meteor": "caption METEOR",
}


_BASELINES = {"whole_clip": "always the whole clip", "mean_training_span": "mean training span"}


_MAX_FAILURES = 200


_MAX_REGRESSIONS = 20


Frames = Callable[[Mapping[str, Any]], "Clip | None"]
"""The clip that an item was about; None where it cannot be had."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Some models on the same questions."""

    key: str
    title: str
    rows: Rows
    """Items by (model, frames)."""
    seed: int
    """Of the shuffled order of frames."""


def _how_sure(config: EvaluationConfig) -> str:
    return (
        f"Intervals: {100 * config.confidence:g} %, by bootstrap over videos; differences: sign-flip test over videos. "
        "Not corrected for the number of comparisons."
    )


def _estimate(
    found: Mapping[str, Any],
    percent: bool = True,
    difference: Mapping[str, Any] | None = None,
    more_is_better: bool = True,
) -> Cell:
    low, high = (math.nan if found[part] is None else found[part] for part in ("low", "high"))
    return Cell(
        content=blocks.interval(found["value"], low, high, percent) + _mark(difference, more_is_better),
        sort=found["value"],
    )


def _mark(difference: Mapping[str, Any] | None, more_is_better: bool = True) -> Markup:
    """▲ or ▼ where a paired test shows a difference."""
    if difference is None or difference["verdict"] == NO_DIFFERENCE:
        return Markup("")
    up = difference["verdict"] == "higher"
    title = f"{_points(difference)} points, p = {difference['p_value']:.2g}"
    return Markup(' <span class="mark {}" title="{}">{}</span>').format(
        "good" if up == more_is_better else "bad", title, "▲" if up else "▼"
    )


def _points(found: Mapping[str, Any]) -> str:
    value, low, high = (
        "∞" if found[part] is None else f"{round(100 * found[part], 1) + 0.0:+.1f}" for part in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def _legend(reference: str, several: bool) -> Markup:
    if not several:
        return Markup("")
    return page.paragraph(
        Markup(
            '<small><span class="mark good">▲</span> <span class="mark bad">▼</span> differs from {} on the same '
            "questions (paired); no mark: no significant difference, or nothing to compare with.</small>"
        ).format(reference)
    )


def _differences(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> Markup:
    """A table of paired differences; ``kind`` None is all questions. ``titles``: of benchmarks, where there are any."""
    table, values = [], []
    kinds = [found for found in comparisons if found["kind"] is not None]
    for found in comparisons:
        tone: page.Tone = {"higher": "good", "lower": "bad"}.get(found["verdict"], "plain")  # type: ignore[assignment]
        names = [_cell_name(found[side]) for side in ("first", "second")]
        shown = Markup('<span class="interval"><b>{}</b><small>{}</small></span>').format(*_points(found).split(" ", 1))
        benchmark = [titles[found["benchmark"]]] if titles else []
        table.append(
            [
                f"{names[0]} − {names[1]}",
                *benchmark,
                Cell(content=shown, sort=found["value"]),
                Cell(content=page.chip(found["verdict"], tone), sort=found["verdict"]),
                Cell(content=f"{found['p_value']:.2g}", sort=found["p_value"]),
                _or_blank(found["mcnemar_p"], "{:.2g}"),
                _or_blank(found["detectable"], "{:.1f}", 100),
                *([found["kind"] or "all"] if kinds else []),
                found["n"],
                found["clusters"],
            ]
        )
        shown_under = {"verdict": [found["verdict"].split()[0]], "questions": ["kind" if found["kind"] else "all"]}
        values.append(shown_under | ({"benchmark": [found["benchmark"]]} if titles else {}))
    if not table:
        return page.paragraph("Nothing to compare: there is one model, or there are fewer than two videos.")
    verdicts = [("higher", "higher"), ("lower", "lower"), ("no", NO_DIFFERENCE)]
    filters = [Filter(key="verdict", label="difference", choices=verdicts)]
    if titles and len(titles) > 1:
        filters.append(Filter(key="benchmark", label="benchmark", choices=list(titles.items())))
    if kinds:
        choices = [("all", "all questions"), ("kind", "one kind")]
        filters.append(Filter(key="questions", label="questions", choices=choices))
    columns = ["first − second", *(["benchmark"] if titles else []), "difference in points", "", "p", "McNemar p"]
    columns += ["detectable", *(["questions"] if kinds else []), "n", "videos"]
    note = (
        "p: sign-flip test over videos. McNemar's mid-p takes questions as independent and is for information only. "
        "Detectable: the smallest true difference, in points, that this comparison shows in four of five cases."
    )
    return blocks.table(columns, table, sortable=True, filters=filters, values=values) + page.paragraph(
        Markup("<small>{}</small>").format(note)
    )


def _or_blank(value: float | None, form: str, scale: float = 1.0) -> Cell:
    return Cell(content="" if value is None else form.format(scale * value), sort=value)


def _cell_name(cell: str) -> str:
    model, _, frames = cell.rpartition(".")
    return model if frames == "ordered" else f"{model} ({_FRAMES[frames]})"


def _breakdown(result: Mapping[str, Any]) -> Markup:
    candidate = result["models"][result["candidate"]]["ordered"]
    group = "by_kind" if candidate["by_kind"] else "by_type"
    columns = []
    for name in candidate[group]:
        bars = []
        for model, about in result["models"].items():
            for frames in ("ordered", "shuffled") if model == result["candidate"] else ("ordered",):
                found = about.get(frames, {}).get(group, {}).get(name, {}).get("accuracy")
                if found is not None:
                    label = model if frames == "ordered" else f"{model}, {_FRAMES[frames]}"
                    bars.append(_bar(label, found, "plain" if frames == "shuffled" else "accent"))
        columns.append({"name": name, "n": candidate[group][name]["accuracy"]["n"], "bars": charts.bars(bars)})
    return page.render("evaluation/report/columns.jinja", columns=columns)


def _bar(label: str, found: Mapping[str, Any], tone: page.Tone = "accent", note: str = "") -> Bar:
    return Bar(label=label, value=found["value"], low=found["low"], high=found["high"], tone=tone, note=note)


def _reliance(sets: Iterable[tuple[str, Mapping[str, Mapping[str, Any]], str]]) -> Markup:
    """Bars of a metric under every frame condition; sets are (title, cells by model and frames, metric)."""
    columns = []
    for title, models, metric in sets:
        for model, cells in models.items():
            asked = [frames for frames in FRAMES if frames in cells and metric in cells[frames]]
            bars = [_bar(_FRAMES[f], cells[f][metric], "accent" if f == "ordered" else "plain") for f in asked]
            if len(bars) > 1:
                name = f"{model}, {title}" if title else model
                columns.append({"name": name, "n": cells["ordered"][metric]["n"], "bars": charts.bars(bars)})
    if not columns:
        return page.paragraph("Asked with frames in order only, so that this cannot be said.")
    note = "A model that answers from the words of the question does as well without the video, or with a wrong one."
    return page.render("evaluation/report/columns.jinja", columns=columns) + page.paragraph(note)


def _grounding(result: Mapping[str, Any]) -> Markup:
    columns = []
    sources = [(name, about["ordered"], "accent") for name, about in result["models"].items()]
    sources += [(_BASELINES[name], about["ordered"], "plain") for name, about in result["baselines"].items()]
    for metric in ("miou", "recall_at_30", "recall_at_50", "recall_at_70"):
        bars = [
            _bar(name, found, tone)  # type: ignore[arg-type]
            for name, cell, tone in sources
            if (found := cell.get(metric)) is not None
        ]
        n = max((cell[metric]["n"] for _, cell, _ in sources if metric in cell), default=0)
        columns.append({"name": _METRICS[metric], "n": n, "bars": charts.bars(bars)})
    return page.render("evaluation/report/columns.jinja", columns=columns)


def _failures(failed: Sequence[Mapping[str, Any]]) -> Markup:
    table = [[row["id"], row["model"], _FRAMES[row["frames"]], row["error"]] for row in failed[:_MAX_FAILURES]]
    block = blocks.table(["item", "model", "frames", "reason"], table, sortable=True)
    if len(failed) > _MAX_FAILURES:
        block += page.paragraph(f"and {len(failed) - _MAX_FAILURES} more, in items.jsonl")
    return block


def _regressions(sets: Sequence[_Set], models: Sequence[str]) -> list[tuple[str, Markup]]:
    """Kinds of questions and videos on which the last model does worse than the one before it."""
    if len(models) < 2:
        return []
    now, before = models[-1], models[-2]
    table: list[tuple[str, str, _Set, int, int, int]] = []
    for one in sets:
        earlier = {row["id"]: row["correct"] for row in one.rows.get((before, "ordered"), ())}
        for what, key in (("question", "kind"), ("video", "video")):
            tally: dict[str, list[int]] = {}
            for row in one.rows.get((now, "ordered"), ()):
                if row["id"] in earlier:
                    name = row[key] or row["problem_type"]
                    counts = tally.setdefault(name, [0, 0, 0])
                    counts[0] += earlier[row["id"]] and not row["correct"]
                    counts[1] += row["correct"] and not earlier[row["id"]]
                    counts[2] += 1
            table += [(what, name, one, lost, won, n) for name, (lost, won, n) in tally.items() if lost > won]
    if not table:
        return [
            (
                "Worst regressions",
                page.paragraph(f"None: no kind of question lost more than it gained since {before}."),
            )
        ]
    table.sort(key=lambda row: (row[0], row[4] - row[3], row[1]))
    rows = []
    for what in ("question", "video"):
        for _, name, one, lost, gained, n in [row for row in table if row[0] == what][:_MAX_REGRESSIONS]:
            wanted = {"change": "lost", "kind" if what == "question" else "video": name, "set": one.key}
            show = Markup('<button type="button" data-show="{}">show</button>').format(_json(wanted))
            rows.append([what, name, *([one.title] if len(sets) > 1 else []), lost, gained, gained - lost, n, show])
    filters = [Filter(key="what", label="by", choices=[("question", "kind of question"), ("video", "video")])]
    columns = ["", "name", *(["benchmark"] if len(sets) > 1 else []), "lost", "gained", "net", "items", ""]
    values = [{"what": [str(row[0])]} for row in rows]
    caption = f"Right with {before}, no longer right with {now}; counts, not a test (see above for those)."
    return [("Worst regressions", blocks.table(columns, rows, caption, sortable=True, filters=filters, values=values))]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
