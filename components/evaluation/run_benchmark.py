"""A model measured on a benchmark."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ... import __version__
from ..common.model.config import ModelConfig
from ..common.provenance import git_commit
from ..common.rows.sample import Sample
from ..common.storage.names import fingerprint
from ..common.storage.s3 import Storage
from ..common.tracking.config import TrackingConfig
from ..common.video.config import VideoConfig
from .answers import Answer, EvaluationError
from .ask import ask_videos, by_video
from .benchmarks.benchmark import Benchmark
from .benchmarks.folder import load
from .benchmarks.registry import find_benchmark
from .captions import left_out_metrics
from .conditions import RELIANCE, choose_items, video_of
from .config import PROTOCOLS, EvaluationConfig
from .grade import grade_answer
from .journal import ItemJournal, answer_of, line_of
from .models.model import Engine
from .models.open import open_engine
from .results import BenchmarkResult, compare
from .scores import score_all
from .source import LocalFile, Source
from .summary import summarize


def run_benchmark(
    name: str,
    data: str,
    model: str,
    output: Path,
    *,
    config: EvaluationConfig,
    model_config: ModelConfig,
    work_dir: Path,
    video: VideoConfig | None = None,
    protocol: str | None = None,
    num_frames: int | None = None,
    reliance: bool = False,
    retry_failed: bool = False,
    storage: Storage | None = None,
    tracking: TrackingConfig | None = None,
) -> dict[str, Any]:
    """Measure a model on a benchmark; what was asked before is not asked again.

    Args:
        name: of the benchmark, or a YAML file that describes a set of one's own.
        data: folder or ``s3://…/`` prefix with the published annotation file and the videos, or ``hub``.
        model: see `engines.open_engine`.
        output: folder for ``result.json`` and ``items.jsonl``.
        config: how to ask, and how sure the numbers are to be.
        model_config: for models that do not bring a prompt.
        work_dir: scratch space.
        video: for models that do not bring one.
        protocol: a paper's frames, pixels and sampling, of `PROTOCOLS`; None: as the model was trained, and
            ``config``.
        num_frames: in place of the protocol's (or the model's).
        reliance: ask under the conditions of `RELIANCE` too.
        retry_failed: ask the items that failed again.
        storage: for models and data that are not on this machine.
        tracking: for models of the registry.

    Returns:
        The contents of ``result.json``.

    Raises:
        BenchmarkError, EvaluationError, UserError, StorageError: in one line.
    """
    benchmark = find_benchmark(name)
    config, override = under_protocol(config, protocol, num_frames)
    source = Source.open(data, storage, work_dir, benchmark.hub)
    fetched: list[LocalFile] = []  # annotation files are needed until they are read

    def annotation(file: str) -> Path:
        fetched.append(source.file(file))
        return fetched[-1].path

    found = load(benchmark, source.folder, annotation)
    samples = [found.samples[index] for index in choose_items(found.samples, config.max_items, config.seed)]
    left_out = left_out_metrics(samples)
    engine = open_engine(model, model_config, config, work_dir, storage, tracking, video, override)
    if engine.video is None:
        impossible = [name for name in RELIANCE if name not in engine.conditions]
        left_out |= dict.fromkeys(impossible, "an endpoint is sent the file, not frames") if reliance else {}
        if override:
            left_out["frames"] = "an endpoint takes frames and pixels as it was started"
    frames = ["ordered", *(name for name in RELIANCE if reliance and name in engine.conditions)]
    settings = _settings(benchmark, engine, config, protocol) | {
        "questions": fingerprint("questions", [[s.id, s.question, list(s.options), s.answer] for s in samples]),
        "files": found.files,
    }
    output.mkdir(parents=True, exist_ok=True)
    with ItemJournal(output / "items.jsonl") as journal:
        _check_settings(output / "settings.json", settings, bool(journal.rows))
        if retry_failed:
            journal.forget_failed()
        started = time.monotonic()
        before = len(journal.rows)
        asking = _Asking(benchmark, samples, found.missing, engine, journal, config)
        try:
            asking.ask(source, frames)
        finally:
            engine.release()
        rows = {condition: asking.rows(condition) for condition in frames}
        result = _conclude(benchmark, rows, engine, config) | {
            "data": str(data),
            "items": len(samples),
            "videos": len({video_of(sample) for sample in samples}),
            "missing_videos": len({s.media.uri for s in samples if s.id in found.missing}),
            "left_out": left_out,
            "settings": settings,
            "confidence": config.confidence,
            "asked_now": len(journal.rows) - before,
            "seconds": round(time.monotonic() - started, 3),
            "version": __version__,
            "git_commit": git_commit(),
        }
        one = BenchmarkResult("model", str(output), result, rows)
        pairs = {other: compare(one, one, benchmark.headline, config, ("ordered", other)) for other in frames[1:]}
        result["reliance"] = {other: None if pair is None else pair.to_dict() for other, pair in pairs.items()}
        kept = [row for condition in frames for row in rows[condition]]
        others = [row for key, row in journal.rows.items() if key[0] not in frames]
        _write(output / "items.jsonl", b"".join(map(line_of, [*kept, *others])))
        _write(output / "result.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    return result


def under_protocol(
    config: EvaluationConfig, protocol: str | None, num_frames: int | None
) -> tuple[EvaluationConfig, dict[str, Any]]:
    """The settings of generation, and those of `VideoConfig` in place of the model's.

    Raises:
        EvaluationError: no such protocol.
    """
    override: dict[str, Any] = {}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise EvaluationError(f"unknown protocol '{protocol}'; there are: {', '.join(PROTOCOLS)}")
        chosen = PROTOCOLS[protocol]
        sampling = ("temperature", "top_p", "max_new_tokens")
        config = config.model_copy(update={key: getattr(chosen, key) for key in sampling})
        override = {"num_frames": chosen.num_frames, "fps": None, "max_pixels": chosen.max_pixels}
    if num_frames is not None:
        override |= {"num_frames": num_frames, "fps": None}
    return config, override


def _settings(benchmark: Benchmark, engine: Engine, config: EvaluationConfig, protocol: str | None) -> dict[str, Any]:
    """Everything that answers depend on."""
    names = ("temperature", "top_p", "max_new_tokens", "seed", "max_items")
    return {
        "benchmark": benchmark.name,
        "model": engine.about,
        "protocol": protocol,
        "video": engine.video.model_dump(mode="json") if engine.video else None,
        **{name: getattr(config, name) for name in names},
    }


def _check_settings(path: Path, settings: dict[str, Any], begun: bool) -> None:
    """See that a folder is not filled with answers to other questions or of another model."""
    if begun and path.is_file():
        with suppress(ValueError, AttributeError):
            before = json.loads(path.read_text("utf-8"))
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed:
                raise EvaluationError(
                    f"{path.parent} holds another evaluation ({', '.join(changed)} differ): give another --output, "
                    "or delete it"
                )
            return
    if begun:
        raise EvaluationError(f"{path} is missing or damaged: give another --output, or delete {path.parent}")
    _write(path, json.dumps(settings, indent=1, ensure_ascii=False).encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file that appears whole, and is on the disk when this returns."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class _Asking:
    """The questions of one benchmark on their way to one engine and into the journal."""

    def __init__(
        self,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        missing: Mapping[str, str],
        engine: Engine,
        journal: ItemJournal,
        config: EvaluationConfig,
    ) -> None:
        self.benchmark = benchmark
        self.samples = samples
        self.missing = missing
        self.engine = engine
        self.journal = journal
        self.config = config

    def ask(self, source: Source, frames: Sequence[str]) -> None:
        """Ask what has not been asked, with progress."""
        videos = {c: [s for s in self.samples if c == "ordered" or s.media.kind == "video"] for c in frames}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(self.benchmark.name, total=sum(map(len, videos.values())))
            progress.advance(task, sum((c, s.id) in self.journal.rows for c in frames for s in videos[c]))

            def keep(condition: str, answers: Sequence[Answer], indices: Sequence[int]) -> None:
                self.journal.append(
                    self.graded(self.samples[index], answer, condition)
                    for index, answer in zip(indices, answers, strict=True)
                )
                progress.advance(task, len(indices))

            for condition in frames:
                lost = [
                    index
                    for index, sample in enumerate(self.samples)
                    if sample.id in self.missing and (condition, sample.id) not in self.journal.rows
                ]
                if lost:
                    answers = [Answer(self.samples[i].id, error=self.missing[self.samples[i].id]) for i in lost]
                    keep(condition, answers, lost)
            ask_videos(
                self.samples,
                by_video(self.samples),
                lambda samples: self.media(source, samples),
                frames,
                self.engine.predict,
                keep,
                self.config,
                lambda condition, index: (condition, self.samples[index].id) in self.journal.rows,
            )

    def media(self, source: Source, samples: Iterable[Sample]) -> Iterator[Any]:
        """What the engine takes of each sample's video: the decoded clip, or the file; decoded ahead of the use."""
        from ..common.video.clip import DecodeError
        from ..common.video.codec import stored
        from ..common.video.workers import Decoder, map_in_order

        video, workers = self.engine.video, self.config.decode_workers
        if video is None:
            yield from map_in_order(lambda sample: source.file(sample.media.uri), samples, workers, 2 * workers)
            return
        with Decoder(video, workers=workers) as decoder:

            def read(sample: Sample) -> Any:
                media = sample.media
                file = source.file(media.uri)
                try:
                    return stored(decoder.read(file.path, media.kind, media.start_s, media.end_s), video)
                except DecodeError as error:
                    return error

            yield from map_in_order(read, samples, workers, 2 * workers)

    def graded(self, sample: Sample, answer: Answer, condition: str) -> dict[str, Any]:
        """The item of ``items.jsonl``; ``value`` is what it counts in the headline."""
        about, engine = self.benchmark, self.engine
        row = grade_answer(sample, answer, "model", condition, engine.answer_format, about.grade)
        return row | {"value": about.scores[about.headline].value(row)}

    def rows(self, condition: str) -> list[dict[str, Any]]:
        """The items asked under a condition, graded from what was said, in the order of the benchmark."""
        kept = ((sample, self.journal.rows.get((condition, sample.id))) for sample in self.samples)
        return [self.graded(sample, answer_of(row), condition) for sample, row in kept if row is not None]


def _conclude(
    benchmark: Benchmark, rows: Mapping[str, Sequence[dict[str, Any]]], engine: Engine, config: EvaluationConfig
) -> dict[str, Any]:
    """What was found, apart from where and how."""
    cells = {
        condition: summarize(cell, config) | {"scores": score_all(benchmark.scores, cell, config)}
        for condition, cell in rows.items()
        if cell
    }
    ordered = cells["ordered"]
    abilities = [name for name in ordered if name.startswith(("format_", "miou", "recall_at_", "caption_"))]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "asks": benchmark.asks,
        "source": benchmark.source,
        "traps": list(benchmark.traps),
        "model": engine.about,
        "headline": benchmark.headline,
        "metrics": ordered["scores"] | {name: ordered[name] for name in abilities},
        "definitions": {name: score.definition for name, score in benchmark.scores.items()},
        "conditions": cells,
        "failed": [
            {"id": row["id"], "frames": condition, "error": row["error"]}
            for condition, cell in rows.items()
            for row in cell
            if row["error"] is not None
        ],
    }
