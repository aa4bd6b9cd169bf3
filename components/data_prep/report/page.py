"""A prepared data set as one HTML page: what is in it, what is not, and a sample of it to look at.

Numbers over all rows come from the set's card; what needs the rows themselves (token lengths, the frames) is measured
on a sample. So the page, and the work for it, are bounded whatever the number of rows.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ...common.answers.responses import parse_response
from ...common.html import blocks, images, page
from ...common.html.blocks import Filter, FilteredItem
from ...common.html.images import Span, Track
from ...common.rows.prepared import PreparedFiles, PreparedSet
from ...common.rows.sample import Sample
from ...common.storage.manifest import Manifest
from ...common.storage.s3 import Storage
from ..dataset.data_card import DataCard, question_kind
from . import counts
from .counts import CountTokens, answers, cut, lengths

SAMPLED_ROWS = 2000  # rows of each split on which lengths are measured, and from which those that are shown are chosen
ITEMS = 36  # rows that are shown with their frames
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
            group = (split, row.source, row.problem_type, question_kind(row) or "")
            groups.setdefault(group, []).append((split, place))
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
        kind = question_kind(sample) or sample.problem_type
        labels = {"split": split, "kind": kind, "source": sample.source or "no source"}
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
        labels=[cut(text, 40) for text in (split, question_kind(sample) or sample.problem_type, sample.source) if text],
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


def write_report(
    manifest: Manifest, storage: Storage, folder: Path, items: int = ITEMS, count_tokens: CountTokens | None = None
) -> str:
    """The page of a prepared set, whose files are complete in the store. Its rows are fetched to ``folder``, of its
    frames only those of the ``items`` that are shown; ``count_tokens``: of a text; None: estimated from its characters.
    Raises StorageError: the set is missing, unfinished, damaged, or of another version."""
    uri = PreparedFiles.load(manifest.files, f"{manifest.manifest_uri}, made by another version").card
    card = DataCard.load(storage.read_json(uri), uri)
    names = [name for name in storage.tree(manifest.uri).files if not name.startswith("media/")]
    storage.download_dir(manifest.uri, folder, names=names)
    prepared = PreparedSet(folder, manifest, remote=(storage, manifest.uri))
    sampled = {split: _sampled(prepared, split) for split, _ in counts.by_split(card)}
    sections: list[tuple[str, Markup]] = [
        ("Rows and files", counts.overview(card)),
        ("Splits", counts.splits(card)),
        ("What the questions are", counts.kinds(card)),
        ("Answers", answers(card, sampled)),
        ("Lengths", lengths(card, prepared.video, sampled, SAMPLED_ROWS, count_tokens)),
        ("Resolutions", counts.resolutions(card)),
    ]
    if (rates := counts.pass_rates(card)) is not None:
        sections.append(("Pass rates", rates))
    sections += [("Duplicates and contamination", counts.contamination(card)), ("Quarantine", counts.quarantine(card))]
    if shown := choose_items(sampled, items):
        title = f"{len(shown)} of {card.rows.rows_out:,} rows"
        sections.append((title, item_list(prepared, sampled, shown)))
    subtitle = f"{card.source} ({card.format}), prepared as {manifest.fingerprint} by vthink {manifest.version}"
    return page.page("Data", sections, subtitle)


def _sampled(prepared: PreparedSet, split: str) -> dict[int, Sample]:
    """Rows of a split by their place, drawn evenly; the same ones each time."""
    rows = prepared.split(split).samples
    rng = random.Random(f"{prepared.manifest.fingerprint} {split}")
    places = sorted(rng.sample(range(len(rows)), min(len(rows), SAMPLED_ROWS)))
    return {place: rows[place] for place in places}
