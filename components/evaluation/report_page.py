"""The evaluation as one HTML page: what was measured, and for a sample of items what the models saw and
said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..common import report
from ..common.answers import parse_response
from ..common.report import Bar, Filter, FilteredItem, Span, Track
from .asking import Items, frame_order, one_line, seed_of
from .config import EvaluationConfig
from .expressions import FRAMES, METRICS
from .measures import Rows

_FRAMES = {"ordered": "in order", "shuffled": "shuffled", "other_video": "another video's"}
_METRICS = {
    "accuracy": "accuracy",
    "score": "graded score",
    "format_rate": "format",
    "mra": "MRA",
    "wer": "WER",
    "rouge": "ROUGE",
    "miou": "mIoU",
    "recall_at_30": "R@0.3",
    "recall_at_50": "R@0.5",
    "recall_at_70": "R@0.7",
}
_BASELINES = {"whole_clip": "always the whole clip", "mean_training_span": "mean training span"}
_MAX_FAILURES = 200


def report_page(
    result: Mapping[str, Any], rows: Rows, split: Items, indices: Sequence[int], config: EvaluationConfig
) -> str:
    """The report.

    Args:
        result: contents of ``result.json``.
        rows: graded items by (model, frames).
        split: where the frames are.
        indices: of the items that were asked.
        config: of the evaluation; ``report_items`` of the items are shown.
    """
    sections: list[tuple[str, Markup]] = [
        ("Models", _models_table(result)),
        ("What makes a difference", _differences(result)),
        ("Accuracy by kind of question, frames in order", _breakdown(result)),
    ]
    if result["baselines"]:
        sections.append(("Finding the evidence", _grounding(result)))
    if result["failed"]:
        sections.append((f"Failed items ({len(result['failed'])}), counted as wrong", _failures(result)))
    shown = _chosen(result, rows, indices, config)
    if shown:
        places = {place: indices[place] for place in shown}
        sections.append((f"{len(shown)} of {len(indices)} items", _items(result, rows, split, places, config)))
    subtitle = (
        f"{result['items']:,} questions about {result['videos']:,} videos and images, "
        f"split “{result['split']}”. Intervals: {100 * config.confidence:g} %, by bootstrap over videos."
    )
    return report.page("Evaluation", sections, subtitle)


def _models_table(result: Mapping[str, Any]) -> Markup:
    cells = [about[frames] for about in result["models"].values() for frames in FRAMES if frames in about]
    names = [name for name in METRICS if name in _METRICS and any(name in cell for cell in cells)]
    table = []
    for model, about in result["models"].items():
        for frames in FRAMES:
            if frames not in about:
                continue
            name = Markup("<b>{}</b>") if frames == "ordered" else Markup('<span class="soft">{}, {}</span>')
            row: list[Any] = [name.format(model, _FRAMES[frames])]
            for metric in names:
                found = about[frames].get(metric)
                row.append("" if found is None else _interval(found, percent=metric != "wer"))
            table.append([*row, about[frames]["accuracy"]["n"]])
    left_out = [f"{_FRAMES[frames]}: not asked, {why}." for frames, why in result["left_out"].items()]
    return report.joined(
        [
            report.table(["model", *(_METRICS[name] for name in names), "n"], table),
            *(report.paragraph(text) for text in left_out),
        ]
    )


def _interval(found: Mapping[str, float], percent: bool = True) -> Markup:
    return report.interval(found["value"], found["low"], found["high"], percent)


def _differences(result: Mapping[str, Any]) -> Markup:
    table = []
    for found in result["comparisons"]:
        if found["low"] > 0:
            said = report.chip("higher", "good")
        elif found["high"] < 0:
            said = report.chip("lower", "bad")
        else:
            said = report.chip("no significant difference")
        names = [_cell_name(found[side]) for side in ("first", "second")]
        points = [f"{100 * found[part]:+.1f}" for part in ("value", "low", "high")]
        shown = Markup('<span class="interval"><b>{}</b><small>{} … {}</small></span>').format(*points)
        table.append([f"{names[0]} − {names[1]}", shown, said, found["kind"] or "all", found["n"]])
    if not table:
        return report.paragraph("Nothing to compare: there are fewer than two videos.")
    columns = ["accuracy", "difference in points", "", "questions", "n"]
    overall = report.table(columns, [row for row in table if row[3] == "all"])
    if all(row[3] == "all" for row in table):
        return overall
    by_kind = report.table(columns, [row for row in table if row[3] != "all"])
    return overall + Markup("<details><summary>by kind of question</summary>{}</details>").format(by_kind)


def _cell_name(cell: str) -> str:
    model, frames = cell.split(".")
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
                    tone: report.Tone = "plain" if frames == "shuffled" else "accent"
                    bars.append(Bar(label=label, value=found["value"], low=found["low"], high=found["high"], tone=tone))
        columns.append({"name": name, "n": candidate[group][name]["accuracy"]["n"], "bars": report.bars(bars)})
    return report.render("evaluation/columns.jinja", columns=columns)


def _grounding(result: Mapping[str, Any]) -> Markup:
    columns = []
    sources = [(name, about["ordered"], "accent") for name, about in result["models"].items()]
    sources += [(_BASELINES[name], about["ordered"], "plain") for name, about in result["baselines"].items()]
    for metric in ("miou", "recall_at_30", "recall_at_50", "recall_at_70"):
        bars = [
            Bar(label=name, value=f["value"], low=f["low"], high=f["high"], tone=tone)  # type: ignore[arg-type]
            for name, cell, tone in sources
            if (f := cell.get(metric)) is not None
        ]
        n = max((cell[metric]["n"] for _, cell, _ in sources if metric in cell), default=0)
        columns.append({"name": _METRICS[metric], "n": n, "bars": report.bars(bars)})
    return report.render("evaluation/columns.jinja", columns=columns)


def _failures(result: Mapping[str, Any]) -> Markup:
    failed = result["failed"]
    table = [[row["id"], row["model"], _FRAMES[row["frames"]], row["error"]] for row in failed[:_MAX_FAILURES]]
    block = report.table(["item", "model", "frames", "reason"], table)
    if len(failed) > _MAX_FAILURES:
        block += report.paragraph(f"and {len(failed) - _MAX_FAILURES} more, in items.jsonl")
    return block


# -- items ---------------------------------------------------------------------------------------------------


def _outcome(row: Mapping[str, Any]) -> str:
    return "failed" if row["error"] is not None else "right" if row["correct"] else "wrong"


def _chosen(result: Mapping[str, Any], rows: Rows, indices: Sequence[int], config: EvaluationConfig) -> list[int]:
    """Positions (in ``indices``) of the items to show: every kind of question with every outcome in turn."""
    candidate = rows[result["candidate"], "ordered"]
    order = sorted(range(len(indices)), key=lambda place: seed_of(config.seed, "shown", candidate[place]["id"]))
    groups: dict[tuple[Any, str], list[int]] = {}
    for place in order:
        row = candidate[place]
        groups.setdefault((row["kind"] or row["problem_type"], _outcome(row)), []).append(place)
    turns = [(turn, number, place) for number, g in enumerate(groups.values()) for turn, place in enumerate(g)]
    return [place for _, _, place in sorted(turns)[: config.report_items]]


def _items(
    result: Mapping[str, Any], rows: Rows, split: Items, places: Mapping[int, int], config: EvaluationConfig
) -> Markup:
    by_id = {cell: {row["id"]: row for row in found} for cell, found in rows.items()}
    models = list(result["models"])
    candidate, before = models[-1], models[-2] if len(models) > 1 else None
    entries, kinds = [], {}
    for place, index in places.items():
        row = rows[candidate, "ordered"][place]
        item_id, kind = row["id"], row["kind"] or row["problem_type"]
        kinds[kind] = kind
        values = {"outcome": [_outcome(row)], "kind": [kind], "change": []}
        shuffled = by_id.get((candidate, "shuffled"), {}).get(item_id)
        if shuffled is not None and row["correct"] and not shuffled["correct"]:
            values["outcome"].append("order")
        if before is not None:
            earlier = by_id[before, "ordered"][item_id]["correct"]
            if row["correct"] != earlier:
                values["change"].append("gained" if row["correct"] else "lost")
        content = _item(split, index, models, by_id, config)
        entries.append(FilteredItem(content=content, values=values))
    outcomes = [("right", "right"), ("wrong", "wrong")]
    if any("order" in entry.values["outcome"] for entry in entries):
        outcomes.append(("order", "right only in order"))
    if any("failed" in entry.values["outcome"] for entry in entries):
        outcomes.append(("failed", "failed"))
    filters = [Filter(key="outcome", label=f"{candidate} is", choices=outcomes)]
    if before is not None:
        choices = [("gained", "now right"), ("lost", "no longer right")]
        filters.append(Filter(key="change", label=f"after {before}", choices=choices))
    if len(kinds) > 1:
        filters.append(Filter(key="kind", label="question", choices=[(kind, kind) for kind in sorted(kinds)]))
    return report.filtered_list(filters, entries)


def _item(
    split: Items,
    index: int,
    models: Sequence[str],
    by_id: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]],
    config: EvaluationConfig,
) -> Markup:
    sample = split.samples[index]
    try:
        clip = split[index].clip
    except Exception as error:  # the item failed for the same reason; the page is for seeing that
        strip, shuffled, duration_s = report.paragraph(f"no frames: {one_line(error)}", "bad"), "", 0.0
    else:
        strip, shuffled, duration_s = report.frame_strip(clip.frames, clip.times_s), "", clip.duration_s
        if clip.kind == "video" and any(cell == (models[-1], "shuffled") for cell in by_id):
            order = frame_order(sample.id, len(clip.frames), config.seed)
            shuffled = report.frame_strip(clip.frames[order])
    truth = [Span(start_s=e.start_s, end_s=e.end_s, text=e.caption) for e in sample.evidence]
    tracks = [Track(label="truth", spans=truth, tone="good")] if truth else []
    said = []
    for model in reversed(models):
        asked = [(frames, by_id[model, frames].get(sample.id)) for frames in FRAMES if (model, frames) in by_id]
        parsed = parse_response(asked[0][1]["response"] if asked[0][1] else "")
        spans = [Span(start_s=s.start_s, end_s=s.end_s, text=s.caption) for s in parsed.segments]
        if spans and duration_s > 0:
            tracks.append(Track(label=model, spans=spans))
        said.append(
            {
                "model": model,
                "outcomes": [
                    {**row, "frames": _FRAMES[frames], "outcome": _outcome(row)} for frames, row in asked if row
                ],
                "segments": parsed.segments,
                "reasoning": parsed.reasoning,
            }
        )
    return report.render(
        "evaluation/item.jinja",
        sample=sample,
        kind=sample.metadata.get("kind") or sample.problem_type,
        letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        strip=strip,
        shuffled=shuffled,
        timeline=report.timeline(duration_s, tracks) if tracks and duration_s > 0 else "",
        said=said,
        tones={"right": "good", "wrong": "bad", "failed": "warn"},
    )
