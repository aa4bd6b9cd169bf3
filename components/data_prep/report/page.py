"""A prepared data set as one HTML page: what is in it, what is not, and a sample of it to look at.

Numbers over all rows come from the set's card; what needs the rows themselves (token lengths, the frames) is measured
on a sample. So the page, and the work for it, are bounded whatever the number of rows.
"""

import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...common.answers.responses import parse_response
from ...common.errors import UserError
from ...common.html import blocks, charts, images, page
from ...common.html.blocks import Filter, FilteredItem
from ...common.html.charts import Bar
from ...common.html.images import Span, Track
from ...common.rows.prepared import PreparedFiles, PreparedSet
from ...common.rows.sample import Sample
from ...common.storage.manifest import Manifest
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ...common.video.frames import target_size
from ..dataset.data_card import DataCard, Histogram, SplitCounts, question_kind

SAMPLED_ROWS = 2000  # rows of each split on which lengths are measured, and from which those that are shown are chosen
ITEMS = 36  # rows that are shown with their frames
_FRAMES_SHOWN = 8
_FRAME_HEIGHT = 96
_LONGEST_TEXT = 2000
_SPANS_SHOWN = 50
_BARS = 12
_CHARACTERS_PER_TOKEN = 4
CountTokens = Callable[[str], int]


def cut(text: str, length: int = 300) -> str:
    """The start of a text that is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def columns(titled: Sequence[tuple[str, Markup]]) -> Markup:
    """Blocks side by side, each below its title."""
    shown = [Markup("<div><h3>{}</h3>{}</div>").format(title, block) for title, block in titled]
    return Markup('<div class="columns">{}</div>').format(page.joined(shown))


def count_bars(counts: Mapping[str, int], of: int | None = None) -> Markup:
    """Bars of shares (of the sum, or of ``of``); the smallest together."""
    total = max(1, sum(counts.values()) if of is None else of)
    shown = list(counts.items())[:_BARS]
    bars = [Bar(label=cut(name, 60) or "(blank)", value=count / total, note=f"{count:,}") for name, count in shown]
    if rest := list(counts.values())[_BARS:]:
        bars.append(Bar(label=f"{len(rest)} more", value=sum(rest) / total, note=f"{sum(rest):,}", tone="plain"))
    return charts.bars(bars, maximum=max(bar.value for bar in bars) or 1.0)


def histogram_columns(histograms: Mapping[str, Histogram], unit: str = "") -> Markup:
    """Histograms by name, side by side."""
    return columns([(name, histogram_bars(histogram, unit)) for name, histogram in histograms.items()])


def histogram_bars(histogram: Histogram, unit: str = "") -> Markup:
    """Bars from the first to the last bin that is not empty."""
    filled = [place for place, count in enumerate(histogram.counts) if count]
    if not filled:
        return page.paragraph("none")
    total = sum(histogram.counts)
    bars = []
    for place in range(filled[0], filled[-1] + 1):
        count, ends = histogram.counts[place], [f"{edge:g}" for edge in histogram.edges[place : place + 2]]
        label = f"{ends[0]} – {ends[1]}{unit}" if len(ends) == 2 else f"{ends[0]}{unit} or more"
        bars.append(Bar(label=label, value=count / total, note=f"{count:,}"))
    return charts.bars(bars, maximum=max(bar.value for bar in bars))


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
    shown = [(title, split, about) for title in ("type", "source", "kind") for split, about in by_split(card)]
    counted = [(f"by {title}, {split}", getattr(about, f"by_{title}")) for title, split, about in shown]
    return columns([(title, count_bars(counts)) for title, counts in counted if counts])


def resolutions(card: DataCard) -> Markup:
    """Files by width and height."""
    resolutions = card.media.resolutions.items()
    return columns([(f"{kind}s, width × height", count_bars(counts)) for kind, counts in resolutions])


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
        table.append((label, questions["rows_with_a_question_of_train"]))
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


def answers(card: DataCard, sampled: Mapping[str, Mapping[int, Sample]]) -> Markup:
    """Right answers against chance; ``sampled``: rows by split and place."""
    letters, others = [], []
    for split, counts in by_split(card):
        for options, right in counts.letters.items():
            letters.append((f"right letter of {options}, {split}", _letter_bars(options, right)))
        for kind, frequent in counts.answers.items():
            others.append((f"{kind}, {split}", count_bars(frequent, of=counts.by_type[kind])))
    shown = [columns(letters)] if letters else []
    for split, rows in sampled.items():
        if (finding := longest_option(split, list(rows.values()))) is not None:
            shown.append(page.paragraph(*finding))
    if others:
        summary = "<details><summary>most frequent answers of other types</summary>{}</details>"
        shown.append(Markup(summary).format(columns(others)))
    return page.joined(shown)


def _letter_bars(options: int, counts: Mapping[str, int]) -> Markup:
    total, bars = max(1, sum(counts.values())), []
    spread = 3 * (1 / options * (1 - 1 / options) / total) ** 0.5  # three standard deviations of equal chances
    for letter in string.ascii_uppercase[:options]:
        count = counts.get(letter, 0)
        fair = abs(count / total - 1 / options) <= spread
        note = f"{count:,}" + ("" if fair else ", not by chance")
        bars.append(Bar(label=letter, value=count / total, note=note, tone="accent" if fair else "warn"))
    return charts.bars(bars, maximum=max(2 / options, *(bar.value for bar in bars)))


def longest_option(split: str, rows: Sequence[Sample]) -> tuple[str, page.Tone] | None:
    """Whether guessing the longest option would do: a fault of written questions."""
    questions = [row for row in rows if row.problem_type == "multiple_choice"]
    if not questions:
        return None
    chance, hits, n = 0.0, 0.0, len(questions)
    for row in questions:
        lengths = [len(option) for option in row.options]
        right = lengths[string.ascii_uppercase.index(row.answer)]
        hits += (right == max(lengths)) / lengths.count(max(lengths))
        chance += 1 / len(lengths)
    expected, share = chance / n, hits / n
    suspicious = share > expected + 3 * (expected * (1 - expected) / n) ** 0.5
    text = f"{split}: the longest option is right in {100 * share:.0f} % of {n:,} sampled questions"
    return f"{text} (by chance: {100 * expected:.0f} %).", "warn" if suspicious else "plain"


def token_counter(path: Path) -> CountTokens:
    """Counts tokens with a ``tokenizer.json``, as every fast tokenizer of the hub has one. Raises UserError: it is no
    such file, or the library that reads it is missing."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("counting tokens needs the package tokenizers (it comes with transformers)") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises is a bare Exception
        raise UserError(f"{path}: not a tokenizer.json ({str(error)[:100]})") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def lengths(
    card: DataCard,
    video: VideoConfig,
    sampled: Mapping[str, Mapping[int, Sample]],
    most_sampled: int,
    count_tokens: CountTokens | None,
) -> Markup:
    """Tokens of texts, on a sample of rows (by split and place; at most ``most_sampled`` of a split), and of what is
    seen, from the resolutions of all files; ``count_tokens``: of a text; None: estimated from its characters."""
    count = count_tokens or (lambda text: -(-len(text) // _CHARACTERS_PER_TOKEN))
    table = []
    for split, rows in sampled.items():
        texts = {
            "question and options": [count("\n".join((row.question, *row.options))) for row in rows.values()],
            "reasoning": [count(row.reasoning) for row in rows.values() if row.reasoning is not None],
        }
        for what, tokens in texts.items():
            if tokens:
                table.append([split, what, *(round(q) for q in np.quantile(tokens, (0.5, 0.95, 1.0))), len(tokens)])
    heads = ["split", "text", "median tokens", "95 %", "longest", "rows"]
    how = "counted" if count_tokens is not None else f"estimated as {_CHARACTERS_PER_TOKEN} characters each"
    shown = [blocks.table(heads, table), page.paragraph(f"Tokens of up to {most_sampled:,} rows of each split, {how}.")]
    if visual := visual_tokens(card.media.resolutions, video):
        tokens, files = np.array(visual).T
        low, high, mean = tokens.min(), tokens.max(), float((tokens * files).sum() / files.sum())
        frames = f"{video.num_frames} frames" if video.num_frames is not None else f"{video.fps:g} frames per second"
        text = f"Visual tokens of a video or image: {low:,.0f} to {high:,.0f}, {mean:,.0f} on average ({frames}"
        shown.append(page.paragraph(f"{text}, at most {video.max_pixels:,} pixels each)."))
    return page.joined(shown)


def visual_tokens(resolutions: Mapping[str, Mapping[str, int]], video: VideoConfig) -> list[tuple[float, int]]:
    """Visual tokens and number of files, for every resolution that the card names."""
    tokens = []
    for kind, counts in resolutions.items():
        frames = float(video.num_frames or video.max_frames) if kind == "video" else float(video.temporal_multiple)
        for name, files in counts.items():
            width, _, height = name.partition("x")
            if not (width.isdecimal() and height.isdecimal()):
                continue  # "other"
            shown_height, shown_width = target_size(int(height), int(width), video)
            patches = (shown_height // video.size_multiple) * (shown_width // video.size_multiple)
            tokens.append((frames / video.temporal_multiple * patches, files))
    return tokens


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
    sampled = {split: _sampled(prepared, split) for split, _ in by_split(card)}
    sections: list[tuple[str, Markup]] = [
        ("Rows and files", overview(card)),
        ("Splits", splits(card)),
        ("What the questions are", kinds(card)),
        ("Answers", answers(card, sampled)),
        ("Lengths", lengths(card, prepared.video, sampled, SAMPLED_ROWS, count_tokens)),
        ("Resolutions", resolutions(card)),
    ]
    if (rates := pass_rates(card)) is not None:
        sections.append(("Pass rates", rates))
    sections += [("Duplicates and contamination", contamination(card)), ("Quarantine", quarantine(card))]
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
