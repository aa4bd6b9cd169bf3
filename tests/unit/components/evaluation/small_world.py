"""A small world in memory: videos that get brighter or darker, and models that look at them, guess or fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from vthink.components.common.rows.prepared import PreparedSample
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.common.video.clip import Clip
from vthink.components.evaluation.ask import Answer
from vthink.components.evaluation.benchmarks.benchmark import Benchmark, QuestionSet
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS
from vthink.components.evaluation.conditions import NO_VIDEO
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.item import Item
from vthink.components.evaluation.measure import conclude, failed_items, grade_answer
from vthink.components.evaluation.results import (
    HELD_OUT,
    BenchmarkResult,
    DataReference,
    EvaluatedModel,
    EvaluationResult,
    ModelIdentity,
    Settings,
)
from vthink.components.evaluation.scores import ACCURACY
from vthink.components.evaluation.summary import comparisons, summarize

NUM_FRAMES = 8


@dataclass
class World:
    """A split: two questions about each video, one about each image."""

    samples: list[Sample] = field(default_factory=list)
    clips: list[Clip | Exception] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PreparedSample:
        clip = self.clips[index]
        if isinstance(clip, Exception):
            raise clip
        return PreparedSample(self.samples[index], clip)

    def clip(self, item_id: str) -> Clip:
        """The clip of a question."""
        clip = self.clips[next(place for place, sample in enumerate(self.samples) if sample.id == item_id)]
        if isinstance(clip, Exception):
            raise clip
        return clip


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
class Completion:
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

    answer: Callable[[Sample, Clip], str] = look
    fail_on: frozenset[str] = frozenset()
    stop_after: int | None = None
    asked: list[str] = field(default_factory=list)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    batches: int = 0

    def __call__(self, samples: Sequence[Sample], clips: Sequence[Clip]) -> list[Completion]:
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
            Completion("" if clip is NO_VIDEO else self.answer(sample, clip))
            for sample, clip in zip(samples, clips, strict=True)
        ]


SEGMENT = "<time>00:01-00:03</time><caption>it changes</caption><think>so</think>"
HELD_OUT_SPLIT = Benchmark(
    name=HELD_OUT, title="split “test”", asks="", source="the prepared data", scores={"accuracy": ACCURACY}
)


def graded(
    sample: Sample, text: str, model: str = "grpo", condition: str = "ordered", error: str | None = None
) -> Item:
    """The item of one answer."""
    return grade_answer(sample, Answer(sample.id, text, error=error), model, condition, "video_thinker", HELD_OUT_SPLIT)


def items_of(world: World, texts: Iterable[str], model: str = "grpo", condition: str = "ordered") -> list[Item]:
    """The items of one answer to every question of a world."""
    return [graded(sample, text, model, condition) for sample, text in zip(world.samples, texts, strict=True)]


def result_of(
    world: World,
    items: Mapping[str, list[Item]],
    model: str,
    config: EvaluationConfig,
    benchmark: Benchmark = HELD_OUT_SPLIT,
) -> BenchmarkResult:
    """What is concluded from the items of a model, by condition."""
    questions = QuestionSet(benchmark, world.samples, {}, {})
    about = ModelIdentity(kind="folder", uri=f"/models/{model}", fingerprint=model, prompt="compact/1")
    settings = Settings(
        benchmark=benchmark.name, model=about, questions="q", video={"num_frames": 8, "max_pixels": 784}
    )
    return BenchmarkResult(model, "", conclude(questions, items, settings, config), items)


def stage_result(
    results: list[BenchmarkResult], config: EvaluationConfig, baselines: Mapping[str, list[Item]] | None = None
) -> EvaluationResult:
    """The ``result.json`` of the stage over models on one world."""
    return EvaluationResult(
        models={
            one.model: EvaluatedModel(uri=f"s3://b/{one.model}/", fingerprint=one.model, **one.result.conditions)
            for one in results
        },
        baselines={
            name: {"ordered": summarize(items, {}, config.resampling)} for name, items in (baselines or {}).items()
        },
        comparisons=tuple(comparisons(results, config.resampling, held_out=True)),
        candidate=results[-1].model,
        failed=tuple(failed for one in results for failed in failed_items(one.items)),
        split="test",
        items=results[0].result.items,
        videos=results[0].result.videos,
        data=DataReference(uri="s3://b/d/", fingerprint="data-1"),
        prompt="compact/1",
        settings={"max_items": None, "seed": 0},
    )


def write_result(folder: Path, result: BenchmarkResult) -> Path:
    """What ``vthink evaluate --benchmark`` leaves of a result."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(result.result.model_dump_json(by_alias=True))
    lines = [item.to_line() for cell in result.items.values() for item in cell]
    (folder / "items.jsonl").write_bytes(b"".join(lines))
    return folder


ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def two_models(
    videos: int = 30, benchmark: str = "video-holmes", copies: int = 1, data: str = ""
) -> dict[str, BenchmarkResult]:
    """Two models on a benchmark, of which the second one looks more often."""
    world, about = make_world(videos=videos, images=0), BENCHMARKS.get(benchmark)
    rng, results = random.Random(0), {}
    for model, skill in (("base", 0.2), ("ours", 0.8)):
        items = {}
        for condition in ("ordered", "shuffled", "blind"):
            texts = []
            for sample, clip in zip(world.samples, world.clips, strict=True):
                sees = condition == "ordered" and rng.random() < skill
                texts.append(look(sample, clip) if sees else f"{ATTACK}<answer>{rng.choice('AB')}</answer>")
            cell = items_of(world, texts, "model", condition)
            items[condition] = [
                item.model_copy(
                    update={"value": about.scores[about.headline].value(item)}
                    | {name: f"{copy}{getattr(item, name)}" for name in ("id", "video")}
                )
                for copy in ("", *map(str, range(1, copies)))
                for item in cell
            ]
        one = result_of(world, items, model, EvaluationConfig(bootstrap_resamples=200), about)
        counts = {"items": copies * len(world), "videos": copies * videos, "data": data}
        results[model] = replace(one, result=one.result.model_copy(update=counts))
    return results


def write_two_models(folder: Path, **arguments: Any) -> dict[str, Path]:
    """The folders of `two_models`."""
    results = two_models(data=str(folder / "data"), **arguments)
    return {name: write_result(folder / f"{name}-{one.benchmark}", one) for name, one in results.items()}
