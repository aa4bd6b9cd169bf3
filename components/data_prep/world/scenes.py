"""What happens in the scenes of a configuration, before they are drawn, and the questions about each."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeVar, cast

import numpy as np

from ...common.config import ConfigError
from ...common.rows.sample import Evidence, Media, ProblemType, Sample
from ..config import QuestionKind, SynthesizeConfig

T = TypeVar("T")
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
    media = Media(kind="image" if scene.kind == "still" else "video", uri=scene.media_path)
    evidence = tuple(Evidence(start_s=a, end_s=b, caption=caption) for a, b, caption in spans)
    return Sample(
        id=f"{scene.id}-{kind}", media=media, question=question, options=options, problem_type=problem_type,
        answer=answer, reasoning=" ".join(sentence(thought) for thought in thoughts), evidence=evidence,
        source="synthetic", split=scene.split, metadata={"kind": kind},
    )  # fmt: skip


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


Composer = Callable[[SynthesizeConfig, str, int, random.Random], Composition]


def whole_seconds(config: SynthesizeConfig) -> int:
    """The whole seconds of a video."""
    return int(config.native_frames / config.fps + 1e-6)


def balanced_choice(key: str, index: int, choices: Sequence[T]) -> T:
    """Choice ``index`` of an endless row of shuffled decks, so that every choice is equally frequent."""
    deck = list(choices)
    random.Random(f"{key}/{index // len(deck)}").shuffle(deck)
    return deck[index % len(deck)]


def _moving(
    config: SynthesizeConfig, rng: random.Random, colour: str, direction: str, ways: tuple[float, float]
) -> Composition:
    """A square whose way is ``ways`` (least, most) of the room there is. The stretch that it crosses lies anywhere and
    is crossed in either sense equally often, so that its frames in a random order do not tell the sense."""
    (dx, dy), size = DIRECTIONS[direction], config.size // 4
    room = config.size - size
    way = rng.randint(round(room * ways[0]), round(room * ways[1]))
    along, across = rng.randint(0, room - way), rng.randint(0, room)
    start, end = (along, along + way) if dx + dy > 0 else (along + way, along)
    start_xy, end_xy = ((start, across), (end, across)) if dx else ((across, start), (across, end))
    end_s = config.native_frames / config.fps
    # The first frame shows the start, the last one the end; it stays for one frame more.
    percent_per_s = 100 * way / config.size * config.fps / (config.native_frames - 1)
    square = Shape("square", colour, 0.0, end_s, start_xy, end_xy, size)
    return Composition((square,), direction=direction, percent_per_s=percent_per_s)


def _motion(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    direction, colour = balanced_choice(key, number, [(d, c) for d in DIRECTIONS for c in COLOURS])
    return _moving(config, rng, colour, direction, (5 / 7, 6 / 7))


def _drift(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    return _moving(config, rng, rng.choice(list(COLOURS)), rng.choice(list(DIRECTIONS)), (1 / 5, 1.0))


def _pair(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    """Two shapes that are never there together; a scene is as likely as the same scene played backwards."""
    total = whole_seconds(config)
    colours = balanced_choice(key + "/order", number, [(a, b) for a in COLOURS for b in COLOURS if a != b])
    queried, visible_s = balanced_choice(key + "/duration", number, [(i, s) for i in (0, 1) for s in range(1, total)])
    other_s = rng.randint(1, total - visible_s)
    lengths = (visible_s, other_s) if queried == 0 else (other_s, visible_s)
    idle = [0, *sorted(rng.randint(0, total - visible_s - other_s) for _ in range(2))]
    starts = (idle[1], idle[2] + lengths[0])
    visible = zip(colours, starts, lengths, strict=True)
    shapes = [
        _placed(config, rng, rng.choice(FORMS), colour, start, start + length) for colour, start, length in visible
    ]
    return Composition(tuple(shapes), queried=queried)


def _crowd(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    count = balanced_choice(key, number, range(1, min(len(COLOURS), whole_seconds(config)) + 1))
    starts = sorted(rng.sample(range(whole_seconds(config)), count))
    colours = rng.sample(list(COLOURS), count)
    visible = zip(colours, starts, strict=True)
    return Composition(tuple(_placed(config, rng, rng.choice(FORMS), colour, s, s + 1) for colour, s in visible))


def _digits(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    total = whole_seconds(config)
    count = balanced_choice(key, number, range(2, min(4, total) + 1))
    starts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    colour = rng.choice(list(COLOURS))
    shapes: list[Shape] = []
    for start, end in pairwise(starts):
        last = shapes[-1].form if shapes else ""  # the same digit twice in a row would look like one
        digit = rng.choice([d for d in FONT if d != last])
        shapes.append(_placed(config, rng, digit, colour, start, end, height=config.size // 14 * 7))
    return Composition(tuple(shapes))


def _still(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composition:
    """Shapes of different form and colour, each in its own cell of a grid; the first is asked about."""
    count = balanced_choice(key + "/count", number, range(1, len(FORMS) + 1))
    first = balanced_choice(key + "/colour", number, list(COLOURS))
    colours = [first, *rng.sample([c for c in COLOURS if c != first], count - 1)]
    cell, size = config.size // 3, config.size // 4
    cells = rng.sample([(x, y) for x in range(3) for y in range(3)], count)
    shapes = []
    for form, colour, (column, row) in zip(rng.sample(FORMS, count), colours, cells, strict=True):
        corner = (column * cell + rng.randint(0, cell - size), row * cell + rng.randint(0, cell - size))
        shapes.append(Shape(form, colour, 0.0, 0.0, corner, corner, size))
    return Composition(tuple(shapes))


def _placed(
    config: SynthesizeConfig, rng: random.Random, form: str, colour: str, start_s: int, end_s: int, height: int = 0
) -> Shape:
    """A shape that stays where it is, anywhere in the picture."""
    height = height or config.size // 4
    ink = mask(form, height)
    corner = (rng.randint(0, config.size - ink.shape[1]), rng.randint(0, config.size - ink.shape[0]))
    return Shape(form, colour, float(start_s), float(end_s), corner, corner, height)


COMPOSERS: dict[SceneKind, Composer] = {"motion": _motion, "drift": _drift, "pair": _pair}
COMPOSERS |= {"crowd": _crowd, "digits": _digits, "still": _still}
"""By the kind of scene: what happens in it, from a key, the scene's number and its own random numbers."""


def scenes(config: SynthesizeConfig) -> Iterator[Scene]:
    """All scenes of a configuration, split by split, in the order of the rows. Raises ConfigError: a clip is too short
    for what is to happen in it."""
    shares = _shares(config)
    counts = {"train": config.num_train, "validation": config.num_validation, "test": config.num_test}
    for split, count in counts.items():
        made = dict.fromkeys(shares, 0)
        for position in range(1, count + 1):
            kind = max(shares, key=lambda k: shares[k] * position - made[k])
            yield scene_for(config, split, kind, made[kind])
            made[kind] += 1


def _shares(config: SynthesizeConfig) -> dict[SceneKind, float]:
    """Each scene's share of the media: kinds of question about the same scene share its files."""
    weights: dict[SceneKind, float] = {}
    for kind, weight in config.mix.items():
        weights[SCENES[kind]] = max(weight, weights.get(SCENES[kind], 0.0))
    videos = (1 - config.images) / sum(weights.values())
    shares = {scene: weight * videos for scene, weight in weights.items()} | {"still": config.images}
    shares = {scene: share for scene, share in shares.items() if share > 0}
    needed_s = {"pair": 2, "digits": 2, "crowd": 1}
    if short := {scene for scene in shares if whole_seconds(config) < needed_s.get(scene, 0)}:
        kinds = " and ".join(kind for kind in config.mix if SCENES[kind] in short)
        length_s, least_s = config.native_frames / config.fps, max(needed_s[scene] for scene in short)
        problem = f"native_frames / fps makes clips of {length_s:g} s; {kinds} questions need at least {least_s} s"
        raise ConfigError(f"synthesize: {problem}")
    return shares


def scene_for(config: SynthesizeConfig, split: str, kind: SceneKind, number: int) -> Scene:
    """Scene ``number`` of its kind and split: the same for the same seed, however many there are."""
    key = f"{config.seed}/{split}/{kind}"
    rng = random.Random(f"{key}/{number}")
    content = COMPOSERS[kind](config, key, number, rng)
    weights = {k: w for k, w in config.mix.items() if SCENES[k] == kind and w > 0}
    # A kind with half the weight of another about the same scene is asked about every second one.
    often = {k: w / max(weights.values()) for k, w in weights.items()}
    due: list[Kind] = [k for k, f in often.items() if int((number + 1) * f + 1e-9) > int(number * f + 1e-9)]
    questions = ("colour", "image_count") if kind == "still" else tuple(due)
    return Scene(f"{split}-{kind}-{number:06d}", kind, split, questions, content)
