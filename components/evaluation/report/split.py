"""Evaluations as one HTML page: what was measured, how sure it is, and every item with what the models said.

`report_page` shows the pipeline's evaluation (models of one run on the held-out split); `benchmark_page` compares
finished benchmarks (folders of ``vthink evaluate --benchmark``), with the papers' published figures beside them. The
page holds everything it needs and asks for nothing; items travel as data that its script shows page by page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ...common.html import blocks, page
from ...common.html.blocks import Cell
from ..conditions import Items
from ..config import EvaluationConfig
from ..expressions import FRAMES, METRICS
from ..results import BenchmarkResult
from ..summary import Rows
from ..summary import compare as compare_rows
from .benchmarks import _benchmark_comparisons, _benchmark_table
from .items import _browser
from .tables import (
    _FRAMES,
    _METRICS,
    _breakdown,
    _differences,
    _estimate,
    _failures,
    _grounding,
    _how_sure,
    _legend,
    _regressions,
    _reliance,
    _Set,
)

if TYPE_CHECKING:
    from ...common.video.clip import Clip


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
    return page.page("Evaluation", sections, subtitle, "evaluation/report/items.js", "evaluation/report/items.css")


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
    return page.joined(
        [
            blocks.table(columns, table, sortable=True),
            _legend(first, len(result["models"]) > 1),
            *(page.paragraph(text) for text in left_out),
        ]
    )
