"""Questions per second on a set like VSI-Bench: 18 questions a video asked together, against one at a time.

Both ways use the same engine and the same decoded clips, and must give the same answers, token for token: asked
together, the questions of a video share its pixels and its prefill. Run as ``python tests/bench/bench_evaluation.py``;
``--help`` for other sizes. On a GPU and with a real model: ``--model DIR --frames 32``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import Measurement, interleave, record
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.sample import Media, Sample
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.evaluation.ask import Completion, Predict
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.models import predictor

QUESTIONS = 18
"""VSI-Bench: 5,130 questions on 288 videos."""
WANTED = 5.0
KINDS = ("object_counting", "object_rel_distance", "route_planning")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: a tiny model built for it")
    parser.add_argument("--hidden", type=int, default=128, help="width of the tiny model")
    parser.add_argument("--layers", type=int, default=4, help="layers of the tiny model")
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=280, help="height and width of a frame, a multiple of 28")
    parser.add_argument("--new-tokens", type=int, default=16, help="answers of VSI-Bench are a letter or a number")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(given.model or tiny(Path(scratch) / "model", given))
    samples, clips = questions(given)
    config = EvaluationConfig(max_new_tokens=given.new_tokens, batch_size=QUESTIONS * given.videos)
    predict = predictor(model, config)
    answers: dict[str, list[list[int]]] = {}

    def together() -> None:
        answers["together"] = tokens(predict(samples, clips))

    def one_by_one() -> None:
        answers["one by one"] = [tokens(ask_alone(predict, s, c))[0] for s, c in zip(samples, clips, strict=True)]

    plain, own = interleave(one_by_one, together, rounds=given.rounds)
    same = sum(a == b for a, b in zip(answers["together"], answers["one by one"], strict=True))
    if same < len(samples):
        raise SystemExit(f"only {same} of {len(samples)} answers are the same asked together and one by one")
    setting = {
        "videos": given.videos,
        "questions_per_video": QUESTIONS,
        "frames": given.frames,
        "side": given.side,
        "new_tokens": given.new_tokens,
        "model": str(given.model) if given.model else f"tiny, width {given.hidden}, {given.layers} layers",
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    extra = {
        "questions_per_second_plain": len(samples) / plain,
        "questions_per_second_own": len(samples) / own,
        "identical_answers": same,
    }
    record(
        [
            Measurement(
                name="evaluation/vsi-like/18-questions-a-video",
                plain_seconds=plain,
                own_seconds=own,
                wanted_ratio=WANTED,
                setting=setting,
                extra=extra,
            )
        ]
    )


def tiny(folder: Path, given: argparse.Namespace) -> Path:
    """A tiny model with random weights, as a folder."""
    pixels = given.side**2
    video = VideoConfig(num_frames=given.frames, min_pixels=pixels, max_pixels=pixels)
    shape = TinyModelConfig(hidden_size=given.hidden, num_layers=given.layers, num_vision_layers=given.layers)
    model, processor = build_tiny(shape, video, 0)
    save_model(folder, model, processor, ModelCard(prompt="video_r1/1", video=video))
    return folder


def questions(given: argparse.Namespace) -> tuple[list[Sample], list[Clip]]:
    """18 questions about each of some random clips; those about one clip share the object."""
    samples, clips = [], []
    for video in range(given.videos):
        frames = np.random.default_rng(video).integers(0, 256, (given.frames, given.side, given.side, 3), np.uint8)
        clip = Clip(frames, np.linspace(0, 60, given.frames, endpoint=False), 60.0)
        for number in range(QUESTIONS):
            kind = KINDS[number % len(KINDS)]
            choice = kind != "object_counting"
            samples.append(
                Sample(
                    id=f"{video}-{number}",
                    media=Media(kind="video", uri=f"scene{video}.mp4"),
                    question=f"{kind.replace('_', ' ')}: measured from the closest point of each object, how is object "
                    f"{number} placed in this room?",
                    options=("table", "chair", "sofa", "stove") if choice else (),
                    problem_type="multiple_choice" if choice else "regression",
                    answer="A" if choice else "4",
                )
            )
            clips.append(clip)
    return samples, clips


def ask_alone(predict: Predict, sample: Sample, clip: Clip) -> Sequence[Any]:
    """One question as if there were no others."""
    return predict([sample], [clip])


def tokens(completions: Sequence[Completion | Exception]) -> list[list[int]]:
    """Token ids of each answer; an error ends the benchmark."""
    found = []
    for completion in completions:
        if isinstance(completion, Exception):
            raise completion
        found.append(list(completion.token_ids))
    return found


if __name__ == "__main__":
    main()
