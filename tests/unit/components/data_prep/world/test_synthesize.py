from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.rows.files import read_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.common.video.clip import Clip, stored
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.data_prep.config import QuestionKind, SynthesizeConfig
from vthink.components.data_prep.world.scenes import (
    COLOURS,
    DIRECTIONS,
    SCENES,
    balanced_choice,
    rows,
    scene_for,
    scenes,
)
from vthink.components.data_prep.world.synthesize import render, synthesize, write_mp4

from .oracle import oracle_answer

ALL_KINDS: dict[QuestionKind, float] = dict.fromkeys(
    ("direction", "order", "count", "ocr", "speed", "duration", "describe"), 1.0
)
SMALL = SynthesizeConfig(num_train=40, num_validation=5, num_test=5, mix=ALL_KINDS, images=0.2)
EVENTS = SynthesizeConfig(num_train=0, num_validation=0, num_test=400, mix={"direction": 1, "order": 1}, seed=3)
VIDEO = VideoConfig(num_frames=8, frame_codec="jpeg", frame_quality=95)


def world(config: SynthesizeConfig) -> list[Sample]:
    return [row for scene in scenes(config) for row in rows(scene)]


def by_kind(samples: list[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.metadata["kind"]].append(sample)
    return groups


def read_rows(path: Path) -> list[Sample]:
    samples = list(read_samples(path))
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Sample)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(SMALL, tmp_path_factory.mktemp("world"))


# --------------------------------------------------------------------------------------------- what is written


def test_rows_name_real_files_relative_to_them(small: Path) -> None:
    samples = read_rows(small)
    named = {sample.media.uri for sample in samples}
    there = {str(path.relative_to(small.parent)) for path in small.parent.glob("*/*")}
    assert named == there
    assert len(named) == 50
    assert {sample.problem_type for sample in samples} == {
        "multiple_choice",
        "numerical",
        "ocr",
        "free_form",
        "regression",
    }
    assert {sample.metadata["kind"] for sample in samples} == set(SCENES)
    assert len({sample.id for sample in samples}) == len(samples)
    assert all((s.media.kind == "image") == s.media.uri.endswith(".png") for s in samples)


def test_videos_are_h264_mp4_files_that_start_with_their_index(small: Path) -> None:
    for path in (small.parent / "videos").iterdir():
        data = path.read_bytes()
        assert 0 < data.index(b"moov") < data.index(b"mdat")
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.frames) == (56, 56, 16)
            assert float(stream.duration * stream.time_base) == 4.0
            assert "creation_time" not in container.metadata | stream.metadata


def test_size_length_and_rate_follow_the_configuration(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"num_train": 12, "size": 112, "native_frames": 50, "fps": 12.5})
    path = synthesize(config, tmp_path)
    clip = read_clip(next((tmp_path / "videos").iterdir()), VideoConfig(max_pixels=112 * 112))
    assert clip.frames.shape == (8, 112, 112, 3)
    assert clip.duration_s == pytest.approx(4.0)
    for sample in read_rows(path):
        assert all(span.end_s <= 4.0 for span in sample.evidence)


def test_a_world_is_the_same_in_every_run_and_with_more_processes(small: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    config = SMALL.model_copy(update={"num_train": 90})
    one = synthesize(config, tmp_path / "one", lambda done, total: steps.append((done, total)))
    two = synthesize(config, tmp_path / "two", processes=2)
    assert one.read_bytes() == two.read_bytes()
    assert steps == [(64, 100), (100, 100)]
    for path in sorted((tmp_path / "one" / "videos").iterdir())[:12]:
        twin = tmp_path / "two" / "videos" / path.name
        assert np.array_equal(read_clip(path, VIDEO).frames, read_clip(twin, VIDEO).frames)
        assert path.read_bytes() == twin.read_bytes()
    other = synthesize(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.read_bytes() != small.read_bytes()


def test_a_file_is_the_same_whatever_the_memory_held_before(tmp_path: Path) -> None:
    scene = scene_for(EVENTS, "test", "pair", 0)
    frames = render(scene, EVENTS)
    rng = np.random.default_rng(0)
    hashes = set()
    for _ in range(40):
        junk = [rng.integers(0, 256, size, np.uint8) for size in rng.integers(1_000, 400_000, 12)]
        del junk  # memory that the encoder is given is full of it now
        write_mp4(tmp_path / "a.mp4", frames, EVENTS.fps)
        hashes.add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_rows_do_not_depend_on_the_hash_seed_of_the_interpreter() -> None:
    code = (
        "import hashlib;"
        "from vthink.components.data_prep.world.synthesize import *;"
        f"config = SynthesizeConfig.load('''{SMALL.to_json()}''');"
        "text = ''.join(row.to_json() for scene in scenes(config) for row in rows(scene));"
        "pixels = b''.join(render(scene, config).tobytes() for scene in scenes(config));"
        "print(hashlib.sha256(text.encode() + pixels).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


def test_a_video_is_in_one_split_and_no_split_depends_on_the_size_of_another(small: Path) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in read_rows(small):
        splits[sample.media.uri].add(sample.split)
    assert all(len(names) == 1 for names in splits.values())
    pixels = [hashlib.sha256(render(scene, SMALL).tobytes()).digest() for scene in scenes(SMALL)]
    assert len(set(pixels)) == len(pixels)
    larger = SMALL.model_copy(update={"num_train": 60})
    assert [row for row in world(larger) if row.split != "train"] == [
        row for row in world(SMALL) if row.split != "train"
    ]
    assert world(larger)[: len(by_split(world(SMALL), "train"))] == by_split(world(SMALL), "train")


def by_split(samples: list[Sample], split: str) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]


def test_kinds_come_in_the_proportions_asked_for_and_share_videos() -> None:
    config = SynthesizeConfig(
        num_train=300,
        num_validation=0,
        num_test=0,
        mix={"direction": 2, "describe": 1, "order": 1, "ocr": 0},
        images=0.1,
    )
    counts = Counter(row.metadata["kind"] for row in world(config))
    assert counts == {"direction": 180, "describe": 90, "order": 90, "colour": 30, "image_count": 30}
    assert len({row.media.uri for row in world(config)}) == 300
    only_images = config.model_copy(update={"images": 1.0})
    assert {row.media.kind for row in world(only_images)} == {"image"}


def test_clips_too_short_for_their_questions_are_refused() -> None:
    config = SynthesizeConfig(mix={"direction": 1, "order": 1, "ocr": 1}, native_frames=6)
    with pytest.raises(ConfigError, match=r"1\.5 s; order and ocr questions need at least 2 s"):
        list(scenes(config))
    assert len(world(config.model_copy(update={"mix": {"direction": 1}, "num_train": 4}))) == 4 + 256 + 640


# -------------------------------------------------------------------------------------------- what it says is true


def visible(frames: np.ndarray, colour: str) -> np.ndarray:
    """Which frames show a colour, found without the renderer's knowledge: (T,) bool."""
    hue = np.array(COLOURS[colour]) > 128
    matching = ((frames > 128) == hue).all(-1) & (frames.max(-1) > 128)
    return matching.sum((1, 2)) > 20


def test_evidence_spans_and_captions_are_exactly_what_every_native_frame_shows(small: Path) -> None:
    checked: Counter[str] = Counter()
    for sample in read_rows(small):
        kind = sample.metadata["kind"]
        if kind not in ("order", "duration", "count"):
            continue
        with av.open(str(small.parent / sample.media.uri)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        times_s = np.arange(16) / 4
        told = {colour: np.zeros(16, bool) for colour in COLOURS}
        for span in sample.evidence:
            assert span.start_s == int(span.start_s)
            assert span.end_s == int(span.end_s)
            colour = span.caption.split()[1]
            told[colour] |= (times_s >= span.start_s) & (times_s < span.end_s)
        for colour, when in told.items():
            if kind != "duration" or when.any():
                assert np.array_equal(visible(frames, colour), when), (sample.id, colour)
        checked[kind] += 1
    assert min(checked.values()) >= 8


def test_a_moving_square_moves_all_the_time_and_where_its_caption_says() -> None:
    config = SMALL.model_copy(update={"mix": {"direction": 1.0}, "images": 0.0})
    for scene in scenes(config):
        (sample,) = rows(scene)
        colour, direction = sample.evidence[0].caption.split()[1], sample.evidence[0].caption.split()[-1]
        assert (sample.evidence[0].start_s, sample.evidence[0].end_s) == (0, 4)
        frames = render(scene, config).astype(int)
        hue = np.array(COLOURS[colour])
        places = np.array([np.argwhere((np.abs(frame - hue)).sum(-1) == 0).mean(0)[::-1] for frame in frames])
        steps = np.diff(places, axis=0)
        dx, dy = DIRECTIONS[direction]
        assert (steps @ (dx, dy) > 0).all()
        assert (steps @ (dy, dx) == 0).all()


def test_an_order_scene_never_shows_both_shapes_at_once() -> None:
    for scene in scenes(EVENTS):
        if scene.kind == "pair":
            first, second = scene.content.shapes
            assert first.end_s <= second.start_s
            assert first.colour != second.colour


# ---------------------------------------------------------------------------------------- what the text gives away

CHANCE = {
    "direction": 1 / 4,
    "order": 1 / 4,
    "colour": 1 / 4,
    "duration": 1 / 3,
    "count": 1 / 4,
    "image_count": 1 / 4,
    "describe": 1 / 16,
    "ocr": 1 / 100,
    "speed": 1 / 10,
}


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    return world(SynthesizeConfig(num_train=6000, num_validation=0, num_test=3000, mix=ALL_KINDS, images=0.2))


def majority_accuracy(train: list[Sample], test: list[Sample]) -> float:
    """The share of right answers of a guesser who knows the question's words and how often each was answered how."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        answers[sample.question][sample.answer] += 1
    guesses = [answers[s.question].most_common(1)[0][0] if answers[s.question] else "" for s in test]
    return sum(guess == s.answer for guess, s in zip(guesses, test, strict=True)) / len(test)


def test_answers_cannot_be_guessed_from_the_words_of_the_question(many: list[Sample]) -> None:
    train, test = by_kind(by_split(many, "train")), by_kind(by_split(many, "test"))
    assert set(test) == set(CHANCE)
    for kind, chance in CHANCE.items():
        # A guesser of 10 answers (speed) profits from their noise; hence three standard errors.
        limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(test[kind]))
        assert majority_accuracy(train[kind], test[kind]) <= limit, kind


def test_the_guesser_finds_answers_that_the_words_do_give_away(many: list[Sample]) -> None:
    leaky = [s.model_copy(update={"question": f"{s.question} {s.answer}"}) for s in many]
    train, test = by_kind(by_split(leaky, "train")), by_kind(by_split(leaky, "test"))
    assert majority_accuracy(train["direction"], test["direction"]) == 1.0


@pytest.mark.parametrize("kind", ["direction", "order", "duration", "count", "colour", "image_count"])
def test_all_answers_of_a_kind_are_equally_frequent(many: list[Sample], kind: str) -> None:
    for split in ("train", "test"):
        counts = Counter(sample.answer for sample in by_kind(by_split(many, split))[kind])
        assert len(counts) == round(1 / CHANCE[kind])
        assert max(counts.values()) - min(counts.values()) <= 6  # the last deck may be incomplete


def test_letters_stay_with_their_options(many: list[Sample]) -> None:
    options = {kind: {sample.options for sample in group} for kind, group in by_kind(many).items()}
    assert options["direction"] == {("left", "right", "up", "down")}
    assert options["order"] == options["colour"] == {("red", "green", "blue", "yellow")}


def test_balanced_choices_are_equally_frequent() -> None:
    assert Counter(balanced_choice("key", index, "abc") for index in range(30)) == {"a": 10, "b": 10, "c": 10}
    first, second = ([balanced_choice("key", 6 * deck + i, "abcdef") for i in range(6)] for deck in (0, 1))
    assert first != second


# -------------------------------------------------------------------------------------------------- the oracle


def clip_of(folder: Path, sample: Sample) -> Clip:
    """The clip as later stages see it: decoded, sampled, and through the frame codec."""
    return stored(read_clip(folder / sample.media.uri, VIDEO, sample.media.kind), VIDEO)


def agrees(answer: str, sample: Sample) -> bool:
    if sample.metadata["kind"] == "speed":  # a centroid is known to a fraction of a pixel
        return abs(float(answer) - float(sample.answer)) <= 0.05 * float(sample.answer)
    return answer == sample.answer


def test_the_oracle_needs_the_order_of_the_frames_for_direction_and_order(tmp_path: Path) -> None:
    samples = by_kind(read_rows(synthesize(EVENTS, tmp_path)))
    rng = np.random.default_rng(0)
    for kind in ("direction", "order"):
        ordered = shuffled = 0
        for sample in samples[kind]:
            clip = clip_of(tmp_path, sample)
            assert clip.frames.shape == (8, 56, 56, 3)
            ordered += oracle_answer(clip, sample) == sample.answer
            shuffled += oracle_answer(clip.permuted(rng.permutation(8)), sample) == sample.answer
        count = len(samples[kind])
        assert count == 200
        assert ordered / count >= 0.99
        assert shuffled / count <= 0.5 + 1.96 * math.sqrt(0.25 / count)


def test_the_oracle_answers_every_kind_from_the_stored_frames(small: Path) -> None:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for sample in read_rows(small):
        kind = sample.metadata["kind"]
        asked[kind] += 1
        right[kind] += agrees(oracle_answer(clip_of(small.parent, sample), sample), sample)
    assert right == asked


def test_the_oracle_is_wrong_about_frames_of_another_video() -> None:
    config = SMALL.model_copy(update={"mix": {"direction": 1.0}, "images": 0.0})
    left = next(s for i in range(99) if (s := scene_for(config, "train", "motion", i)).content.direction == "left")
    up = next(s for i in range(99) if (s := scene_for(config, "train", "motion", i)).content.direction == "up")
    frames = render(left, config)
    clip = Clip(frames, np.arange(16) / 4, 4.0)
    assert oracle_answer(clip, rows(left)[0]) == "A" == rows(left)[0].answer
    assert oracle_answer(clip, rows(up)[0]) == "A" != rows(up)[0].answer
