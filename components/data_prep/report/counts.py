"""What the data set card says of all rows, as sections of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ...common.html import blocks, page
from ..dataset.data_card import DataCard, SplitCounts
from .bars import columns, count_bars, cut, histogram_columns


def by_split(card: DataCard) -> list[tuple[str, SplitCounts]]:
    """The splits: train, validation, test, and others by name."""
    order = ["train", "validation", "test"]
    return sorted(card.splits.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 9, item[0]))


def overview(card: DataCard) -> Markup:
    """What became of the rows and files."""
    rows, media = card.rows, card.media
    left_out = [(f"rows left out: {setting}", count) for setting, count in rows.left_out.items()]
    shares = [("rows kept", rows.rows_out), ("rows quarantined", rows.quarantined), *left_out]
    table: list[Sequence[Any]] = [
        ("rows read", rows.rows_in),
        *((f"{name} ({_share(count, rows.rows_in)})", count) for name, count in shares),
        ("videos and images shown, parts of files counted apart", media.shown),
        ("different files", media.files),
        ("frames stored", media.frames),
        ("files kept as they are, because their frames would be larger", media.files_kept_themselves),
    ]
    sizes = f"The files have {_bytes(media.source_bytes)}; {_bytes(media.stored_bytes)} are stored"
    ratio = f" ({media.stored_bytes / media.source_bytes:.2f} of it)" if media.source_bytes else ""
    return blocks.table(["", "number"], table) + page.paragraph(f"{sizes}{ratio}.")


def splits(card: DataCard) -> Markup:
    """Rows, media and lengths of each split."""
    table = []
    for split, counts in by_split(card):
        duration = counts.duration_s
        reaches = "–" if duration.mean is None else f"{duration.min:.3g} – {duration.max:.4g} s"
        mean = "–" if duration.mean is None else f"{duration.mean:.3g} s"
        parts = [_share(part, counts.rows) for part in (counts.with_reasoning, counts.with_evidence)]
        table.append([split, counts.rows, counts.videos, counts.images, *parts, mean, reaches])
    heads = ["split", "rows", "videos", "images", "with reasoning", "with evidence", "mean length", "lengths"]
    durations = {split: counts.duration_s for split, counts in by_split(card) if counts.videos}
    heading = Markup("<h3>videos by length</h3>") if durations else Markup("")
    return blocks.table(heads, table) + heading + histogram_columns(durations, " s")


def kinds(card: DataCard) -> Markup:
    """What the questions are."""
    titled = []
    for title in ("type", "source", "kind"):
        for split, about in by_split(card):
            if counts := getattr(about, f"by_{title}"):
                titled.append((f"by {title}, {split}", count_bars(counts)))
    return columns(titled)


def resolutions(card: DataCard) -> Markup:
    """Files by width and height."""
    return columns(
        [(f"{kind}s, width × height", count_bars(counts)) for kind, counts in card.media.resolutions.items()]
    )


def pass_rates(card: DataCard) -> Markup | None:
    """Rows by pass rate; None where no row has one."""
    rates = {split: counts.pass_rate for split, counts in by_split(card)}
    return histogram_columns(rates) if any(sum(rate.counts) for rate in rates.values()) else None


def contamination(card: DataCard) -> Markup:
    """What training and evaluation share."""
    shared = card.contamination
    like = "left out because" if shared.near_duplicates_are_dropped else "kept although"
    table: list[Sequence[Any]] = [
        ("files that several splits share, byte for byte", shared.files_in_several_splits),
        ("pairs of files that look the same, in whatever splits", shared.near_duplicate_pairs),
        ("rows left out because the same video is in another split", shared.rows_that_leak["split_leak"]),
        (f"rows {like} a video that looks the same is in another split", shared.rows_that_leak["near_duplicate_leak"]),
    ]
    for split, questions in shared.questions.items():
        label = f"rows of {split} whose question, with its options, is also one of train"
        table.append((label, questions.rows_with_a_question_of_train))
    return blocks.table(["", "number"], table) + page.paragraph(f"The rule: {shared.rule}")


def quarantine(card: DataCard) -> Markup:
    """The rows that are left out, by reason, with examples."""
    if not card.quarantine:
        return page.paragraph("Nothing: every row could be used.", "good")
    sections = []
    for reason, counts in card.quarantine.items():
        rows = [[e.line, cut(e.id or "–"), cut(e.uri or "–"), cut(e.detail)] for e in counts.examples]
        chip = page.chip(f"{counts.rows:,} rows", "warn")
        heading = Markup("<h3>{} {}</h3>").format(reason.replace("_", " "), chip)
        sections.append(heading + blocks.table(["line", "id", "file", "why"], rows))
    return page.joined(sections) + page.paragraph("All of them are in the set's quarantine.jsonl.")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _bytes(size: int) -> str:
    amount, unit = float(size), 0
    while amount >= 1024 and unit < 5:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}"
