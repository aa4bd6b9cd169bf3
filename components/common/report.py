"""HTML blocks that reports are put together from: one self-contained page, for a phone too, light and dark.

Everything given as text is escaped (jinja2 with autoescape); pictures are data URIs; the page's policy
forbids every request and every script but its own. Blocks return `Markup`, so that they nest. Used by the
evaluation's report, the trainer's rollout table and the report of data preparation. Without torch.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup

Tone = Literal["plain", "good", "bad", "warn", "accent"]

_COMPONENTS = Path(__file__).resolve().parent.parent


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_COMPONENTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = data_uri
    environment.globals["number"] = number
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render ``<stage>/<name>.jinja`` with every value escaped unless it is `Markup`."""
    return Markup(_environment().get_template(template).render(**values))


def _block(name: str, **values: Any) -> Markup:
    blocks: Any = _environment().get_template("common/report.jinja").module
    return Markup(getattr(blocks, name)(**values))


def number(value: Any) -> str:
    """A number for a person: at most four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"


# -- the page ------------------------------------------------------------------------------------------------


def page(
    title: str,
    sections: Iterable[tuple[str, Markup | str]],
    subtitle: Markup | str = "",
    script: str | None = None,
    style: str | None = None,
) -> str:
    """A whole HTML document.

    Args:
        title: of the document and its first heading.
        sections: (heading, contents) in order; an empty heading gives none.
        subtitle: one line below the title.
        script: ``<stage>/<name>.js`` that the page needs besides its own.
        style: ``<stage>/<name>.css``, likewise.
    """
    style = _source("common/report.css") + (_source(style) if style else "")
    script = _source("common/report.js") + (_source(script) if script else "")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "common/page.jinja",
        title=title,
        subtitle=subtitle,
        sections=list(sections),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


@cache
def _source(name: str) -> str:
    return (_COMPONENTS / name).read_text()


# -- text and numbers ----------------------------------------------------------------------------------------


def paragraph(text: Markup | str, tone: Tone = "plain") -> Markup:
    """A paragraph."""
    return Markup('<p class="{}">{}</p>').format(tone, text)


def chip(text: str, tone: Tone = "plain") -> Markup:
    """A small label."""
    return Markup('<span class="chip {}">{}</span>').format(tone, text)


def joined(blocks: Iterable[Markup]) -> Markup:
    """Blocks one after the other."""
    return Markup("\n").join(blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A table cell that is sorted by something else than what it shows."""

    content: Markup | str
    sort: float | str | None
    """None: sorted last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A row of buttons of which one is pressed."""

    key: str
    """Lower-case name, as in `FilteredItem.values`."""
    label: str
    choices: Sequence[tuple[str, str]]
    """(value without spaces, text on the button); "all" is added."""


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str = "",
    sortable: bool = False,
    filters: Sequence[Filter] = (),
    values: Sequence[Mapping[str, Sequence[str]]] = (),
) -> Markup:
    """A table that scrolls sideways where it is too wide; numbers are right-aligned and rounded for reading.

    Args:
        columns: headings.
        rows: cells: text, `Markup`, numbers or `Cell`.
        caption: above the table.
        sortable: a click on a heading sorts by that column.
        filters: buttons that choose among the rows.
        values: per row, for each filter's key the values under which it is shown.
    """
    body = [
        [
            (
                cell.content if isinstance(cell, Cell) else cell,
                isinstance(cell, int | float | np.number) and not isinstance(cell, bool),
                cell.sort if isinstance(cell, Cell) else cell,
            )
            for cell in row
        ]
        for row in rows
    ]
    numeric = [bool(body) and all(row[i][1] for row in body) for i in range(len(columns))]
    heads = list(zip(columns, numeric, strict=True))
    shown = list(zip(body, values or [{}] * len(body), strict=True))
    inner = _block("table", columns=heads, rows=shown, caption=caption, sortable=sortable)
    if not filters:
        return inner
    return _block("filtered", filters=list(filters), counts=_counts(filters, values), total=len(body), content=inner)


def _counts(filters: Sequence[Filter], values: Sequence[Mapping[str, Sequence[str]]]) -> dict[tuple[str, str], int]:
    return {
        (f.key, value): sum(value in row.get(f.key, ()) for row in values) for f in filters for value, _ in f.choices
    }


def interval(value: float, low: float, high: float, percent: bool = True) -> Markup:
    """A value with its interval below it, in per cent or as it is."""
    shown = [f"{100 * x:.1f}" if percent else number(float(x)) for x in (value, low, high)]
    return _block("interval", value=shown[0], low=shown[1], high=shown[2], unit=" %" if percent else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One horizontal bar."""

    label: str
    value: float
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    note: str = ""
    """Small text behind the value, such as the number of items."""
    tone: Tone = "accent"


def bars(rows: Iterable[Bar], maximum: float = 1.0, percent: bool = True) -> Markup:
    """Horizontal bars with intervals, all on the scale from 0 to ``maximum``."""

    def at(x: float | None) -> float:
        return 0.0 if x is None or not math.isfinite(x) else 100 * min(max(x / maximum, 0.0), 1.0)

    shown = [
        {
            "label": row.label,
            "tone": row.tone,
            "note": row.note,
            "width": at(row.value),
            "low": None if row.low is None else at(row.low),
            "spread": at(row.high) - at(row.low),
            "text": f"{100 * row.value:.0f} %" if percent else number(float(row.value)),
        }
        for row in rows
    ]
    return _block("bars", rows=shown)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str = "",
    y_label: str = "",
    caption: str = "",
) -> Markup:
    """Lines over a common x axis, as inline SVG; points that are not finite are left out."""
    points = {
        name: [(float(x), float(y)) for x, y in values if math.isfinite(x) and math.isfinite(y)]
        for name, values in series.items()
    }
    everything = [point for values in points.values() for point in values]
    if not everything:
        return paragraph("nothing measured yet", "plain")
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    x0, x1, y0, y1 = min(xs), max(xs), min(*ys, 0.0), max(ys)
    x_span, y_span = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    width, height = 600, 180
    lines = [
        (
            name,
            index % 4,
            " ".join(f"{(x - x0) / x_span * width:.1f},{height - (y - y0) / y_span * height:.1f}" for x, y in values),
        )
        for index, (name, values) in enumerate(points.items())
    ]
    ticks = [(height - i / 4 * height, number(y0 + i / 4 * y_span)) for i in range(5)]
    return _block(
        "line_chart",
        lines=lines,
        ticks=ticks,
        width=width,
        height=height,
        x_ends=(number(x0), number(x1)),
        x_label=x_label,
        y_label=y_label,
        caption=caption,
    )


# -- video ---------------------------------------------------------------------------------------------------


def jpeg(frame: np.ndarray, max_height: int = 144, quality: int = 80) -> bytes:
    """One frame (H, W, 3) uint8 as JPEG, at most ``max_height`` high."""
    from PIL import Image

    image = Image.fromarray(frame)
    if image.height > max_height:
        image = image.resize((max(1, round(image.width * max_height / image.height)), max_height))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_uri(picture: bytes) -> str:
    """A JPEG or PNG as a ``data:`` URI."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def frame_strip(frames: np.ndarray | Sequence[bytes], times_s: Sequence[float] | np.ndarray | None = None) -> Markup:
    """Frames side by side, with their times below where given.

    Args:
        frames: (T, H, W, 3) uint8, or T encoded pictures.
        times_s: (T,) seconds.
    """
    pictures = [jpeg(frame) if isinstance(frame, np.ndarray) else bytes(frame) for frame in frames]
    times = [""] * len(pictures) if times_s is None else [f"{float(t):.1f} s" for t in times_s]
    return _block("frame_strip", frames=list(zip(pictures, times, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of time on a track."""

    start_s: float
    end_s: float
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One row of a timeline."""

    label: str
    spans: Sequence[Span]
    tone: Tone = "accent"


def timeline(duration_s: float, tracks: Iterable[Track]) -> Markup:
    """Stretches of time on a common axis from 0 to ``duration_s``; what lies outside is cut at the ends."""
    duration = duration_s if math.isfinite(duration_s) and duration_s > 0 else 1.0
    shown = []
    for track in tracks:
        spans = []
        for span in track.spans:
            if not (math.isfinite(span.start_s) and math.isfinite(span.end_s)):
                continue
            start, end = (min(max(x / duration, 0.0), 1.0) for x in (span.start_s, span.end_s))
            title = f"{span.start_s:.1f}–{span.end_s:.1f} s  {span.text}".strip()
            spans.append({"left": 100 * start, "width": 100 * max(end - start, 0.0), "text": span.text, "title": title})
        shown.append({"label": track.label, "tone": track.tone, "spans": spans})
    ticks = [f"{round(duration * i / 4, 2):g}" for i in range(5)]
    return _block("timeline", tracks=shown, ticks=ticks)


# -- lists of items that can be filtered ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredItem:
    """One entry of a list."""

    content: Markup
    values: Mapping[str, Sequence[str]]
    """For each filter's key the values under which the entry is shown."""


def filtered_list(filters: Sequence[Filter], items: Sequence[FilteredItem]) -> Markup:
    """Entries below buttons that choose among them (without scripts, all are shown)."""
    counts = _counts(filters, [item.values for item in items])
    return _block("filtered_list", filters=list(filters), items=list(items), counts=counts)


def embedded_json(identifier: str, value: Any) -> Markup:
    """Data for the page's script, which no text in it can leave: ``<``, ``>`` and ``&`` are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup('<script type="application/json" id="{}">').format(identifier) + Markup(text) + Markup("</script>")


# -- rollouts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutCompletion:
    """One completion of a group."""

    text: str
    rewards: Mapping[str, float]
    """Every component of the reward by name, and their ``total``."""
    advantage: float | None = None
    """None for completions that are not trained on (those on shuffled frames)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRow:
    """One prompt of a GRPO step with its groups."""

    prompt: str
    truth: str
    frames_ordered: Sequence[bytes]
    """Encoded pictures in the order of the video."""
    completions_ordered: Sequence[RolloutCompletion]
    frames_shuffled: Sequence[bytes] = ()
    """The same pictures in the order of the shuffled rollouts; empty where there were none."""
    completions_shuffled: Sequence[RolloutCompletion] = ()


def rollout_table(rows: Iterable[RolloutRow]) -> Markup:
    """Prompts with frames, completions, reward components and advantages, ordered and shuffled side by
    side."""
    shown = []
    for row in rows:
        groups = [("Ordered frames", row.frames_ordered, row.completions_ordered)]
        if row.frames_shuffled or row.completions_shuffled:
            groups.append(("Shuffled frames", row.frames_shuffled, row.completions_shuffled))
        sides = []
        for heading, frames, completions in groups:
            names = list(dict.fromkeys(name for completion in completions for name in completion.rewards))
            names.sort(key=lambda name: name == "total")
            sides.append(
                {
                    "heading": heading,
                    "strip": frame_strip(frames),
                    "names": names,
                    "completions": list(completions),
                }
            )
        shown.append({"prompt": row.prompt, "truth": row.truth, "sides": sides})
    return _block("rollouts", rows=shown)


def rollout_page(title: str, rows: Iterable[RolloutRow], subtitle: str = "") -> str:
    """`rollout_table` as a page of its own."""
    return page(title, [("", rollout_table(rows))], subtitle)
