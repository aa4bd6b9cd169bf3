"""The page of a comparison on benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ...common.html import blocks, page
from ...common.html.blocks import Cell, Filter
from ..config import EvaluationConfig
from ..results import BenchmarkResult, compare
from ..statistics import over_runs
from .items import _browser
from .tables import (
    _METRICS,
    Frames,
    _differences,
    _estimate,
    _failures,
    _how_sure,
    _legend,
    _regressions,
    _reliance,
    _Set,
)


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
    return page.page("Benchmarks", sections, subtitle, "evaluation/report/items.js", "evaluation/report/items.css")


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
    return page.joined(
        [
            blocks.table(headings, table, sortable=True, filters=filters, values=values),
            _legend(models[0], len(models) > 1),
            page.paragraph(
                Markup(
                    "<small>Published figures are the papers' own, with their frames (@) and pixels; they have no "
                    "interval and are not re-measured here.</small>"
                )
            ),
            *(page.paragraph(Markup("<small>{}</small>").format(note)) for note in notes),
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
    return blocks.table(["kind", "benchmark", *models, "n"], table, sortable=True, filters=filters, values=values)


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
    return [("Grading as published, format, grounding, captions", blocks.table(columns, table, sortable=True))]


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
    return page.joined(
        [blocks.table(columns, table, sortable=True), *(page.paragraph(text) for text in dict.fromkeys(traps))]
    )
