"""What a rule answers who sees only the frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vthink.components.common.rows.sample import Sample
from vthink.components.common.video.clip import Clip
from vthink.components.data_prep.world.scenes import COLOURS, FONT, FORMS, mask, sentence


def oracle_answer(clip: Clip, sample: Sample) -> str:
    """What a rule answers who sees only the frames (in the order given) and the question.

    It shows that the frames hold the answer and that the file, the decoder and the frame codec keep it; on
    shuffled frames it shows how much of an answer hangs on their order.
    """
    kind = sample.metadata["kind"]
    ink = _ink(clip.frames)
    seen = {colour: where.any((1, 2)) for colour, where in ink.items()}  # per colour: (T,) bool
    present = [colour for colour in COLOURS if seen[colour].any()]
    if kind in ("count", "image_count"):
        return str(len(present))
    if kind == "duration":
        asked = next(colour for colour in COLOURS if f" {colour} " in sample.question)
        return str(round(float(seen[asked].mean()) * clip.duration_s))
    if kind == "order":
        answer = min(present, key=lambda colour: int(seen[colour].argmax()), default="")
    elif kind == "colour":
        forms = {_nearest(ink[colour][0], FORMS): colour for colour in present}
        answer = next((colour for form, colour in forms.items() if f" {form}?" in sample.question), "")
    else:
        colour = max(COLOURS, key=lambda colour: int(ink[colour].sum()))
        if kind == "ocr":
            read = [_nearest(where, tuple(FONT)) for where in ink[colour] if where.any()]
            return " ".join(d for i, d in enumerate(read) if i == 0 or d != read[i - 1])
        places = [np.argwhere(where).mean(0) for where in ink[colour] if where.any()]
        y, x = (np.array(places) - np.mean(places, 0)).T
        if kind == "speed":
            way = max(abs(x[-1] - x[0]), abs(y[-1] - y[0])) / clip.frames.shape[2]
            return f"{100 * way / (clip.times_s[-1] - clip.times_s[0]):.1f}"
        sideways = x.var() >= y.var()
        onwards = ((x if sideways else y) * np.arange(len(x))).sum() > 0
        answer = ("right" if onwards else "left") if sideways else ("down" if onwards else "up")
        if kind == "describe":
            return sentence(f"the {colour} square moves {answer}")
    return "ABCD"[sample.options.index(answer)] if answer in sample.options else ""


def _ink(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Per colour, which pixels show it: (T, H, W) bool; none where there are too few for a form."""
    bright = frames.max(-1)
    on = frames > bright[..., None] // 2
    least = (frames.shape[1] // 4) ** 2 // 5
    ink = {}
    for colour, values in COLOURS.items():
        red, green, blue = (on[..., channel] == (value > 128) for channel, value in enumerate(values))
        where = (bright > 110) & red & green & blue
        ink[colour] = where & (where.sum((1, 2), keepdims=True) >= least)
    return ink


def _nearest(where: np.ndarray, names: Sequence[str]) -> str:
    """The form or digit whose ink is most like ``where`` (H, W), stretched to the same box."""
    ys, xs = np.where(where.sum(1) > 1)[0], np.where(where.sum(0) > 1)[0]
    crop = where[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]

    def likeness(name: str) -> float:
        ink = mask(name, 28)
        ink = ink[:, ink.any(0)]
        y = np.arange(crop.shape[0]) * ink.shape[0] // crop.shape[0]
        x = np.arange(crop.shape[1]) * ink.shape[1] // crop.shape[1]
        same = float((ink[np.ix_(y, x)] == crop).mean())
        return same - abs(crop.shape[1] / crop.shape[0] - ink.shape[1] / ink.shape[0])

    return max(names, key=likeness)
