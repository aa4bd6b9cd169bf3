"""What a scene is before it is drawn: shapes of a colour, there for a time; and the questions about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np

from ...common.rows.sample import Evidence, Media, ProblemType, Sample
from ..config import QuestionKind

SceneKind = Literal["motion", "drift", "pair", "crowd", "digits", "still"]
Kind = QuestionKind | Literal["colour", "image_count"]

SCENES: dict[Kind, SceneKind] = {"direction": "motion", "describe": "motion", "speed": "drift", "order": "pair"}
SCENES |= {"duration": "pair", "count": "crowd", "ocr": "digits", "colour": "still", "image_count": "still"}
"""The scene that each kind of question is asked about."""

COLOURS = {"red": (255, 25, 25), "green": (25, 255, 25), "blue": (25, 25, 255), "yellow": (255, 255, 25)}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FORMS = ("square", "circle", "triangle", "cross")
FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
"""Digits, five pixels wide and seven high."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape in a scene: what it is (a form of `FORMS`, or a digit), when it is there, and where (pixels of its top
    left corner)."""

    form: str
    colour: str
    start_s: float
    end_s: float
    start_xy: tuple[int, int]
    end_xy: tuple[int, int]
    size: int  # height in pixels; forms are as wide as high

    @property
    def name(self) -> str:
        """What it is called, e.g. ``red square``."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True, slots=True)
class Composition:
    """What happens in a scene: its shapes in the order of time; the one that `duration` asks about; for `motion` and
    `drift`, where the shape goes, and how fast (percent of the picture's width per second)."""

    shapes: tuple[Shape, ...]
    queried: int = 0
    direction: str = ""
    percent_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """One video or picture of the world, before it is drawn."""

    id: str
    kind: SceneKind
    split: str
    questions: tuple[Kind, ...]
    content: Composition

    @property
    def media_path(self) -> str:
        """Its file, relative to ``rows.jsonl``."""
        return f"images/{self.id}.png" if self.kind == "still" else f"videos/{self.id}.mp4"


@lru_cache(maxsize=64)
def mask(form: str, height: int) -> np.ndarray:
    """Where a form or digit has ink: (height, width) bool."""
    if form in FONT:
        rows = np.array([[pixel == "1" for pixel in row] for row in FONT[form].split()])
        scale = max(1, height // len(rows))
        return np.kron(rows, np.ones((scale, scale))).astype(bool)
    y, x = (np.mgrid[0:height, 0:height] + 0.5) / height
    if form == "square":
        return np.ones((height, height), bool)
    if form == "circle":
        return cast(np.ndarray, (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25)
    if form == "triangle":
        return cast(np.ndarray, np.abs(x - 0.5) <= y / 2)
    return cast(np.ndarray, (np.abs(x - 0.5) < 0.18) | (np.abs(y - 0.5) < 0.18))


def rows(scene: Scene) -> list[Sample]:
    """The questions about a scene."""
    return [_row(scene, kind) for kind in scene.questions]


def _row(scene: Scene, kind: Kind) -> Sample:
    content, shapes = scene.content, scene.content.shapes
    first, queried = shapes[0], shapes[content.queried]
    moves = f"the {first.name} moves {content.direction}"
    spans = [(t.start_s, t.end_s, f"a {t.name} appears") for t in shapes]
    problem_type: ProblemType = "multiple_choice"
    options: tuple[str, ...] = ()
    # There is one thought per span of evidence, so that a trace can put each where it belongs.
    match kind:
        case "direction":
            question = f"Which direction does the {first.name} move?"
            options, answer = tuple(DIRECTIONS), content.direction
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "describe":
            question = "What happens in the video?"
            problem_type, answer = "free_form", sentence(moves)
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "speed":
            question = f"How fast does the {first.name} move, in percent of the picture's width per second?"
            problem_type, answer = "regression", f"{content.percent_per_s:.1f}"
            spans, thoughts = [(first.start_s, first.end_s, moves)], [f"it moves {answer} percent per second"]
        case "order":
            question = "What colour is the shape that appears first?"
            options, answer = tuple(COLOURS), first.colour
            thoughts = [f"{first.colour} is first", f"{shapes[1].colour} is second"]
        case "duration":
            question = f"For how many seconds is the {queried.name} visible?"
            problem_type, answer = "regression", f"{queried.end_s - queried.start_s:g}"
            spans, thoughts = [spans[content.queried]], [f"it is visible for {answer} seconds"]
        case "count":
            question = "How many shapes appear?"
            problem_type, answer = "numerical", str(len(shapes))
            thoughts = [f"that is {number}" for number in range(1, len(shapes) + 1)]
        case "ocr":
            question = "Which digits are shown, one after the other?"
            problem_type, answer = "ocr", " ".join(t.form for t in shapes)
            spans = [(t.start_s, t.end_s, f"a {t.name}") for t in shapes]
            thoughts = [f"the digit is {t.form}" for t in shapes]
        case "colour":
            question = f"What colour is the {first.form}?"
            options, answer = tuple(COLOURS), first.colour
            spans, thoughts = [], [f"the {first.form} is {first.colour}"]
        case "image_count":
            question = "How many shapes are there?"
            problem_type, answer = "numerical", str(len(shapes))
            spans, thoughts = [], ["there is " + " and ".join(f"a {t.name}" for t in shapes)]
    if options:
        answer = "ABCD"[options.index(answer)]
    return Sample(
        id=f"{scene.id}-{kind}",
        media=Media(kind="image" if scene.kind == "still" else "video", uri=scene.media_path),
        question=question,
        options=options,
        problem_type=problem_type,
        answer=answer,
        reasoning=" ".join(sentence(thought) for thought in thoughts),
        evidence=tuple(Evidence(start_s=a, end_s=b, caption=caption) for a, b, caption in spans),
        source="synthetic",
        split=scene.split,
        metadata={"kind": kind},
    )


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."
