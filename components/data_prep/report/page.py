"""A prepared data set as one HTML page: what is in it, what is not, and a sample of it to look at.

Numbers over all rows come from the set's card, which preparation counted while it wrote the rows; what needs the rows
themselves (token lengths, the frames) is measured on a sample. So the page, and the work for it, are bounded whatever
the number of rows.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...common.html import blocks as blocks_module
from ...common.html import charts, page
from ...common.html.charts import Bar
from ...common.rows.prepared import PreparedSet
from ...common.rows.sample import Sample
from ...common.storage.manifest import Manifest
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ...common.video.frames import target_size
from .items import ITEMS, _chosen, _cut, _items

SAMPLED_ROWS = 2000
"""Rows of each split on which lengths are measured, and from which those that are shown are chosen."""


_BARS = 12


_CHARACTERS_PER_TOKEN = 4


CountTokens = Callable[[str], int]


class ReportError(RuntimeError):
    """A set of which no report can be made; one line for a person."""


def write_report(
    manifest: Manifest,
    storage: Storage,
    folder: Path,
    items: int = ITEMS,
    count_tokens: CountTokens | None = None,
) -> str:
    """The page of a prepared set. Its rows are fetched, of its frames only those that are shown.

    Args:
        manifest: of the set, whose files are complete in the store.
        storage: where it is.
        folder: scratch space for its rows.
        items: so many rows are shown with their frames.
        count_tokens: tokens of a text; None: estimated from its characters.

    Raises:
        ReportError: the set has no card.
        StorageError: it is missing, unfinished or damaged.
    """
    if "card" not in manifest.files:
        raise ReportError(f"{manifest.uri} has no card (an older vthink made it); prepare the data again")
    card = storage.read_json(manifest.files["card"])
    names = [name for name in storage.tree(manifest.uri).files if not name.startswith("media/")]
    storage.download_dir(manifest.uri, folder, names=names)
    prepared = PreparedSet(folder, manifest, remote=(storage, manifest.uri))
    return report_page(card, prepared, items, count_tokens)


def token_counter(path: Path) -> CountTokens:
    """Counts tokens with a ``tokenizer.json``, as every fast tokenizer of the hub has one.

    Raises:
        ReportError: it is no such file, or the library that reads it is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ReportError("counting tokens needs the package tokenizers (it comes with transformers)") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises is a bare Exception
        raise ReportError(f"{path}: not a tokenizer.json ({str(error)[:100]})") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def report_page(
    card: Mapping[str, Any], prepared: PreparedSet, items: int = ITEMS, count_tokens: CountTokens | None = None
) -> str:
    """The page, from a set's card and the set."""
    sampled = {split: _sampled(prepared, split) for split, _ in _by_split(card)}
    sections: list[tuple[str, Markup]] = [
        ("Rows and files", _overview(card)),
        ("Splits", _splits(card)),
        ("What the questions are", _kinds(card)),
        ("Answers", _answers(card, sampled)),
        ("Lengths", _lengths(card, prepared.video, sampled, count_tokens)),
        ("Resolutions", _resolutions(card)),
    ]
    if any(sum(about["pass_rate"]["counts"]) for about in card["splits"].values()):
        rates = {split: about["pass_rate"] for split, about in _by_split(card)}
        sections.append(("Pass rates", _histograms(rates, lambda low, high: _between(low, high, "{:g}"))))
    sections += [("Duplicates and contamination", _contamination(card)), ("Quarantine", _quarantine(card))]
    shown = _chosen(sampled, items)
    if shown:
        title = f"{len(shown)} of {card['rows']['out']:,} rows"
        sections.append((title, _items(prepared, sampled, shown)))
    made = prepared.manifest
    subtitle = f"{card['source']} ({card['format']}), prepared as {made.fingerprint} by vthink {made.version}"
    return page.page("Data", sections, subtitle)


def _overview(card: Mapping[str, Any]) -> Markup:
    rows, media = card["rows"], card["media"]
    left_out = [(f"rows left out: {why}", count) for why, count in rows["left_out"].items()]
    table: list[Sequence[Any]] = [
        ("rows read", rows["in"]),
        *(
            (f"{name} ({_share(count, rows['in'])})", count)
            for name, count in [("rows kept", rows["out"]), ("rows quarantined", rows["quarantined"]), *left_out]
        ),
        ("videos and images shown, parts of files counted apart", media["shown"]),
        ("different files", media["files"]),
        ("frames stored", media["frames"]),
        ("files kept as they are, because their frames would be larger", media["files_kept_themselves"]),
    ]
    sizes = f"The files have {_bytes(media['source_bytes'])}; {_bytes(media['stored_bytes'])} are stored"
    ratio = f" ({media['stored_bytes'] / media['source_bytes']:.2f} of it)" if media["source_bytes"] else ""
    return blocks_module.table(["", "number"], table) + page.paragraph(f"{sizes}{ratio}.")


def _by_split(card: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    order = ["train", "validation", "test"]
    return sorted(card["splits"].items(), key=lambda item: (order.index(item[0]) if item[0] in order else 9, item[0]))


def _splits(card: Mapping[str, Any]) -> Markup:
    table = []
    for split, about in _by_split(card):
        duration = about["duration_s"]
        reaches = "–" if duration["mean"] is None else f"{duration['min']:.3g} – {duration['max']:.4g} s"
        mean = "–" if duration["mean"] is None else f"{duration['mean']:.3g} s"
        parts = [_share(about[name], about["rows"]) for name in ("with_reasoning", "with_evidence")]
        table.append([split, about["rows"], about["videos"], about["images"], *parts, mean, reaches])
    columns = ["split", "rows", "videos", "images", "with reasoning", "with evidence", "mean length", "lengths"]
    durations = {split: about["duration_s"] for split, about in _by_split(card) if about["videos"]}
    heading = Markup("<h3>videos by length</h3>") if durations else Markup("")
    return (
        blocks_module.table(columns, table)
        + heading
        + _histograms(durations, lambda a, b: _between(a, b, "{:g}", " s"))
    )


def _kinds(card: Mapping[str, Any]) -> Markup:
    columns = []
    for key, title in (("by_type", "by type"), ("by_source", "by source"), ("by_kind", "by kind")):
        for split, about in _by_split(card):
            if about[key]:
                columns.append((f"{title}, {split}", _counts(about[key])))
    return _columns(columns)


def _answers(card: Mapping[str, Any], sampled: Mapping[str, Mapping[int, Sample]]) -> Markup:
    letters, others = [], []
    for split, about in _by_split(card):
        for options, counts in about["letters"].items():
            letters.append((f"right letter of {options}, {split}", _letters(int(options), counts)))
        for kind, counts in about["answers"].items():
            others.append((f"{kind}, {split}", _counts(counts, of=about["by_type"][kind])))
    blocks = [_columns(letters)] if letters else []
    for split, rows in sampled.items():
        if (said := _longest_option(split, list(rows.values()))) is not None:
            blocks.append(page.paragraph(*said))
    if others:
        summary = "<details><summary>most frequent answers of other types</summary>{}</details>"
        blocks.append(Markup(summary).format(_columns(others)))
    return page.joined(blocks)


def _letters(options: int, counts: Mapping[str, int]) -> Markup:
    total, bars = sum(counts.values()), []
    # Three standard deviations of a fair deal.
    spread = 3 * (1 / options * (1 - 1 / options) / max(1, total)) ** 0.5
    for letter in string.ascii_uppercase[:options]:
        share = counts.get(letter, 0) / max(1, total)
        fair = abs(share - 1 / options) <= spread
        note = f"{counts.get(letter, 0):,}" + ("" if fair else ", not by chance")
        bars.append(Bar(label=letter, value=share, note=note, tone="accent" if fair else "warn"))
    return charts.bars(bars, maximum=max(2 / options, *(bar.value for bar in bars)))


def _longest_option(split: str, rows: Sequence[Sample]) -> tuple[str, page.Tone] | None:
    """Whether guessing the longest option would do: a fault of written questions."""
    chance, hits, n = 0.0, 0.0, 0
    for row in rows:
        if row.problem_type != "multiple_choice":
            continue
        lengths = [len(option) for option in row.options]
        longest = [place for place, length in enumerate(lengths) if length == max(lengths)]
        hits += (string.ascii_uppercase.index(row.answer) in longest) / len(longest)
        chance += 1 / len(lengths)
        n += 1
    if not n:
        return None
    expected, share = chance / n, hits / n
    suspicious = share > expected + 3 * (expected * (1 - expected) / n) ** 0.5
    text = f"{split}: the longest option is right in {100 * share:.0f} % of {n:,} sampled questions"
    return f"{text} (by chance: {100 * expected:.0f} %).", "warn" if suspicious else "plain"


def _lengths(
    card: Mapping[str, Any],
    video: VideoConfig,
    sampled: Mapping[str, Mapping[int, Sample]],
    count_tokens: CountTokens | None,
) -> Markup:
    def count(text: str) -> int:
        return count_tokens(text) if count_tokens is not None else -(-len(text) // _CHARACTERS_PER_TOKEN)

    table = []
    for split, rows in sampled.items():
        texts = {
            "question and options": [count("\n".join((row.question, *row.options))) for row in rows.values()],
            "reasoning": [count(row.reasoning) for row in rows.values() if row.reasoning is not None],
        }
        table += [[split, what, *_quantiles(lengths), len(lengths)] for what, lengths in texts.items() if lengths]
    columns = ["split", "text", "median tokens", "95 %", "longest", "rows"]
    how = "counted" if count_tokens is not None else f"estimated as {_CHARACTERS_PER_TOKEN} characters each"
    blocks = [
        blocks_module.table(columns, table),
        page.paragraph(f"Tokens of up to {SAMPLED_ROWS:,} rows of each split, {how}.", "plain"),
    ]
    if visual := _visual_tokens(card, video):
        tokens, files = np.array(visual).T
        low, high, mean = tokens.min(), tokens.max(), float((tokens * files).sum() / files.sum())
        frames = f"{video.num_frames} frames" if video.num_frames is not None else f"{video.fps:g} frames per second"
        text = f"Visual tokens of a video or image: {low:,.0f} to {high:,.0f}, {mean:,.0f} on average ({frames}"
        blocks.append(page.paragraph(f"{text}, at most {video.max_pixels:,} pixels each)."))
    return page.joined(blocks)


def _visual_tokens(card: Mapping[str, Any], video: VideoConfig) -> list[tuple[float, int]]:
    """Visual tokens and number of files, for every resolution that the card names."""
    media = card["media"]
    found = []
    for kind, counts in media["resolutions"].items():
        frames = float(video.num_frames or video.max_frames) if kind == "video" else float(video.temporal_multiple)
        for name, files in counts.items():
            width, _, height = name.partition("x")
            if not (width.isdecimal() and height.isdecimal()):
                continue  # "other"
            shown_height, shown_width = target_size(int(height), int(width), video)
            patches = (shown_height // video.size_multiple) * (shown_width // video.size_multiple)
            found.append((frames / video.temporal_multiple * patches, files))
    return found


def _resolutions(card: Mapping[str, Any]) -> Markup:
    return _columns(
        [(f"{kind}s, width × height", _counts(counts)) for kind, counts in card["media"]["resolutions"].items()]
    )


def _contamination(card: Mapping[str, Any]) -> Markup:
    found = card["contamination"]
    leaks = found["rows_that_leak"]
    like = "left out because" if found["near_duplicates_are_dropped"] else "kept although"
    table: list[Sequence[Any]] = [
        ("files that several splits share, byte for byte", found["files_in_several_splits"]),
        ("pairs of files that look the same, in whatever splits", found["near_duplicate_pairs"]),
        ("rows left out because the same video is in another split", leaks["split_leak"]),
        (f"rows {like} a video that looks the same is in another split", leaks["near_duplicate_leak"]),
    ]
    for split, about in found["questions"].items():
        number = about["rows_with_a_question_of_train"]
        table.append((f"rows of {split} whose question, with its options, is also one of train", number))
    return blocks_module.table(["", "number"], table) + page.paragraph(f"The rule: {found['rule']}")


def _quarantine(card: Mapping[str, Any]) -> Markup:
    if not card["quarantine"]:
        return page.paragraph("Nothing: every row could be used.", "good")
    blocks = []
    for reason, about in card["quarantine"].items():
        rows = [
            [example["line"], _cut(example["id"] or "–"), _cut(example["uri"] or "–"), _cut(example["detail"])]
            for example in about["examples"]
        ]
        chip = page.chip(f"{about['rows']:,} rows", "warn")
        heading = Markup("<h3>{} {}</h3>").format(reason.replace("_", " "), chip)
        blocks.append(heading + blocks_module.table(["line", "id", "file", "why"], rows))
    return page.joined(blocks) + page.paragraph("All of them are in the set's quarantine.jsonl.")


def _sampled(prepared: PreparedSet, split: str) -> dict[int, Sample]:
    """Rows of a split by their place, drawn evenly; the same ones each time."""
    rows = prepared.split(split).samples
    chosen = range(len(rows))
    if len(rows) > SAMPLED_ROWS:
        places = random.Random(f"{prepared.manifest.fingerprint} {split}").sample(range(len(rows)), SAMPLED_ROWS)
        return {place: rows[place] for place in sorted(places)}
    return {place: rows[place] for place in chosen}


def _columns(blocks: Sequence[tuple[str, Markup]]) -> Markup:
    columns = [Markup("<div><h3>{}</h3>{}</div>").format(title, block) for title, block in blocks]
    return Markup('<div class="columns">{}</div>').format(page.joined(columns))


def _counts(counts: Mapping[str, int], of: int | None = None) -> Markup:
    """Bars of shares; the smallest together."""
    total = max(1, sum(counts.values()) if of is None else of)
    shown = list(counts.items())[:_BARS]
    bars = [Bar(label=_cut(name, 60) or "(blank)", value=count / total, note=f"{count:,}") for name, count in shown]
    if rest := list(counts.values())[_BARS:]:
        bars.append(Bar(label=f"{len(rest)} more", value=sum(rest) / total, note=f"{sum(rest):,}", tone="plain"))
    return charts.bars(bars, maximum=max(bar.value for bar in bars) or 1.0)


def _histograms(found: Mapping[str, Mapping[str, Any]], label: Callable[[float, float | None], str]) -> Markup:
    return _columns([(split, _histogram(histogram, label)) for split, histogram in found.items()])


def _histogram(histogram: Mapping[str, Any], label: Callable[[float, float | None], str]) -> Markup:
    """Bars from the first to the last bin that is not empty."""
    edges, counts = histogram["edges"], histogram["counts"]
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return page.paragraph("none")
    total = sum(counts)
    bars = [
        Bar(label=label(low, high), value=counts[place] / total, note=f"{counts[place]:,}")
        for place, low, high in _bins(edges)
        if filled[0] <= place <= filled[-1]
    ]
    return charts.bars(bars, maximum=max(bar.value for bar in bars))


def _bins(edges: Sequence[float]) -> Iterator[tuple[int, float, float | None]]:
    for place, low in enumerate(edges):
        yield place, low, edges[place + 1] if place + 1 < len(edges) else None


def _between(low: float, high: float | None, form: str, unit: str = "") -> str:
    return f"{form.format(low)}{unit} or more" if high is None else f"{form.format(low)} – {form.format(high)}{unit}"


def _quantiles(lengths: Sequence[int]) -> list[int]:
    return [round(float(np.quantile(lengths, q))) for q in (0.5, 0.95, 1.0)]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _bytes(size: int) -> str:
    amount, unit = float(size), 0
    while amount >= 1024 and unit < 5:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}"
