"""The rows that the page shows, with their frames and evidence."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from ...common.answers.responses import parse_response
from ...common.html import blocks, images, page
from ...common.html.blocks import Filter, FilteredItem
from ...common.html.images import Span, Track
from ...common.rows.prepared import PreparedSet
from ...common.rows.sample import Sample
from .bars import cut

ITEMS = 36
"""Rows that are shown with their frames."""
_FRAMES_SHOWN = 8
_FRAME_HEIGHT = 96
_LONGEST_TEXT = 2000
_SPANS_SHOWN = 50


def choose_items(sampled: Mapping[str, Mapping[int, Sample]], items: int) -> list[tuple[str, int]]:
    """Split and place of the rows to show: every split, source, type and kind in turn; those with evidence first."""
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for split, rows in sampled.items():
        places = list(rows)
        random.Random(split).shuffle(places)
        places.sort(key=lambda place: not rows[place].evidence)
        for place in places:
            row = rows[place]
            groups.setdefault((split, row.source, row.problem_type, _kind(row)), []).append((split, place))
    turns = [(turn, number, item) for number, group in enumerate(groups.values()) for turn, item in enumerate(group)]
    return [item for _, _, item in sorted(turns)[:items]]


def item_list(
    prepared: PreparedSet, sampled: Mapping[str, Mapping[int, Sample]], shown: Sequence[tuple[str, int]]
) -> Markup:
    """The rows at ``shown`` (split and place), below buttons that choose among them."""
    names: dict[str, dict[str, str]] = {"split": {}, "kind": {}, "source": {}}
    entries = []
    for split, place in shown:
        sample = sampled[split][place]
        labels = {"split": split, "kind": _kind(sample) or sample.problem_type, "source": sample.source or "no source"}
        # The page's filters want names without spaces.
        values = {key: [names[key].setdefault(name, f"{key}{len(names[key])}")] for key, name in labels.items()}
        values["evidence"] = ["yes" if sample.evidence else "no"]
        entries.append(FilteredItem(content=_item(prepared, split, place, sample), values=values))
    filters = [
        Filter(key=key, label=label, choices=[(value, cut(name, 40)) for name, value in names[key].items()])
        for key, label in (("split", "split"), ("kind", "question"), ("source", "source"))
        if len(names[key]) > 1
    ]
    if len({entry.values["evidence"][0] for entry in entries}) > 1:
        choices = [("yes", "with evidence"), ("no", "without")]
        filters.append(Filter(key="evidence", label="evidence", choices=choices))
    return blocks.filtered_list(filters, entries)


def _item(prepared: PreparedSet, split: str, place: int, sample: Sample) -> Markup:
    timeline = Markup("")
    try:
        clip = prepared.split(split)[place].clip
    except Exception as error:  # one damaged file must not cost the page that would show it
        lines = str(error).splitlines() or [type(error).__name__]
        strip = page.paragraph(f"no frames: {lines[0]}", "bad")
    else:
        few = np.unique(np.linspace(0, len(clip.frames) - 1, min(_FRAMES_SHOWN, len(clip.frames))).round().astype(int))
        pictures = [images.jpeg(clip.frames[index], max_height=_FRAME_HEIGHT) for index in few]
        strip = images.frame_strip(pictures, clip.times_s[few] if clip.kind == "video" else None)
        if sample.evidence and clip.duration_s > 0:
            shown = sample.evidence[:_SPANS_SHOWN]
            spans = [Span(start_s=e.start_s, end_s=e.end_s, text=cut(e.caption)) for e in shown]
            timeline = images.timeline(clip.duration_s, [Track(label="evidence", spans=spans, tone="good")])
    trace = parse_response(sample.reasoning)
    segments = [(s.start_s, s.end_s, cut(s.caption), cut(s.thought)) for s in trace.segments]
    curation = sample.metadata.get("curation")
    return page.render(
        "data_prep/report/item.jinja",
        labels=[cut(text, 40) for text in (split, _kind(sample) or sample.problem_type, sample.source) if text],
        id=cut(sample.id),
        question=cut(sample.question, _LONGEST_TEXT),
        options=[f"{letter}. {cut(o)}" for letter, o in zip(string.ascii_uppercase, sample.options, strict=False)],
        strip=strip,
        timeline=timeline,
        answer=cut(sample.answer),
        uri=cut(sample.media.uri),
        segments=(segments or [(e.start_s, e.end_s, cut(e.caption), "") for e in sample.evidence])[:_SPANS_SHOWN],
        reasoning=cut(trace.reasoning if trace.segments else sample.reasoning or "", _LONGEST_TEXT),
        curation=cut(json.dumps(curation, ensure_ascii=False)) if curation is not None else "",
    )


def _kind(sample: Sample) -> str:
    kind = sample.metadata.get("kind")
    return kind if isinstance(kind, str) else ""
