"""One model on one public benchmark, into a folder: ``vthink evaluate --benchmark``."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.model.config import ModelConfig
from ..common.rows.sample import Sample
from ..common.storage.s3 import Storage
from ..common.tracking.config import TrackingConfig
from ..common.video.config import VideoConfig
from .ask import Media
from .benchmarks.benchmark import QuestionSet
from .benchmarks.folder import LocalFile, Source, load_questions
from .benchmarks.registry import find_benchmark
from .conditions import ORDERED, RELIANCE, choose_items
from .config import PROTOCOLS, EvaluationConfig
from .item import FileLog, Journal
from .measure import conclude, measure, settings_of
from .metrics import left_out_metrics
from .models import open_model
from .results import Result, Settings


def evaluate_benchmark(
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
) -> Result:
    """Measure a model on a benchmark; what was asked before is not asked again. Returns what ``result.json`` holds.

    Args:
        name: of the benchmark, ``my_module:BENCHMARK``, or a YAML file that describes a set of one's own.
        data: folder or ``s3://…/`` prefix with the published annotation file and the videos, or ``hub``.
        model: see `models.open.open_model`.
        output: folder for ``result.json`` and ``items.jsonl``.
        config: how to ask, and how sure the numbers are to be.
        model_config, video: for models that do not bring a prompt, or how videos become frames.
        protocol: a paper's frames, pixels and sampling, of `PROTOCOLS`; None: as the model was trained, and ``config``.
        num_frames: in place of the protocol's (or the model's).
        reliance: ask under the conditions of `RELIANCE` too.
        retry_failed: ask the items that failed again.
        storage, tracking: for models and data that are not on this machine, and models of the registry.

    Raises `UserError`, `StorageError`: in one line."""
    config, override = under_protocol(config, protocol, num_frames)
    questions, source = open_questions(name, data, config, storage, work_dir)
    asked_model = open_model(model, model_config, config, work_dir, storage, tracking, video, override)
    left_out = left_out_metrics(questions.samples)
    if asked_model.video is None:
        impossible = [name for name in RELIANCE if name not in asked_model.conditions]
        left_out |= dict.fromkeys(impossible, "an endpoint is sent the file, not frames") if reliance else {}
        if override:
            left_out["frames"] = "an endpoint takes frames and pixels as it was started"
    conditions = [ORDERED, *(name for name in RELIANCE if reliance and name in asked_model.conditions)]
    settings = settings_of(questions, asked_model, asked_model.video, config, protocol)
    output.mkdir(parents=True, exist_ok=True)
    with Journal(FileLog(output / "items.jsonl")) as journal:
        _check_settings(output / "settings.json", settings, bool(journal.items))
        if retry_failed:
            journal.forget_failed()
        started, before = time.monotonic(), len(journal.items)
        try:
            media = folder_media(source, asked_model.video, config.decode_workers)
            items = measure(questions, media, asked_model, journal, conditions, config)
        finally:
            asked_model.release()
        took = {"asked_now": len(journal.items) - before, "seconds": round(time.monotonic() - started, 3)}
        result = conclude(questions, items, settings, config, data=str(data), left_out=left_out, **took)
        kept = [item for condition in conditions for item in items[condition]]
        kept += [item for (condition, _), item in journal.items.items() if condition not in conditions]
        _write(output / "items.jsonl", b"".join(item.to_line() for item in kept))
        _write(output / "result.json", result.model_dump_json(by_alias=True, indent=1).encode())
    return result


def open_questions(
    name: str, data: str, config: EvaluationConfig, storage: Storage | None, work_dir: Path
) -> tuple[QuestionSet, Source]:
    """The questions of a benchmark that are to be asked, and where their videos are.

    Raises `UserError`: no such benchmark, or files that are not as published."""
    benchmark = find_benchmark(name)
    source = Source.open(data, storage, work_dir, benchmark.hub)
    fetched: list[LocalFile] = []  # annotation files are needed until they are read

    def annotation(file: str) -> Path:
        fetched.append(source.file(file))
        return fetched[-1].path

    questions = load_questions(benchmark, source.folder, annotation)
    chosen = choose_items(questions.samples, config.max_items, config.seed)
    return replace(questions, samples=[questions.samples[index] for index in chosen]), source


def folder_media(source: Source, video: VideoConfig | None, workers: int) -> Media:
    """What a model is shown of the videos of a folder: decoded clips, or the files; read ahead of their use."""
    from ..common.video.clip import DecodeError, stored
    from ..common.video.workers import Decoder, map_in_order

    def media(samples: Iterable[Sample]) -> Iterator[Any]:
        if video is None:
            yield from map_in_order(lambda sample: source.file(sample.media.uri), samples, workers, 2 * workers)
            return
        with Decoder(video, workers=workers) as decoder:

            def read(sample: Sample) -> Any:
                media, file = sample.media, source.file(sample.media.uri)
                try:
                    return stored(decoder.read(file.path, media.kind, media.start_s, media.end_s), video)
                except DecodeError as error:
                    return error

            yield from map_in_order(read, samples, workers, 2 * workers)

    return media


def under_protocol(
    config: EvaluationConfig, protocol: str | None, num_frames: int | None
) -> tuple[EvaluationConfig, dict[str, Any]]:
    """The settings of generation, and those of `VideoConfig` in place of the model's; a `UserError`: no protocol."""
    override: dict[str, Any] = {}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise UserError(f"unknown protocol '{protocol}'; there are: {', '.join(PROTOCOLS)}")
        chosen = PROTOCOLS[protocol]
        config = config.model_copy(update=chosen.model_dump(include={"temperature", "top_p", "max_new_tokens"}))
        override = {"num_frames": chosen.num_frames, "fps": None, "max_pixels": chosen.max_pixels}
    return config, override | ({"num_frames": num_frames, "fps": None} if num_frames is not None else {})


def _check_settings(path: Path, settings: Settings, begun: bool) -> None:
    """See that a folder is not filled with answers to other questions or of another model."""
    wanted = settings.model_dump(mode="json", exclude_none=True)
    if begun and path.is_file():
        with suppress(ValueError, AttributeError):
            before = json.loads(path.read_text("utf-8"))
            changed = [name for name in type(settings).model_fields if before.get(name) != wanted.get(name)]
            if changed:
                differ = f"{path.parent} holds another evaluation ({', '.join(changed)} differ)"
                raise UserError(f"{differ}: give another --output, or delete it")
            return
    if begun:
        raise UserError(f"{path} is missing or damaged: give another --output, or delete {path.parent}")
    _write(path, json.dumps(wanted, indent=1, ensure_ascii=False).encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file that appears whole, and is on the disk when this returns."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
