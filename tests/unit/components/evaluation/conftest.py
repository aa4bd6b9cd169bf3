"""A small world in memory: videos that get brighter or darker, and models that look at them, guess or fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from vthink.components.common.rows.prepared import PreparedSample
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.common.video.clip import Clip
from vthink.components.evaluation.conditions import NO_VIDEO
from vthink.components.evaluation.config import EvaluationConfig

NUM_FRAMES = 8


@dataclass
class World:
    """A split: two questions about each video, one about each image."""

    samples: list[Sample] = field(default_factory=list)
    clips: list[Clip | Exception] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PreparedSample:
        self.taken.append(index)
        clip = self.clips[index]
        if isinstance(clip, Exception):
            raise clip
        return PreparedSample(self.samples[index], clip)


def make_world(videos: int = 12, images: int = 2) -> World:
    world = World()
    for number in range(videos):
        brighter = number % 2 == 0
        ramp = np.linspace(20, 200, NUM_FRAMES) + number / 4  # every video has pixels of its own
        frames = np.tile((ramp if brighter else ramp[::-1])[:, None, None, None], (1, 16, 16, 3)).astype(np.uint8)
        clip = Clip(frames, np.arange(NUM_FRAMES) / 2, 4.0)
        media = Media(kind="video", uri=f"videos/{number:03d}.mp4")
        world.samples.append(
            Sample(
                id=f"v{number:03d}-direction",
                media=media,
                question="Does it get brighter or darker?",
                options=("brighter", "darker"),
                problem_type="multiple_choice",
                answer="A" if brighter else "B",
                reasoning="It changes.",
                evidence=(Evidence(start_s=1.0, end_s=3.0, caption="it changes"),),
                source="test",
                split="test",
                metadata={"kind": "direction"},
            )
        )
        world.samples.append(
            Sample(
                id=f"v{number:03d}-start",
                media=media,
                question="How bright is the first frame?",
                problem_type="regression",
                answer=str(20 if brighter else 200),
                reasoning=None,
                evidence=(),
                source="test",
                split="test",
                metadata={"kind": "how bright?"},
            )
        )
        world.clips += [clip, clip]
    for number in range(images):
        world.samples.append(
            Sample(
                id=f"i{number:03d}",
                media=Media(kind="image", uri=f"images/{number:03d}.png"),
                question="What is written?",
                problem_type="ocr",
                answer="seven up",
                reasoning=None,
                evidence=(),
                source="test",
                split="test",
                metadata={},
            )
        )
        world.clips.append(Clip(np.full((1, 16, 16, 3), 99, np.uint8), np.zeros(1), 0.0, "image"))
    return world


@dataclass(frozen=True)
class Said:
    text: str
    token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    finish_reason: str = "stop"


def look(sample: Sample, clip: Clip) -> str:
    """The answer of a model that sees the order of frames."""
    first, last = float(clip.frames[0].mean()), float(clip.frames[-1].mean())
    if sample.problem_type == "multiple_choice":
        answer = "A" if last > first else "B"
        segment = "<time>00:01-00:03</time><caption>a change</caption><think>so it is</think>"
        return f"{segment}<answer>{answer}</answer>"
    if sample.problem_type == "regression":
        return f"<think>looking</think><answer>{first:.0f}</answer>"
    return "<think>reading</think><answer>seven</answer>"


@dataclass
class Model:
    """A predictor that counts what it is asked, and can be told to fail."""

    say: Callable[[Sample, Clip], str] = look
    fail_on: frozenset[str] = frozenset()
    stop_after: int | None = None
    asked: list[str] = field(default_factory=list)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    batches: int = 0

    def __call__(self, samples: Sequence[Sample], clips: Sequence[Clip]) -> list[Said]:
        if self.stop_after is not None and self.batches >= self.stop_after:
            raise KeyboardInterrupt
        self.batches += 1
        broken = [sample.id for sample in samples if sample.id in self.fail_on]
        if broken:
            raise RuntimeError(f"cannot\nanswer {broken[0]}")
        self.asked += [sample.id for sample in samples]
        for sample, clip in zip(samples, clips, strict=True):
            self.seen[sample.id] = getattr(clip, "frames", None)  # none of a question asked blind
        return [
            Said("" if clip is NO_VIDEO else self.say(sample, clip))
            for sample, clip in zip(samples, clips, strict=True)
        ]


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def config() -> EvaluationConfig:
    return EvaluationConfig(batch_size=5, bootstrap_resamples=200)
