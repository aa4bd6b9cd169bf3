"""Tables and charts of evaluation pages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...common.html import blocks, charts, page
from ...common.html.blocks import Cell, Filter
from ...common.html.charts import Bar
from ..conditions import CONDITIONS, ORDERED, condition_title
from ..config import EvaluationConfig
from ..metrics import METRICS, metric_named
from ..results import BenchmarkResult, Comparison, EvaluationResult
from ..statistics import Difference, over_runs
from ..summary import compare
from .cells import Board, PublishedModel, bar, benchmark_filter, estimate_cell, legend, published, small

_BASELINES = {"whole_clip": "always the whole clip", "mean_training_span": "mean training span"}
_ABILITIES = (
    *(
        "answer_found",
        "tagged",
        "truncated",
        "follows",
        "accuracy_paper",
        "mra_paper",
        "format_rate",
        "miou",
        "recall_at_30",
        "recall_at_50",
        "recall_at_70",
    ),
    *("caption_rouge_l", "caption_bleu_1", "caption_bleu_4", "caption_meteor"),
)
_MAX_FAILURES = 200
_MAX_REGRESSIONS = 20


def conditions_table(board: Board, left_out: Mapping[str, str], config: EvaluationConfig) -> Markup:
    """Models and conditions × metrics, of one benchmark."""
    results = board.firsts
    cells = [cell for result in results for cell in result.result.conditions.values()]
    names = [name for name, metric in METRICS.items() if metric.title and any(name in cell.metrics for cell in cells)]
    first, table = results[0], []
    for result in results:
        for condition in CONDITIONS:
            cell = result.result.conditions.get(condition)
            if cell is None:
                continue
            name = Markup("<b>{}</b>") if condition == ORDERED else Markup('<span class="soft">{}, {}</span>')
            label = name.format(result.model, condition_title(condition))
            row: list[Any] = [Cell(content=label, sort=f"{result.model} {condition}")]
            for metric in names:
                compared = result is not first and condition == ORDERED and metric in cell.metrics
                difference = compare(result, first, metric, config.resampling) if compared else None
                row.append(estimate_cell(cell.metrics.get(metric), metric, difference))
            table.append([*row, cell.metrics["accuracy"].n])
    notes = [f"{condition_title(name)}: not measured, {why}." for name, why in left_out.items()]
    columns = ["model", *(metric_named(name).title for name in names), "n"]
    shown = blocks.table(columns, table, sortable=True)
    return page.joined([shown, legend(first.model, len(results) > 1), *map(page.paragraph, notes)])


def benchmarks_table(board: Board, comparisons: Sequence[Comparison]) -> Markup:
    """Models × the headline of each benchmark, then published figures; scores published under another definition have
    a column of their own."""
    figures = published()
    columns: list[tuple[str, str, str]] = []  # benchmark, score, heading
    for key, results in board.by_benchmark.items():
        first = results[0]
        measured = first.ordered.metrics.keys() | first.ordered.scores.keys()
        scores = dict.fromkeys([first.headline, *sorted(figures.scores_of(key) & measured)])
        title = board.titles[key]
        columns += [(key, score, title if len(scores) == 1 else f"{title}, {score}") for score in scores]
    reference = board.models[0]
    against = {
        (c.first.rpartition(".")[0], c.benchmark, c.metric): c
        for c in comparisons
        if c.kind is None and c.second == f"{reference}.{ORDERED}"
    }
    table: list[list[Any]] = []
    for model in board.models:
        row: list[Any] = [Cell(content=Markup("<b>{}</b>").format(model), sort=model)]
        for key, score, _ in columns:
            row.append(_runs_cell(board.runs.get((model, key), ()), score, against.get((model, key, score))))
        table.append(row)
    names = {f"{key}.{score}": heading for key, score, heading in columns}
    for one in (one for one in figures.models if one.values.keys() & names.keys()):
        name = f"{one.model} @{one.frames}"
        label = Markup('<span class="soft">{}<br><small>published: {}</small></span>').format(name, one.source)
        table.append([Cell(content=label, sort=name), *(_published_cell(one, figure) for figure in names)])
    sources = ["ours"] * len(board.models) + ["published"] * (len(table) - len(board.models))
    values = [{"source": [source]} for source in sources]
    filters = [Filter(key="source", label="source", choices=[("ours", "ours"), ("published", "published")])]
    notes = [
        "Published figures are the papers' own, with their frames (@) and pixels; they have no interval and are not "
        "re-measured here.",
        *(
            f"{heading}: {figures.unverified[name]} — unverified; compare the published figure with care."
            for name, heading in names.items()
            if name in figures.unverified and any(name in one.values for one in figures.models)
        ),
    ]
    shown = blocks.table(["model", *names.values()], table, sortable=True, filters=filters, values=values)
    return page.joined([shown, legend(reference, len(board.models) > 1), *map(small, notes)])


def _published_cell(one: PublishedModel, name: str) -> Any:
    figure = one.values.get(name)
    if figure is None:
        return ""
    caveat = published().unverified.get(name)
    title = one.source + (f"; unverified: {caveat}" if caveat else "")
    content = Markup('<span class="soft" title="{}">{:.1f} %</span>').format(title, figure)
    return Cell(content=content, sort=figure / 100)


def _runs_cell(runs: Sequence[BenchmarkResult], score: str, difference: Difference | None) -> Any:
    estimates = [estimate for run in runs if (estimate := run.ordered.estimate(score)) is not None]
    if len(estimates) < 2:
        return estimate_cell(estimates[0] if estimates else None, score, difference)
    spread = over_runs([estimate.value for estimate in estimates])
    text = f"{100 * spread.mean:.1f} ± {100 * (spread.spread or 0):.1f} %"
    ends = f"{100 * (spread.low or 0):.1f} – {100 * (spread.high or 0):.1f}"
    content = Markup('<span class="interval" title="mean ± standard deviation; below: interval of the mean">').format()
    content += Markup("<b>{}</b><small>{} over {} runs</small></span>").format(text, ends, spread.runs)
    return Cell(content=content, sort=spread.mean)


def kinds_table(board: Board) -> Markup:
    """The metric of each kind of question, and of each problem type."""
    table, values = [], []
    for key, results in board.by_benchmark.items():
        groups = dict.fromkeys(group for result in results for group in result.ordered.groups)
        for group in sorted(groups, key=lambda group: group[0] == "by_type"):
            measured = [board.get(model, key) for model in board.models]
            metric = results[0].metric_of(group)
            estimates = [one.ordered.estimate(metric, group) if one else None for one in measured]
            n = max((estimate.n for estimate in estimates if estimate), default=0)
            cells = (estimate_cell(estimate) for estimate in estimates)
            table.append([group[1], board.titles[key], metric_named(metric).title, *cells, n])
            values.append({"benchmark": [key], "group": [group[0]]})
    filters = [Filter(key="group", label="by", choices=[("by_kind", "kind"), ("by_type", "problem type")])]
    filters += benchmark_filter(board.titles)
    columns = ["kind", "benchmark", "metric", *board.models, "n"]
    return blocks.table(columns, table, sortable=True, filters=filters, values=values)


def abilities_table(board: Board) -> Markup | None:
    """Grading as published, format, grounding and captions, Video-Thinker's own figures (of another set) below."""
    results = [result for model in board.models for key in board.titles if (result := board.get(model, key))]
    names = [name for name in _ABILITIES if any(name in result.ordered.metrics for result in results)]
    if not names:
        return None
    table: list[list[Any]] = [
        [result.model, result.result.title, *(estimate_cell(result.ordered.metrics.get(name), name) for name in names)]
        for result in results
    ]
    for one in published().abilities:
        figures = [one.values.get(name) for name in names]
        if any(figure is not None for figure in figures):
            cells = ["" if f is None else Cell(content=f"{f:.1f} %", sort=f / 100) for f in figures]
            table.append([f"{one.model} (published)", f"{one.source}: its own 1,000 captioned samples", *cells])
    return blocks.table(["model", "questions", *(metric_named(n).title for n in names)], table, sortable=True)


def _columns(columns: Sequence[tuple[str, int, Sequence[Bar]]]) -> Markup:
    """Charts side by side: (name, items, bars)."""
    shown = [{"name": name, "n": n, "bars": charts.bars(bars)} for name, n, bars in columns]
    return page.render("evaluation/report/columns.jinja", columns=shown)


def reliance_chart(board: Board) -> Markup:
    """The headline under every condition."""
    columns = []
    for result in board.firsts:
        cells = [(name, result.result.conditions.get(name)) for name in CONDITIONS]
        estimates = {name: e for name, cell in cells if cell and (e := cell.estimate(result.headline)) is not None}
        bars = [bar(condition_title(n), e, "accent" if n == ORDERED else "plain") for n, e in estimates.items()]
        if len(bars) > 1:
            columns.append((board.label(result), estimates[ORDERED].n, bars))
    if not columns:
        return page.paragraph("Asked with frames in order only, so that this cannot be said.")
    note = "A model that answers from the words of the question does as well without the video, or with a wrong one."
    return _columns(columns) + page.paragraph(note)


def grounding_chart(result: EvaluationResult) -> Markup:
    """Models beside what needs no model."""
    columns = []
    for metric in ("miou", "recall_at_30", "recall_at_50", "recall_at_70"):
        models = [(name, about.conditions[ORDERED].metrics.get(metric)) for name, about in result.models.items()]
        baselines = [(_BASELINES[name], cells[ORDERED].metrics.get(metric)) for name, cells in result.baselines.items()]
        bars = [bar(name, estimate) for name, estimate in models if estimate]
        bars += [bar(name, estimate, "plain") for name, estimate in baselines if estimate]
        n = max((estimate.n for _, estimate in models + baselines if estimate), default=0)
        columns.append((metric_named(metric).title, n, bars))
    return _columns(columns)


def failures_table(board: Board) -> Markup | None:
    """The questions that got no answer."""
    table = [
        [row.id, board.label(result), condition_title(row.condition), row.error]
        for result in board.firsts
        for row in result.result.failed
    ]
    if not table:
        return None
    columns, more = ["item", "model", "condition", "reason"], len(table) - _MAX_FAILURES
    shown = page.paragraph(f"{len(table)} items.") + blocks.table(columns, table[:_MAX_FAILURES], sortable=True)
    return shown + page.paragraph(f"and {more} more, in items.jsonl") if more > 0 else shown


def regressions_table(board: Board) -> Markup | None:
    """Kinds of questions and videos on which the last model does worse than the one before it."""
    if len(board.models) < 2:
        return None
    before, now = board.models[-2:]
    tallies: dict[tuple[str, str, str], list[int]] = {}  # (what, name, benchmark): lost, gained, items
    names: dict[str, str] = {}  # of videos
    for key in board.titles:
        earlier, later = board.get(before, key), board.get(now, key)
        if earlier is None or later is None:
            continue
        was_right = {item.id: item.correct for item in earlier.items[ORDERED]}
        names |= {item.video: item.video_name for item in later.items[ORDERED]}
        for item in (item for item in later.items[ORDERED] if item.id in was_right):
            for what, name in (("question", item.kind or item.problem_type), ("video", item.video)):
                tally = tallies.setdefault((what, name, key), [0, 0, 0])
                tally[0] += was_right[item.id] and not item.correct
                tally[1] += item.correct and not was_right[item.id]
                tally[2] += 1
    worse = [(*which, lost, gained, n) for which, (lost, gained, n) in tallies.items() if lost > gained]
    if not worse:
        return page.paragraph(f"None: no kind of question lost more than it gained since {before}.")
    several = len(board.titles) > 1
    button = Markup('<button type="button" data-show="{}">show</button>')
    rows = []
    for what in ("question", "video"):
        worst = sorted((row for row in worse if row[0] == what), key=lambda row: (row[4] - row[3], row[1]))
        for _, name, key, lost, gained, n in worst[:_MAX_REGRESSIONS]:
            wanted = {"change": "lost", "kind" if what == "question" else "video": name, "set": key}
            shown = Cell(content=button.format(json.dumps(wanted, ensure_ascii=False)), sort=None)
            title = names.get(name, name) if what == "video" else name
            rows.append([what, title, *([board.titles[key]] if several else []), lost, gained, gained - lost, n, shown])
    filters = [Filter(key="what", label="by", choices=[("question", "kind of question"), ("video", "video")])]
    columns = ["", "name", *(["benchmark"] if several else []), "lost", "gained", "net", "items", ""]
    values = [{"what": [str(row[0])]} for row in rows]
    caption = f"Right with {before}, no longer right with {now}; counts, not a test (see above for those)."
    return blocks.table(columns, rows, caption, sortable=True, filters=filters, values=values)


def settings_table(board: Board) -> Markup:
    """How every result came about, and what to beware of."""
    table, traps = [], []
    for run in board.results:
        result, settings = run.result, run.result.settings
        video = settings.video or {}
        per_second = f"{video['fps']} fps" if video.get("fps") else ""
        frames = video.get("num_frames") or per_second or result.model.frames or ""
        asked = (settings.temperature, settings.top_p, settings.max_new_tokens, settings.seed)
        before = [run.model, result.title, settings.protocol, frames, video.get("max_pixels"), *asked]
        row: list[Any] = ["" if value is None else str(value) for value in [*before, result.model.prompt]]
        row += [result.items, result.videos, result.missing_videos]
        table.append([*row, result.model.uri[-80:], (result.git_commit or "")[:12]])
        traps += [f"{result.title}: {trap}" for trap in result.traps]
    columns = ["model", "benchmark", "protocol", "frames", "pixels", "temperature", "top_p", "tokens", "seed", "prompt"]
    columns += ["questions", "videos", "missing", "from", "commit"]
    return page.joined([blocks.table(columns, table, sortable=True), *map(page.paragraph, dict.fromkeys(traps))])
