"""What happens in a scene of each kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from ..config import SynthesizeConfig
from .draw import _FONT, mask
from .things import COLOURS, DIRECTIONS, FORMS, SceneKind, Thing

T = TypeVar("T")


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
