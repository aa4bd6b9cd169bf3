"""Evaluations as one HTML page: what was measured, how sure it is, and every item with what the models said.

`report_page` shows the pipeline's evaluation (models of one run on the held-out split); `benchmark_page` compares
finished benchmarks (folders of ``vthink evaluate --benchmark``), with the papers' published figures beside them. The
page holds everything it needs and asks for nothing; items travel as data that its script shows page by page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from ..common import report
from ..common.answers import parse_response
from ..common.report import Bar, Cell, Filter
from .asking import Items, frame_order, one_line, seed_of
from .config import EvaluationConfig
from .expressions import FRAMES, METRICS
from .measures import Rows
from .measures import compare as compare_rows
from .results import BenchmarkResult, compare
from .statistics import NO_DIFFERENCE, over_runs

if TYPE_CHECKING:
    from ..common.video import Clip

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
_MAX_RESPONSE_CHARS = 2_000
"""So much of a response is in the page at most; all of it is in ``items.jsonl``."""
_MAX_RESPONSES_CHARS = 12 * 2**20
"""Responses of all items together: with many items less of each is shown."""
_MAX_MEDIA_BYTES = 24 * 2**20
"""Pictures of all items together."""
_FRAME_HEIGHT = 144

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


# -- the pipeline's evaluation -------------------------------------------------------------------------------


def report_page(
    result: Mapping[str, Any],
    rows: Rows,
    split: Items,
    indices: Sequence[int],
    config: EvaluationConfig,
    benchmarks: Sequence[BenchmarkResult] = (),
) -> str:
    """The report of the pipeline's evaluation.

    Args:
        result: contents of ``result.json``.
        rows: graded items by (model, frames).
        split: where the frames are.
        indices: of the items that were asked.
        config: of the evaluation; ``report_items`` of the items are shown with frames.
        benchmarks: of the same models; their items have a page of their own (`benchmark_page`).
    """
    models = list(result["models"])
    sections: list[tuple[str, Markup]] = [
        ("Models", _models_table(result, rows, config)),
        ("What makes a difference", _differences(result["comparisons"])),
        ("Accuracy by kind of question, frames in order", _breakdown(result)),
        ("Does it need the video?", _reliance([("", result["models"], "accuracy")])),
    ]
    if result["baselines"]:
        sections.append(("Finding the evidence", _grounding(result)))
    if benchmarks:
        runs = {(one.model, one.key): [one] for one in benchmarks}
        keys = list(dict.fromkeys(one.key for one in benchmarks))
        titles = {one.key: one.result["title"] for one in benchmarks}
        compared = _benchmark_comparisons({cell: one[0] for cell, one in runs.items()}, models, keys, config)
        table = _benchmark_table(runs, models, keys, titles, compared)
        sections.append(("Public benchmarks", table + _differences(compared, titles)))
    found = _Set("", f"split “{result['split']}”", rows, config.seed)
    sections += _regressions([found], models)
    if result["failed"]:
        sections.append((f"Failed items ({len(result['failed'])}), counted as wrong", _failures(result["failed"])))
    places = {split.samples[index].id: index for index in indices}

    def frames(row: Mapping[str, Any]) -> Clip | None:
        clip: Clip = split[places[row["id"]]].clip
        return clip

    sections.append((f"{len(indices):,} items", _browser([found], models, frames, config)))
    subtitle = (
        f"{result['items']:,} questions about {result['videos']:,} videos and images, split “{result['split']}”. "
        f"{_how_sure(config)}"
    )
    return report.page("Evaluation", sections, subtitle, "evaluation/items.js", "evaluation/items.css")


def _how_sure(config: EvaluationConfig) -> str:
    return (
        f"Intervals: {100 * config.confidence:g} %, by bootstrap over videos; differences: sign-flip test over videos. "
        "Not corrected for the number of comparisons."
    )


def _models_table(result: Mapping[str, Any], rows: Rows, config: EvaluationConfig) -> Markup:
    cells = [about[frames] for about in result["models"].values() for frames in FRAMES if frames in about]
    names = [name for name in METRICS if name in _METRICS and any(name in cell for cell in cells)]
    first = next(iter(result["models"]))

    def against_first(model: str, frames: str, metric: str) -> Mapping[str, Any] | None:
        if model == first or frames != "ordered":
            return None
        difference = compare_rows(rows[model, "ordered"], rows[first, "ordered"], metric, config)
        return None if difference is None else difference.to_dict()

    table = []
    for model, about in result["models"].items():
        for frames in FRAMES:
            if frames not in about:
                continue
            name = Markup("<b>{}</b>") if frames == "ordered" else Markup('<span class="soft">{}, {}</span>')
            row: list[Any] = [Cell(content=name.format(model, _FRAMES[frames]), sort=f"{model} {frames}")]
            for metric in names:
                found = about[frames].get(metric)
                difference = None if found is None else against_first(model, frames, metric)
                row.append("" if found is None else _estimate(found, metric != "wer", difference, metric != "wer"))
            table.append([*row, about[frames]["accuracy"]["n"]])
    left_out = [f"{_FRAMES.get(name, name)}: not measured, {why}." for name, why in result["left_out"].items()]
    columns = ["model", *(_METRICS[name] for name in names), "n"]
    return report.joined(
        [
            report.table(columns, table, sortable=True),
            _legend(first, len(result["models"]) > 1),
            *(report.paragraph(text) for text in left_out),
        ]
    )


def _estimate(
    found: Mapping[str, Any],
    percent: bool = True,
    difference: Mapping[str, Any] | None = None,
    more_is_better: bool = True,
) -> Cell:
    low, high = (math.nan if found[part] is None else found[part] for part in ("low", "high"))
    return Cell(
        content=report.interval(found["value"], low, high, percent) + _mark(difference, more_is_better),
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
    return report.paragraph(
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
        tone: report.Tone = {"higher": "good", "lower": "bad"}.get(found["verdict"], "plain")  # type: ignore[assignment]
        names = [_cell_name(found[side]) for side in ("first", "second")]
        shown = Markup('<span class="interval"><b>{}</b><small>{}</small></span>').format(*_points(found).split(" ", 1))
        benchmark = [titles[found["benchmark"]]] if titles else []
        table.append(
            [
                f"{names[0]} − {names[1]}",
                *benchmark,
                Cell(content=shown, sort=found["value"]),
                Cell(content=report.chip(found["verdict"], tone), sort=found["verdict"]),
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
        return report.paragraph("Nothing to compare: there is one model, or there are fewer than two videos.")
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
    return report.table(columns, table, sortable=True, filters=filters, values=values) + report.paragraph(
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
        columns.append({"name": name, "n": candidate[group][name]["accuracy"]["n"], "bars": report.bars(bars)})
    return report.render("evaluation/columns.jinja", columns=columns)


def _bar(label: str, found: Mapping[str, Any], tone: report.Tone = "accent", note: str = "") -> Bar:
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
                columns.append({"name": name, "n": cells["ordered"][metric]["n"], "bars": report.bars(bars)})
    if not columns:
        return report.paragraph("Asked with frames in order only, so that this cannot be said.")
    note = "A model that answers from the words of the question does as well without the video, or with a wrong one."
    return report.render("evaluation/columns.jinja", columns=columns) + report.paragraph(note)


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
        columns.append({"name": _METRICS[metric], "n": n, "bars": report.bars(bars)})
    return report.render("evaluation/columns.jinja", columns=columns)


def _failures(failed: Sequence[Mapping[str, Any]]) -> Markup:
    table = [[row["id"], row["model"], _FRAMES[row["frames"]], row["error"]] for row in failed[:_MAX_FAILURES]]
    block = report.table(["item", "model", "frames", "reason"], table, sortable=True)
    if len(failed) > _MAX_FAILURES:
        block += report.paragraph(f"and {len(failed) - _MAX_FAILURES} more, in items.jsonl")
    return block


# -- regressions ---------------------------------------------------------------------------------------------


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
                report.paragraph(f"None: no kind of question lost more than it gained since {before}."),
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
    return [("Worst regressions", report.table(columns, rows, caption, sortable=True, filters=filters, values=values))]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- benchmarks ----------------------------------------------------------------------------------------------


def benchmark_page(results: Sequence[BenchmarkResult], config: EvaluationConfig, frames: Frames | None = None) -> str:
    """Models × benchmarks, with the published figures beside them.

    Args:
        results: in the order in which models shall stand; the first model is the one that marks compare with, the
            last one the one whose regressions are shown. A model with several results of one benchmark has runs:
            their mean and spread are shown, and the first stands for them elsewhere.
        config: confidence, resamples and seed of comparisons; ``report_items`` of the items are shown with frames.
        frames: gives the clip of an item; None: no pictures.
    """
    models = list(dict.fromkeys(result.model for result in results))
    runs: dict[tuple[str, str], list[BenchmarkResult]] = {}
    for result in results:
        runs.setdefault((result.model, result.key), []).append(result)
    first = {cell: found[0] for cell, found in runs.items()}
    keys = list(dict.fromkeys(result.key for result in results))
    titles = {key: next(r.result["title"] for r in results if r.key == key) for key in keys}
    sets = [
        _Set(
            key,
            titles[key],
            {(m, f): rows for (m, k), r in first.items() if k == key for f, rows in r.rows.items()},
            int(next(r.result["settings"].get("seed") or 0 for r in results if r.key == key)),
        )
        for key in keys
    ]
    comparisons = _benchmark_comparisons(first, models, keys, config)
    sections = [
        ("Results", _benchmark_table(runs, models, keys, titles, comparisons)),
        ("What makes a difference", _differences(comparisons, titles)),
        ("By kind of question", _kinds_table(first, models, keys, titles)),
        (
            "Does it need the video?",
            _reliance(
                (titles[key], {m: first[m, key].cells for m in models if (m, key) in first}, _headline(first, key))
                for key in keys
            ),
        ),
    ]
    sections += _abilities(first, models, keys, titles)
    sections += _regressions(sets, models)
    failed = [
        {**row, "model": f"{result.model}, {titles[result.key]}"}
        for result in first.values()
        for row in result.result.get("failed", [])
    ]
    if failed:
        sections.append((f"Failed items ({len(failed)}), counted as wrong", _failures(failed)))
    sections.append(("How it was measured", _settings_table(results, titles)))
    total = sum(len({row["id"] for rows in one.rows.values() for row in rows}) for one in sets)
    sections.append((f"{total:,} items", _browser(sets, models, frames, config)))
    subtitle = f"{len(models)} models, {len(keys)} benchmarks, {total:,} questions. {_how_sure(config)}"
    return report.page("Benchmarks", sections, subtitle, "evaluation/items.js", "evaluation/items.css")


def _headline(first: Mapping[tuple[str, str], BenchmarkResult], key: str) -> str:
    return next(result.headline for (_, k), result in first.items() if k == key)


def _benchmark_comparisons(
    first: Mapping[tuple[str, str], BenchmarkResult],
    models: Sequence[str],
    keys: Sequence[str],
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    """Every model against those before it, by headline and, for the last model, by kind of question."""
    found = []
    for key in keys:
        have = [model for model in models if (model, key) in first]
        for place, later in enumerate(have):
            for earlier in reversed(have[:place]):
                one, two = first[later, key], first[earlier, key]
                names = {"first": f"{later}.ordered", "second": f"{earlier}.ordered", "benchmark": key}
                kinds = dict.fromkeys(row["kind"] for row in one.rows["ordered"] if row["kind"] is not None)
                closest = later == have[-1] and earlier == have[place - 1] and len(kinds) > 1
                for kind in [None, *(kinds if closest else ())]:
                    metric = one.headline if kind is None else "accuracy"
                    group = None if kind is None else ("kind", kind)
                    difference = compare(one, two, metric, config, group=group)
                    if difference is not None:
                        found.append({**names, "metric": metric, "kind": kind, **difference.to_dict()})
    return found


@cache
def _published() -> Any:
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text("utf-8"))


def _benchmark_table(
    runs: Mapping[tuple[str, str], Sequence[BenchmarkResult]],
    models: Sequence[str],
    keys: Sequence[str],
    titles: Mapping[str, str],
    comparisons: Sequence[Mapping[str, Any]],
) -> Markup:
    """Rows: models, then published figures. Columns: the headline of each benchmark, and scores published under
    another definition."""
    published = _published()
    columns: list[tuple[str, str, str]] = []  # benchmark, score, heading
    for key in keys:
        results = [found[0] for (_, k), found in runs.items() if k == key]
        wanted = {
            name.split(".")[1] for one in published["models"] for name in one["values"] if name.startswith(f"{key}.")
        }
        scores = dict.fromkeys([results[0].headline, *sorted(wanted & set(results[0].cells["ordered"]))])
        columns += [(key, score, titles[key] if len(scores) == 1 else f"{titles[key]}, {score}") for score in scores]
    against = {
        (c["first"].rpartition(".")[0], c["benchmark"], c["metric"]): c
        for c in comparisons
        if c["kind"] is None and c["second"] == f"{models[0]}.ordered"
    }
    table: list[list[Any]] = []
    values = []
    for model in models:
        row: list[Any] = [Cell(content=Markup("<b>{}</b>").format(model), sort=model)]
        for key, score, _ in columns:
            found = runs.get((model, key))
            row.append("" if found is None else _runs_cell(found, score, against.get((model, key, score))))
        table.append(row)
        values.append({"source": ["ours"]})
    for one in published["models"]:
        figures = [one["values"].get(f"{key}.{score}") for key, score, _ in columns]
        if any(figure is not None for figure in figures):
            name = f"{one['model']} @{one['frames']}"
            cells = [
                Cell(
                    content=Markup('<span class="soft" title="{}">{:.1f} %</span>').format(
                        _caveat(published, key, score, one["source"]), figure
                    ),
                    sort=figure / 100,
                )
                if figure is not None
                else ""
                for figure, (key, score, _) in zip(figures, columns, strict=True)
            ]
            label = Markup('<span class="soft">{}<br><small>published: {}</small></span>').format(name, one["source"])
            table.append([Cell(content=label, sort=name), *cells])
            values.append({"source": ["published"]})
    filters = [Filter(key="source", label="source", choices=[("ours", "ours"), ("published", "published")])]
    headings = ["model", *(heading for _, _, heading in columns)]
    notes = [
        f"{heading}: {published['unverified'][f'{key}.{score}']} — unverified; compare the published figure with care."
        for key, score, heading in columns
        if f"{key}.{score}" in published["unverified"]
        and any(f"{key}.{score}" in one["values"] for one in published["models"])
    ]
    return report.joined(
        [
            report.table(headings, table, sortable=True, filters=filters, values=values),
            _legend(models[0], len(models) > 1),
            report.paragraph(
                Markup(
                    "<small>Published figures are the papers' own, with their frames (@) and pixels; they have no "
                    "interval and are not re-measured here.</small>"
                )
            ),
            *(report.paragraph(Markup("<small>{}</small>").format(note)) for note in notes),
        ]
    )


def _caveat(published: Mapping[str, Any], key: str, score: str, source: str) -> str:
    caveat = published["unverified"].get(f"{key}.{score}")
    return source + (f"; unverified: {caveat}" if caveat else "")


def _runs_cell(found: Sequence[BenchmarkResult], score: str, difference: Mapping[str, Any] | None) -> Any:
    estimates = [one.cells["ordered"][score] for one in found if score in one.cells["ordered"]]
    if not estimates:
        return ""
    if len(estimates) == 1:
        return _estimate(estimates[0], difference=difference)
    spread = over_runs([estimate["value"] for estimate in estimates])
    text = f"{100 * spread.mean:.1f} ± {100 * (spread.spread or 0):.1f} %"
    ends = f"{100 * (spread.low or 0):.1f} – {100 * (spread.high or 0):.1f}"
    content = Markup('<span class="interval" title="mean ± standard deviation; below: interval of the mean">').format()
    content += Markup("<b>{}</b><small>{} over {} runs</small></span>").format(text, ends, spread.runs)
    return Cell(content=content, sort=spread.mean)


def _kinds_table(
    first: Mapping[tuple[str, str], BenchmarkResult],
    models: Sequence[str],
    keys: Sequence[str],
    titles: Mapping[str, str],
) -> Markup:
    table, values = [], []
    for key in keys:
        kinds: dict[tuple[str, str], None] = {}
        for model in models:
            if (model, key) in first:
                cell = first[model, key].cells["ordered"]
                for group in ("by_kind", "by_type"):
                    kinds |= {(group, name): None for name in cell.get(group, {})}
        for group, name in kinds:
            row: list[Any] = [name, titles[key]]
            n = 0
            for model in models:
                found = None
                if (model, key) in first:
                    found = first[model, key].cells["ordered"].get(group, {}).get(name, {}).get("accuracy")
                row.append("" if found is None else _estimate(found))
                n = max(n, found["n"] if found else 0)
            table.append([*row, n])
            values.append({"benchmark": [key], "group": [group]})
    filters = [Filter(key="group", label="by", choices=[("by_kind", "kind"), ("by_type", "problem type")])]
    if len(keys) > 1:
        filters.append(Filter(key="benchmark", label="benchmark", choices=list(titles.items())))
    return report.table(["kind", "benchmark", *models, "n"], table, sortable=True, filters=filters, values=values)


_ABILITIES = (
    "accuracy_paper",
    "format_rate",
    "miou",
    "recall_at_30",
    "recall_at_50",
    "recall_at_70",
    "caption_rouge_l",
    "caption_bleu_1",
    "caption_bleu_4",
    "caption_meteor",
)


def _abilities(
    first: Mapping[tuple[str, str], BenchmarkResult],
    models: Sequence[str],
    keys: Sequence[str],
    titles: Mapping[str, str],
) -> list[tuple[str, Markup]]:
    """Format, grounding and captioning, with Video-Thinker's own figures (of another set) below."""
    have = [first[m, k].cells["ordered"] for m in models for k in keys if (m, k) in first]
    names = [name for name in _ABILITIES if any(name in cell for cell in have)]
    table: list[list[Any]] = []
    for model in models:
        for key in keys:
            if (model, key) in first:
                cell = first[model, key].cells["ordered"]
                table.append([model, titles[key], *(_estimate(cell[n]) if n in cell else "" for n in names)])
    if not names:
        return []
    for one in _published()["abilities"]:
        figures = [one["values"].get(name) for name in names]
        if any(figure is not None for figure in figures):
            cells = ["" if f is None else Cell(content=f"{f:.1f} %", sort=f / 100) for f in figures]
            table.append([f"{one['model']} (published)", f"{one['source']}: its own 1,000 captioned samples", *cells])
    columns = ["model", "questions", *(_METRICS[name] for name in names)]
    return [("Grading as published, format, grounding, captions", report.table(columns, table, sortable=True))]


def _settings_table(results: Sequence[BenchmarkResult], titles: Mapping[str, str]) -> Markup:
    table, traps = [], []
    for one in results:
        settings, about = one.result["settings"], one.result["model"]
        video = settings.get("video") or {}
        frames = video.get("num_frames") or (f"{video.get('fps')} fps" if video.get("fps") else about.get("frames", ""))
        table.append(
            [
                one.model,
                titles[one.key],
                str(settings.get("protocol") or ""),
                str(frames),
                str(video.get("max_pixels") or ""),
                *(str(settings.get(name, "")) for name in ("temperature", "top_p", "max_new_tokens", "seed")),
                str(about.get("prompt", "")),
                one.result["items"],
                one.result["videos"],
                one.result.get("missing_videos", 0),
                str(about.get("uri", ""))[-80:],
                str(one.result.get("git_commit") or "")[:12],
            ]
        )
        traps += [f"{titles[one.key]}: {trap}" for trap in one.result.get("traps", [])]
    columns = ["model", "benchmark", "protocol", "frames", "pixels", "temperature", "top_p", "tokens", "seed", "prompt"]
    columns += ["questions", "videos", "missing", "from", "commit"]
    return report.joined(
        [report.table(columns, table, sortable=True), *(report.paragraph(text) for text in dict.fromkeys(traps))]
    )


# -- items ---------------------------------------------------------------------------------------------------


def _outcome(row: Mapping[str, Any]) -> str:
    return "failed" if row["error"] is not None else "right" if row["correct"] else "wrong"


def _browser(sets: Sequence[_Set], models: Sequence[str], frames: Frames | None, config: EvaluationConfig) -> Markup:
    """Every item as data, and the place where the page's script shows them."""
    items: list[dict[str, Any]] = []
    responses = sum(len(rows) for one in sets for (_, frames), rows in one.rows.items() if frames == "ordered")
    limit = max(200, min(_MAX_RESPONSE_CHARS, _MAX_RESPONSES_CHARS // max(1, responses)))
    for one in sets:
        entries: dict[str, dict[str, Any]] = {}
        for model in models:
            for condition in FRAMES:
                for row in one.rows.get((model, condition), ()):
                    entry = entries.get(row["id"])
                    if entry is None:
                        entry = entries[row["id"]] = _entry(one, row)
                    entry["said"].setdefault(model, {})[condition] = _said(row, condition, limit)
        items += entries.values()
    media = _media(sets, models, items, frames, config) if frames is not None else {}
    data = {
        "models": list(models),
        "frames": _FRAMES,
        "sets": [{"key": one.key, "title": one.title} for one in sets],
        "items": items,
        "media": media,
        "noframes": "no pictures: left out to keep the page small" if media else "no pictures in this report",
    }
    return report.embedded_json("items", data) + Markup(
        '<div class="browser" data-browser><p class="soft">The item browser needs JavaScript.</p></div>'
    )


def _entry(one: _Set, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "set": one.key,
        "video": row["video"],
        "clip": f"{one.key}/{row['video']} {row.get('clip')}",
        "kind": row["kind"] or row["problem_type"],
        "question": str(row.get("question", ""))[:_MAX_RESPONSE_CHARS],
        "options": [str(option)[:500] for option in row.get("options", ())][:26],
        "truth": str(row.get("truth", ""))[:500],
        "evidence": [[start, end, caption[:200]] for start, end, caption in row.get("evidence", ())],
        "duration": row.get("duration_s") or 0,
        "said": {},
    }


def _said(row: Mapping[str, Any], condition: str, limit: int) -> dict[str, Any]:
    """o: outcome, a: answer, g: grade; in order also r: response, s: segments; e: error."""
    found: dict[str, Any] = {"o": _outcome(row), "g": round(float(row["metrics"].get("score", row["correct"])), 3)}
    if row["answer"] is not None:
        found["a"] = row["answer"][:200]
    if row["error"] is not None:
        found["e"] = row["error"][:300]
    response = row["response"] or ""
    if condition == "ordered" and response:
        found["r"] = response[:limit]
        if len(response) > limit:
            found["cut"] = f"first {limit:,} of {len(response):,} characters"
        elif row.get("finish_reason") == "length":
            found["cut"] = "cut off at the longest length"
        segments = parse_response(response).segments[:50]
        if segments:
            found["s"] = [[s.start_s, s.end_s, s.caption[:200]] for s in segments]
    return found


def _media(
    sets: Sequence[_Set],
    models: Sequence[str],
    items: Sequence[dict[str, Any]],
    frames: Frames,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Pictures of some videos, each once, for `config.report_items` items; sets ``media`` of every item about them."""
    by_set = {one.key: one for one in sets}
    media: dict[str, Any] = {}
    used = 0
    for item in _chosen(items, models[-1], config):
        name = item["clip"]
        row = next(
            row
            for model in models
            if (model, "ordered") in by_set[item["set"]].rows
            for row in by_set[item["set"]].rows[model, "ordered"]
            if row["id"] == item["id"]
        )
        try:
            clip = frames(row)
        except Exception as error:  # the item failed for the same reason; the page is for seeing that
            item["noframes"] = f"no pictures: {one_line(error)}"
            continue
        if clip is None or used > _MAX_MEDIA_BYTES:
            continue
        if name not in media:
            pictures = [report.data_uri(report.jpeg(frame, _FRAME_HEIGHT, 75)) for frame in clip.frames]
            used += sum(map(len, pictures))
            times = [round(float(t), 3) for t in clip.times_s]
            media[name] = {"frames": pictures, "times": times, "duration": float(clip.duration_s)}
        if clip.kind == "video" and any("shuffled" in said for said in item["said"].values()):
            order = frame_order(item["id"], len(clip.frames), by_set[item["set"]].seed)
            item["order"] = [int(place) for place in order]
    for item in items:
        if item["clip"] in media:
            item["media"] = item["clip"]
    return media


def _chosen(items: Sequence[dict[str, Any]], candidate: str, config: EvaluationConfig) -> list[dict[str, Any]]:
    """Items to show with pictures: every kind of question with every outcome in turn, drawn by the seed."""
    order = sorted(items, key=lambda item: seed_of(config.seed, "shown", item["id"]))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in order:
        said = item["said"].get(candidate, {}).get("ordered", {"o": ""})
        groups.setdefault((item["set"], item["kind"], said["o"]), []).append(item)
    turns = [(turn, number) for number, g in enumerate(groups.values()) for turn in range(len(g))]
    listed = list(groups.values())
    return [listed[number][turn] for turn, number in sorted(turns)[: config.report_items]]
