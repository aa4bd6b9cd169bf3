"""What a scene is, before it is drawn: shapes of a colour that are there for a time, and move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import QuestionKind

SceneKind = Literal["motion", "drift", "pair", "crowd", "digits", "still"]
Kind = QuestionKind | Literal["colour", "image_count"]

SCENES: dict[Kind, SceneKind] = {
    "direction": "motion",
    "describe": "motion",
    "speed": "drift",
    "order": "pair",
    "duration": "pair",
    "count": "crowd",
    "ocr": "digits",
    "colour": "still",
    "image_count": "still",
}
"""The scene that each kind of question is asked about."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 25, 25),
    "green": (25, 255, 25),
    "blue": (25, 25, 255),
    "yellow": (255, 255, 25),
}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FORMS = ("square", "circle", "triangle", "cross")


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape in a scene: what it is, when it is there, and where (pixels of its top left corner)."""

    form: str
    """A form of `FORMS`, or a digit."""
    colour: str
    start_s: float
    end_s: float
    start_xy: tuple[int, int]
    end_xy: tuple[int, int]
    size: int
    """Height in pixels; forms are as wide as high."""

    @property
    def name(self) -> str:
        """What it is called, e.g. ``red square``."""
        return f"{self.colour} {self.form}"


@dataclass(frozen=True, slots=True)
class Composition:
    """What happens in a scene."""

    shapes: tuple[Shape, ...]
    queried: int = 0
    """Index of the shape that `duration` asks about."""
    direction: str = ""
    """Where the shape of `motion` or `drift` goes."""
    percent_per_s: float = 0.0
    """How fast, in percent of the picture's width per second."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One video or picture of the world, before it is drawn."""

    id: str
    kind: SceneKind
    split: str
    questions: tuple[Kind, ...]
    content: Composition

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes in it, in the order of time."""
        return self.content.shapes

    @property
    def media_path(self) -> str:
        """Its file, relative to ``rows.jsonl``."""
        return f"images/{self.id}.png" if self.kind == "still" else f"videos/{self.id}.mp4"
