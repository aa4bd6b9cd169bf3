"""Which scenes a configuration has, and which questions are asked about each."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ...common.config import ConfigError
from ..config import SynthesizeConfig
from .compose import COMPOSERS, whole_seconds
from .scene import SCENES, Kind, Scene, SceneKind


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
    short = {"pair", "digits"} & set(shares) if whole_seconds(config) < 2 else set()
    short |= {"crowd"} & set(shares) if whole_seconds(config) < 1 else set()
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
    content = COMPOSERS[kind](config, key, number, rng)
    weights = {k: w for k, w in config.mix.items() if SCENES[k] == kind and w > 0}
    # A kind with half the weight of another about the same scene is asked about every second one.
    often = {k: w / max(weights.values()) for k, w in weights.items()}
    due: list[Kind] = [k for k, f in often.items() if int((number + 1) * f + 1e-9) > int(number * f + 1e-9)]
    questions = ("colour", "image_count") if kind == "still" else tuple(due)
    return Scene(f"{split}-{kind}-{number:06d}", kind, split, questions, content)
