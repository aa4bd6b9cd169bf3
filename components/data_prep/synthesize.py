"""A small generated world of videos and pictures whose truth is known, for the demo and for tests.

Every scene is drawn, encoded as a real file (H.264 mp4, or PNG) and asked about. The answer, the evidence
spans and their captions follow from the same list of things that is drawn, so they are exactly true. Answers
are dealt like cards, so that all answers of a kind are equally frequent; the words of a question say nothing
about its answer. What decides is in the frames; for `direction` and `order` it is in their order, and the
same frames without it say nothing.

========  ============================================================  ==============================
scene     what is seen                                                  questions
========  ============================================================  ==============================
motion    a square crosses most of the picture, over the whole clip     direction, describe
drift     the same, slower or faster                                    speed
pair      a shape, later another, never both at once                    order, duration
crowd     one to four shapes, each for a second of its own              count
digits    two to four digits, one after the other                       ocr
still     a picture of one to four shapes                               colour, image_count
========  ============================================================  ==============================

Things come and go at whole seconds, so that ``MM:SS`` says exactly when.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from ..common.config import ConfigError
from ..common.samples import Evidence, Media, ProblemType, Sample, write_samples
from ..common.video import Clip
from .config import QuestionKind, SynthesizeConfig

T = TypeVar("T")
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
NOISE_LEVEL = 38
"""Brightest value of the background, of 255."""
CRF = 22
"""Quality of the H.264 files (lower is better)."""

# Digits, five pixels wide and seven high.
_FONT = {
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


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a scene: what it is, when it is there, and where (pixels of its top left corner)."""

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
class Scene:
    """One video or picture of the world, before it is drawn."""

    id: str
    kind: SceneKind
    split: str
    questions: tuple[Kind, ...]
    things: tuple[Thing, ...]
    asked: int = 0
    """Index of the thing that `duration` asks about."""
    direction: str = ""
    """Where the thing of `motion` or `drift` goes."""
    percent_per_s: float = 0.0
    """How fast, in percent of the picture's width per second."""

    @property
    def media_path(self) -> str:
        """Its file, relative to ``rows.jsonl``."""
        return f"images/{self.id}.png" if self.kind == "still" else f"videos/{self.id}.mp4"


def scenes(config: SynthesizeConfig) -> Iterator[Scene]:
    """All scenes of a configuration, split by split, in the order of the rows.

    Raises:
        ConfigError: a clip is too short for what is to happen in it.
    """
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
    short = {"pair", "digits"} & set(shares) if _seconds(config) < 2 else set()
    short |= {"crowd"} & set(shares) if _seconds(config) < 1 else set()
    if short:
        kinds = " and ".join(kind for kind in config.mix if SCENES[kind] in short)
        raise ConfigError(
            f"synthesize: native_frames / fps makes clips of {config.native_frames / config.fps:g} s; "
            f"{kinds} questions need at least {1 if short == {'crowd'} else 2} s"
        )
    return shares


def scene_for(config: SynthesizeConfig, split: str, kind: SceneKind, number: int) -> Scene:
    """Scene ``number`` of its kind and split: the same for the same seed, however many there are."""
    key = f"{config.seed}/{split}/{kind}"
    rng = random.Random(f"{key}/{number}")
    things, facts = _COMPOSE[kind](config, key, number, rng)
    weights = {k: w for k, w in config.mix.items() if SCENES[k] == kind and w > 0}
    # A kind with half the weight of another about the same scene is asked about every second one.
    often = {k: w / max(weights.values()) for k, w in weights.items()}
    asked: list[Kind] = [k for k, f in often.items() if int((number + 1) * f + 1e-9) > int(number * f + 1e-9)]
    questions = ("colour", "image_count") if kind == "still" else tuple(asked)
    return Scene(f"{split}-{kind}-{number:06d}", kind, split, questions, things, **facts)


def _seconds(config: SynthesizeConfig) -> int:
    return int(config.native_frames / config.fps + 1e-6)


def deal(key: str, index: int, cards: Sequence[T]) -> T:
    """Card ``index`` of an endless row of shuffled decks, so that every card is equally frequent."""
    deck = list(cards)
    random.Random(f"{key}/{index // len(deck)}").shuffle(deck)
    return deck[index % len(deck)]


# What a composer returns: the things of a scene and its fields `asked`, `direction` and `percent_per_s`.
Composed = tuple[tuple[Thing, ...], dict[str, Any]]


def _moving(
    config: SynthesizeConfig, rng: random.Random, colour: str, direction: str, ways: tuple[float, float]
) -> Composed:
    """A square whose way is ``ways`` (least, most) of the room there is.

    The stretch that it crosses lies anywhere and is crossed in either sense equally often, so that its frames
    in a random order do not tell the sense. (In the right order where it starts tells it, too.)
    """
    dx, dy = DIRECTIONS[direction]
    size = config.size // 4
    room = config.size - size
    way = rng.randint(round(room * ways[0]), round(room * ways[1]))
    along, across = rng.randint(0, room - way), rng.randint(0, room)
    start, end = (along, along + way) if dx + dy > 0 else (along + way, along)
    start_xy, end_xy = ((start, across), (end, across)) if dx else ((across, start), (across, end))
    end_s = config.native_frames / config.fps
    # The first frame shows the start, the last one the end; it stays for one frame more.
    percent_per_s = 100 * way / config.size * config.fps / (config.native_frames - 1)
    square = Thing("square", colour, 0.0, end_s, start_xy, end_xy, size)
    return (square,), {"direction": direction, "percent_per_s": percent_per_s}


def _motion(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    direction, colour = deal(key, number, [(d, c) for d in DIRECTIONS for c in COLOURS])
    return _moving(config, rng, colour, direction, (5 / 7, 6 / 7))


def _drift(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    return _moving(config, rng, rng.choice(list(COLOURS)), rng.choice(list(DIRECTIONS)), (1 / 5, 1.0))


def _pair(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    """Two shapes that are never there together; a scene is as likely as the same scene played backwards."""
    total = _seconds(config)
    colours = deal(key + "/order", number, [(a, b) for a in COLOURS for b in COLOURS if a != b])
    asked, visible_s = deal(key + "/duration", number, [(i, s) for i in (0, 1) for s in range(1, total)])
    other_s = rng.randint(1, total - visible_s)
    lengths = (visible_s, other_s) if asked == 0 else (other_s, visible_s)
    idle = [0, *sorted(rng.randint(0, total - visible_s - other_s) for _ in range(2))]
    starts = (idle[1], idle[2] + lengths[0])
    things = [
        _placed(config, rng, rng.choice(FORMS), colour, start, start + length)
        for colour, start, length in zip(colours, starts, lengths, strict=True)
    ]
    return tuple(things), {"asked": asked}


def _crowd(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    count = deal(key, number, range(1, min(len(COLOURS), _seconds(config)) + 1))
    starts = sorted(rng.sample(range(_seconds(config)), count))
    colours = rng.sample(list(COLOURS), count)
    things = [
        _placed(config, rng, rng.choice(FORMS), colour, start, start + 1)
        for colour, start in zip(colours, starts, strict=True)
    ]
    return tuple(things), {}


def _digits(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    total = _seconds(config)
    count = deal(key, number, range(2, min(4, total) + 1))
    starts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    colour = rng.choice(list(COLOURS))
    things: list[Thing] = []
    for start, end in pairwise(starts):
        last = things[-1].form if things else ""  # the same digit twice in a row would look like one
        digit = rng.choice([d for d in _FONT if d != last])
        things.append(_placed(config, rng, digit, colour, start, end, height=config.size // 14 * 7))
    return tuple(things), {}


def _still(config: SynthesizeConfig, key: str, number: int, rng: random.Random) -> Composed:
    """Shapes of different form and colour, each in its own cell of a grid; the first is asked about."""
    count = deal(key + "/count", number, range(1, len(FORMS) + 1))
    asked = deal(key + "/colour", number, list(COLOURS))
    colours = [asked, *rng.sample([c for c in COLOURS if c != asked], count - 1)]
    cell, size = config.size // 3, config.size // 4
    cells = rng.sample([(x, y) for x in range(3) for y in range(3)], count)
    things = []
    for form, colour, (column, row) in zip(rng.sample(FORMS, count), colours, cells, strict=True):
        corner = (column * cell + rng.randint(0, cell - size), row * cell + rng.randint(0, cell - size))
        things.append(Thing(form, colour, 0.0, 0.0, corner, corner, size))
    return tuple(things), {}


def _placed(
    config: SynthesizeConfig,
    rng: random.Random,
    form: str,
    colour: str,
    start_s: int,
    end_s: int,
    height: int | None = None,
) -> Thing:
    """A thing that stays where it is, anywhere in the picture."""
    height = height or config.size // 4
    ink = mask(form, height)
    corner = (rng.randint(0, config.size - ink.shape[1]), rng.randint(0, config.size - ink.shape[0]))
    return Thing(form, colour, float(start_s), float(end_s), corner, corner, height)


_COMPOSE: dict[SceneKind, Callable[[SynthesizeConfig, str, int, random.Random], Composed]] = {
    "motion": _motion,
    "drift": _drift,
    "pair": _pair,
    "crowd": _crowd,
    "digits": _digits,
    "still": _still,
}


@lru_cache(maxsize=64)
def mask(form: str, height: int) -> np.ndarray:
    """Where a form or digit has ink: (height, width) bool."""
    if form in _FONT:
        rows = np.array([[pixel == "1" for pixel in row] for row in _FONT[form].split()])
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


def render(scene: Scene, config: SynthesizeConfig) -> np.ndarray:
    """The frames of a scene, (T, H, W, 3) uint8 RGB; a picture has one."""
    count = 1 if scene.kind == "still" else config.native_frames
    rng = np.random.default_rng(list(f"{config.seed}/{scene.id}".encode()))
    frames = rng.integers(0, NOISE_LEVEL, (count, config.size, config.size, 3), np.uint8, endpoint=True)
    for thing in scene.things:
        ink = mask(thing.form, thing.size)
        height, width = ink.shape
        way = np.subtract(thing.end_xy, thing.start_xy)
        for t in range(count):
            if scene.kind == "still" or thing.start_s <= t / config.fps < thing.end_s:
                x, y = np.rint(thing.start_xy + way * t / max(1, count - 1)).astype(int)
                frames[t, y : y + height, x : x + width][ink] = COLOURS[thing.colour]
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames as an H.264 mp4 file: one thread, no date or version in the container, index at the front."""
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        settings = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "flags": "+bitexact"}
        # With macroblock trees x264 (core 165) uses memory that it has not written: in a process with a busy heap,
        # 315 of 700 files of the same frames differed from the others. Without, 4,500 of 4,500 were equal.
        settings["x264-params"] = "mbtree=0"
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(VideoStream, container.add_stream("libx264", rate=rate, options=settings))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def rows(scene: Scene) -> list[Sample]:
    """The questions about a scene."""
    return [_row(scene, kind) for kind in scene.questions]


def _row(scene: Scene, kind: Kind) -> Sample:
    things = scene.things
    first, asked = things[0], things[scene.asked]
    moves = f"the {first.name} moves {scene.direction}"
    spans = [(t.start_s, t.end_s, f"a {t.name} appears") for t in things]
    problem_type: ProblemType = "multiple_choice"
    options: tuple[str, ...] = ()
    # There is one thought per span of evidence, so that a trace can put each where it belongs.
    match kind:
        case "direction":
            question = f"Which direction does the {first.name} move?"
            options, answer = tuple(DIRECTIONS), scene.direction
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "describe":
            question = "What happens in the video?"
            problem_type, answer = "free_form", _sentence(moves)
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "speed":
            question = f"How fast does the {first.name} move, in percent of the picture's width per second?"
            problem_type, answer = "regression", f"{scene.percent_per_s:.1f}"
            spans, thoughts = [(first.start_s, first.end_s, moves)], [f"it moves {answer} percent per second"]
        case "order":
            question = "What colour is the shape that appears first?"
            options, answer = tuple(COLOURS), first.colour
            thoughts = [f"{first.colour} is first", f"{things[1].colour} is second"]
        case "duration":
            question = f"For how many seconds is the {asked.name} visible?"
            problem_type, answer = "regression", f"{asked.end_s - asked.start_s:g}"
            spans, thoughts = [spans[scene.asked]], [f"it is visible for {answer} seconds"]
        case "count":
            question = "How many shapes appear?"
            problem_type, answer = "numerical", str(len(things))
            thoughts = [f"that is {number}" for number in range(1, len(things) + 1)]
        case "ocr":
            question = "Which digits are shown, one after the other?"
            problem_type, answer = "ocr", " ".join(t.form for t in things)
            spans = [(t.start_s, t.end_s, f"a {t.name}") for t in things]
            thoughts = [f"the digit is {t.form}" for t in things]
        case "colour":
            question = f"What colour is the {first.form}?"
            options, answer = tuple(COLOURS), first.colour
            spans, thoughts = [], [f"the {first.form} is {first.colour}"]
        case "image_count":
            question = "How many shapes are there?"
            problem_type, answer = "numerical", str(len(things))
            spans, thoughts = [], ["there is " + " and ".join(f"a {t.name}" for t in things)]
    if options:
        answer = "ABCD"[options.index(answer)]
    return Sample(
        id=f"{scene.id}-{kind}",
        media=Media(kind="image" if scene.kind == "still" else "video", uri=scene.media_path),
        question=question,
        options=options,
        problem_type=problem_type,
        answer=answer,
        reasoning=" ".join(_sentence(thought) for thought in thoughts),
        evidence=tuple(Evidence(start_s=a, end_s=b, caption=caption) for a, b, caption in spans),
        source="synthetic",
        split=scene.split,
        metadata={"kind": kind},
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def synthesize(
    config: SynthesizeConfig,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
) -> Path:
    """Write the world to ``folder``: ``videos/*.mp4``, ``images/*.png`` and, last, ``rows.jsonl``.

    Args:
        config: what to generate.
        folder: is created; files of the same name are replaced.
        progress: called with (files written, files in all).
        processes: encode in so many processes.

    Returns:
        The path of ``rows.jsonl``: byte for byte the same for the same configuration. Its media are named
        relative to it.

    Raises:
        ConfigError: a clip is too short for what is to happen in it.
    """
    world = list(scenes(config))
    for name in ("videos", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    jobs = [(world[start : start + 64], config, folder) for start in range(0, len(world), 64)]
    written = 0
    for count in _each(_write_media, jobs, processes):
        written += count
        if progress:
            progress(written, len(world))
    path = folder / "rows.jsonl"
    write_samples(path, (row for scene in world for row in rows(scene)))
    return path


def _write_media(job: tuple[list[Scene], SynthesizeConfig, Path]) -> int:
    chunk, config, folder = job
    for scene in chunk:
        frames = render(scene, config)
        if scene.kind == "still":
            Image.fromarray(frames[0]).save(folder / scene.media_path)
        else:
            write_mp4(folder / scene.media_path, frames, config.fps)
    return len(chunk)


def _each(function: Callable[[T], int], jobs: Sequence[T], processes: int) -> Iterator[int]:
    if processes <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


# ----------------------------------------------------------------------------------------------- the oracle


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
            read = [_nearest(where, tuple(_FONT)) for where in ink[colour] if where.any()]
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
            return _sentence(f"the {colour} square moves {answer}")
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
