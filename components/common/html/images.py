"""Pictures and timelines of a page."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .page import Tone, template_block


def jpeg(frame: np.ndarray, max_height: int = 144, quality: int = 80) -> bytes:
    """One frame (H, W, 3) uint8 as JPEG, at most ``max_height`` high."""
    from PIL import Image

    image = Image.fromarray(frame)
    if image.height > max_height:
        image = image.resize((max(1, round(image.width * max_height / image.height)), max_height))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def frame_strip(frames: np.ndarray | Sequence[bytes], times_s: Sequence[float] | np.ndarray | None = None) -> Markup:
    """Frames, (T, H, W, 3) uint8 or T encoded pictures, side by side; their times, (T,) seconds, below."""
    pictures = [jpeg(frame) if isinstance(frame, np.ndarray) else bytes(frame) for frame in frames]
    times = [""] * len(pictures) if times_s is None else [f"{float(t):.1f} s" for t in times_s]
    return template_block("frame_strip", frames=list(zip(pictures, times, strict=True)))


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
    return template_block("timeline", tracks=shown, ticks=ticks)
