"""Right answers against chance: letters of all rows, and whether guessing the longest option would do."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ...common.html import charts, page
from ...common.html.charts import Bar
from ...common.rows.sample import Sample
from ..dataset.data_card import DataCard
from .bars import columns, count_bars
from .counts import by_split


def answers(card: DataCard, sampled: Mapping[str, Mapping[int, Sample]]) -> Markup:
    """The section of the page; ``sampled``: rows by split and place."""
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
