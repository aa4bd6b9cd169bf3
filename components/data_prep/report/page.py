"""A prepared data set as one HTML page: what is in it, what is not, and a sample of it to look at.

Numbers over all rows come from the set's card, which preparation counted while it wrote the rows; what needs the rows
themselves (token lengths, the frames) is measured on a sample. So the page, and the work for it, are bounded whatever
the number of rows.
"""

from __future__ import annotations

import random
from pathlib import Path

from markupsafe import Markup

from ...common.html import page
from ...common.rows.prepared import PreparedFiles, PreparedSet
from ...common.rows.sample import Sample
from ...common.storage.manifest import Manifest
from ...common.storage.s3 import Storage
from ..dataset.data_card import DataCard
from . import counts
from .answers import answers
from .items import ITEMS, choose_items, item_list
from .lengths import CountTokens, lengths

SAMPLED_ROWS = 2000
"""Rows of each split on which lengths are measured, and from which those that are shown are chosen."""


def write_report(
    manifest: Manifest, storage: Storage, folder: Path, items: int = ITEMS, count_tokens: CountTokens | None = None
) -> str:
    """The page of a prepared set. Its rows are fetched, of its frames only those that are shown.

    Args:
        manifest: of the set, whose files are complete in the store.
        storage: where it is.
        folder: scratch space for its rows.
        items: so many rows are shown with their frames.
        count_tokens: tokens of a text; None: estimated from its characters.

    Raises:
        StorageError: the set is missing, unfinished, damaged, or of another version.
    """
    uri = PreparedFiles.load(manifest.files, f"{manifest.manifest_uri}, made by another version").card
    card = DataCard.load(storage.read_json(uri), uri)
    names = [name for name in storage.tree(manifest.uri).files if not name.startswith("media/")]
    storage.download_dir(manifest.uri, folder, names=names)
    prepared = PreparedSet(folder, manifest, remote=(storage, manifest.uri))
    return report_page(card, prepared, items, count_tokens)


def report_page(
    card: DataCard, prepared: PreparedSet, items: int = ITEMS, count_tokens: CountTokens | None = None
) -> str:
    """The page, from a set's card and the set."""
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
    made = prepared.manifest
    subtitle = f"{card.source} ({card.format}), prepared as {made.fingerprint} by vthink {made.version}"
    return page.page("Data", sections, subtitle)


def _sampled(prepared: PreparedSet, split: str) -> dict[int, Sample]:
    """Rows of a split by their place, drawn evenly; the same ones each time."""
    rows = prepared.split(split).samples
    places = range(len(rows))
    if len(rows) > SAMPLED_ROWS:
        chosen = random.Random(f"{prepared.manifest.fingerprint} {split}").sample(places, SAMPLED_ROWS)
        return {place: rows[place] for place in sorted(chosen)}
    return {place: rows[place] for place in places}
