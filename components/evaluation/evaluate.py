"""Base, SFT and GRPO side by side on the held-out split, or one model on a public benchmark: ask, grade, estimate.

In the pipeline every model is asked every question with ordered frames, and every question about a video again
with its frames in random order and, as a control, with the pixels of another video. A benchmark is asked the
same way, but video by video, of whatever answers questions. Grades are computed from the answers at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ... import __version__
from ..common.config import ModelConfig, RunContext, TrackingConfig, VideoConfig
from ..common.launch import die_with_owner, git_commit
from ..common.prompts import get_template
from ..common.samples import Sample
from ..common.storage import Manifest, Storage, as_prefix, fingerprint, join, stage_prefix
from .asking import (
    Answer,
    EvaluationError,
    ItemJournal,
    Items,
    Journal,
    answer_of,
    ask,
    ask_videos,
    by_video,
    choose_items,
    conditions,
    line_of,
    video_of,
)
from .benchmarks import Benchmark, DataFolder, find_benchmark, load
from .config import PROTOCOLS, EvaluationConfig
from .engines import Engine, StoredModel, open_engine
from .expressions import FRAMES, check_asked, parse
from .measures import (
    Rows,
    baseline_items,
    conclude,
    flat_metrics,
    grade_answer,
    item_traces,
    items_table,
    left_out_metrics,
    mean_span,
    result_table,
    score_all,
    summarize,
)
from .results import BenchmarkResult, compare, key_of, parse_benchmark

# -- the stage -----------------------------------------------------------------------------------------------


def run(
    run_json: str,
    config_json: str,
    model_json: str,
    data_uri: str,
    sft_uri: str = "",
    grpo_uri: str = "",
    report_path: str | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> str:
    """Evaluate the base model and what SFT and GRPO made of it.

    Args:
        run_json: `RunContext`.
        config_json: `EvaluationConfig`.
        model_json: `ModelConfig` of the base model.
        data_uri: manifest of the prepared data.
        sft_uri: manifest of SFT; empty where the pipeline has none.
        grpo_uri: manifest of GRPO; empty where the pipeline has none.
        report_path: also write the HTML report to this file.
        log_metric: also tell this function every metric.

    Returns:
        URI of the evaluation's manifest; its files are ``result``, ``items`` and ``report``.

    Raises:
        ConfigError: a mistake in a section.
        EvaluationError: nothing to evaluate, or a machine that fails every item.
        StorageError: the store or something in it is not as expected.
    """
    die_with_owner()
    context = RunContext.load(run_json, "run")
    config = EvaluationConfig.load(config_json, "evaluation")
    model = ModelConfig.load(model_json, "model")
    storage = Storage(context.storage)
    data = Manifest.read(storage, data_uri)
    trained = {name: Manifest.read(storage, uri) for name, uri in (("sft", sft_uri), ("grpo", grpo_uri)) if uri}
    switches = {"ordered": True, "other_video": config.other_video_control}
    asked = [name for name in FRAMES if switches.get(name, getattr(config, name, False))]
    for rule in config.gate:
        check_asked(parse(rule), ["base", *trained], asked, [key_of(name) for name in config.benchmarks])
    identity = fingerprint(
        "evaluate",
        config.model_dump(mode="json", exclude={"gate"}),  # another gate judges the same numbers
        model,
        data.fingerprint,
        {name: manifest.fingerprint for name, manifest in trained.items()},
        context.redo.get("evaluate", 0),
        __version__,
    )
    prefix = stage_prefix(context, "evaluate", identity)
    manifest = Manifest.find(storage, prefix)
    if manifest is not None:
        print(f"evaluate: reused {prefix}")
    else:
        inputs = {"data": data_uri} | {k: u for k, u in (("sft", sft_uri), ("grpo", grpo_uri)) if u}
        with ExitStack() as stack:
            scratch = context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-"))
            evaluation = _Evaluation(context, config, model, storage, data, trained, Path(scratch))
            manifest = evaluation.carry_out(prefix, identity, inputs)
    if report_path is not None:
        Path(report_path).parent.mkdir(parents=True, exist_ok=True)
        Path(report_path).write_bytes(storage.read_bytes(manifest.files["report"]))
    if log_metric is not None:
        for name, value in manifest.metrics.items():
            log_metric(name, value)
    return manifest.manifest_uri


class _Evaluation:
    def __init__(
        self,
        context: RunContext,
        config: EvaluationConfig,
        model: ModelConfig,
        storage: Storage,
        data: Manifest,
        trained: Mapping[str, Manifest],
        work_dir: Path,
    ) -> None:
        self.context = context
        self.config = config
        self.model = model
        self.storage = storage
        self.data = data
        self.trained = trained
        self.work_dir = work_dir

    def carry_out(self, prefix: str, identity: str, inputs: dict[str, str]) -> Manifest:
        from ..common.models import ensure_base_model
        from ..common.samples import PreparedSet
        from ..common.tracking import Tracker
        from .report_page import benchmark_page, report_page

        started = time.monotonic()
        config, storage = self.config, self.storage
        with Tracker.start(self.context, "evaluate", identity, config.model_dump(mode="json"), inputs) as tracker:
            prepared = PreparedSet.open(storage, self.data.manifest_uri, self.work_dir / "data")
            split = prepared.split(config.split)
            if not len(split.samples):
                raise EvaluationError(f"split '{config.split}' of {self.data.manifest_uri} is empty; name another")
            indices = choose_items(split.samples, config.max_items, config.seed)
            samples = [split.samples[index] for index in indices]
            base = ensure_base_model(storage, self.model, prepared.video)
            models = {"base": {"uri": base, "fingerprint": base.rstrip("/").rsplit("/", 1)[-1]}}
            for name, manifest in self.trained.items():
                models[name] = {"uri": manifest.files["model"], "fingerprint": manifest.fingerprint}
            left_out = conditions(config, samples)
            rows, durations_s = self.ask_all(split, indices, models, left_out)
            typical = mean_span(prepared.split("train").samples)
            result = conclude(rows, models, baseline_items(samples, durations_s, typical), config)
            result |= {
                "split": config.split,
                "items": len(samples),
                "videos": len({video_of(sample) for sample in samples}),
                "left_out": {frames: why for frames, why in left_out.items() if why} | left_out_metrics(samples),
                "data": {"uri": self.data.manifest_uri, "fingerprint": self.data.fingerprint},
                "prompt": self.model.prompt,
                "settings": config.model_dump(mode="json", exclude={"gate"}),
            }
            benchmarks = self.measure_benchmarks(models, prepared.video)
            html = report_page(result, rows, split, indices, config, benchmarks)
            files = {"result": "result.json", "items": "items.jsonl", "report": "report.html"}
            files = {name: join(prefix, file) for name, file in files.items()}
            for one in benchmarks:
                result["models"][one.model][one.key] = one.cells
                files[f"benchmarks/{one.model}/{one.key}"] = one.where
            if benchmarks:
                page = benchmark_page(benchmarks, config)
                files["benchmarks"] = join(prefix, "benchmarks.html")
                storage.write_bytes(files["benchmarks"], page.encode())
                tracker.log_html("benchmark_report", page)
            items = "".join(json.dumps(row, ensure_ascii=False) + "\n" for cell in rows.values() for row in cell)
            storage.write_bytes(files["items"], items.encode())
            storage.write_bytes(files["report"], html.encode())
            storage.write_json(files["result"], result)
            metrics = flat_metrics(result)
            for one in benchmarks:
                name = f"evaluation/{one.model}/{one.key}/{one.headline}"
                metrics[name] = one.cells["ordered"][one.headline]["value"]
            seconds = round(time.monotonic() - started, 3)
            tracker.log_metrics(metrics | {"time/evaluate_s": seconds})
            tracker.log_table("evaluation", result_table(result))
            tracker.log_table("evaluation_items", items_table(rows))
            tracker.log_html("evaluation_report", html)
            tracker.log_traces(item_traces(rows, result["candidate"], config))
            manifest = Manifest(
                stage="evaluate",
                fingerprint=identity,
                uri=prefix,
                inputs=inputs | {"base": base},
                counts={
                    "items": len(samples),
                    "videos": result["videos"],
                    "asked": sum(map(len, rows.values())),
                    "failed": len(result["failed"]),
                },
                metrics=metrics,
                files=files,
                config=config.model_dump(mode="json"),
                details={"candidate": result["candidate"], "data_fingerprint": self.data.fingerprint},
                mlflow_run_id=tracker.run_id,
                seconds=seconds,
                git_commit=git_commit(),
            )
            manifest.write(storage)
            return manifest

    def ask_all(
        self,
        split: Items,
        indices: Sequence[int],
        models: Mapping[str, Mapping[str, str]],
        left_out: Mapping[str, str | None],
    ) -> tuple[Rows, list[float]]:
        """Graded items of every model and condition, and the length of every asked item's clip in seconds."""
        answer_format = get_template(self.model.prompt).answer_format
        videos = [index for index in indices if split.samples[index].media.kind == "video"]
        asked = {frames: indices if frames == "ordered" else videos for frames, why in left_out.items() if not why}
        rows: Rows = {}
        durations_s = [0.0] * len(indices)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("evaluate", total=len(models) * sum(map(len, asked.values())))
            for model, about in models.items():
                loaded = StoredModel(self.storage, about["uri"], self.model, self.config, self.work_dir)
                for frames, chosen in asked.items():
                    progress.update(task, description=f"{model}, {frames.replace('_', ' ')}")
                    began = time.monotonic()
                    journal = Journal(self.storage, self.answers_prefix(about, frames))
                    answers = ask(
                        split,
                        chosen,
                        frames,
                        loaded.predict,
                        journal,
                        self.config,
                        lambda count: progress.advance(task, count),
                    )
                    rows[model, frames] = [
                        grade_answer(split.samples[index], answer, model, frames, answer_format)
                        for index, answer in zip(chosen, answers, strict=True)
                    ]
                    right = sum(row["correct"] for row in rows[model, frames])
                    print(
                        f"evaluate: {model}, {frames}: {right} of {len(chosen)} right, "
                        f"{time.monotonic() - began:.1f} s",
                        flush=True,
                    )
                    if frames == "ordered":
                        durations_s = [
                            max(pair) for pair in zip(durations_s, (a.duration_s for a in answers), strict=True)
                        ]
                loaded.release()
        return rows, durations_s

    def measure_benchmarks(self, models: Mapping[str, Mapping[str, str]], video: VideoConfig) -> list[BenchmarkResult]:
        """Every model on every benchmark of the configuration; what was measured before is read again."""
        found = []
        for name, where in self.config.benchmarks.items():
            for model, about in models.items():
                identity = fingerprint("benchmark", name, where, self.answers_prefix(about, "ordered"))
                prefix = join(self.context.storage.root_uri, "evaluate", "benchmarks", identity + "/")
                files = [join(prefix, file) for file in ("items.jsonl", "result.json")]
                if not self.storage.exists(files[-1]):  # which is written last
                    output = self.work_dir / "benchmarks" / identity
                    run_benchmark(
                        name,
                        where,
                        about["uri"],
                        output,
                        config=self.config,
                        model_config=self.model,
                        work_dir=self.work_dir,
                        video=video,
                        storage=self.storage,
                    )
                    for file in files:
                        self.storage.write_bytes(file, (output / file.rpartition("/")[2]).read_bytes())
                items, result = (self.storage.read_bytes(file) for file in files)
                found.append(parse_benchmark(result, items, prefix, model))
                score = found[-1].cells["ordered"][found[-1].headline]["value"]
                print(f"evaluate: {model}, {name}: {found[-1].headline} {score:.4f}", flush=True)
        return found

    def answers_prefix(self, about: Mapping[str, str], frames: str) -> str:
        """Where the answers of one model under one condition are kept: named by all that determines them."""
        settings = ("split", "batch_size", "max_new_tokens", "temperature", "top_p", "seed", "max_items")
        identity = fingerprint(
            "answers",
            dict(about),
            frames,
            {name: getattr(self.config, name) for name in settings},
            [self.model.prompt, self.model.dtype, self.model.attention],
            self.data.fingerprint,
            self.context.redo.get("evaluate", 0),
            __version__,
        )
        return join(self.context.storage.root_uri, "evaluate", "answers", identity + "/")


# -- a benchmark ---------------------------------------------------------------------------------------------

RELIANCE = ("shuffled", "reversed", "single_frame", "blind")
"""Conditions under which a model that needs the video, in order, must do worse."""


class LocalFile:
    """A file on this machine; one that was fetched is removed when nobody holds this object any more."""

    def __init__(self, path: Path, fetched: bool = False) -> None:
        self.path = path
        self._fetched = fetched

    def __del__(self) -> None:
        if self._fetched:
            with suppress(OSError):
                self.path.unlink()


@dataclass
class Source:
    """Where a benchmark's files are: a folder, or a prefix in the store."""

    folder: DataFolder
    root: Path | str
    storage: Storage | None
    work_dir: Path

    @classmethod
    def open(cls, where: str, storage: Storage | None, work_dir: Path, hub: str = "") -> Source:
        """List what is there.

        Args:
            where: a folder, ``s3://…/``, or ``hub``.
            storage: for a prefix.
            work_dir: for what is fetched.
            hub: the data set that ``hub`` means.

        Raises:
            EvaluationError: nothing is there.
        """
        if where == "hub":
            where = str(_from_hub(hub, work_dir))
        if where.startswith("s3://"):
            if storage is None:
                raise EvaluationError(f"{where}: no object store to look in")
            prefix = as_prefix(where)
            names = [item.uri.removeprefix(prefix) for item in storage.list(prefix)]
            names = [name for name in names if ".." not in PurePosixPath(name).parts and not name.endswith("/")]
            source = cls(DataFolder(prefix, names), prefix, storage, work_dir)
        else:
            root = Path(where)
            if not root.is_dir():
                raise EvaluationError(f"{where}: there is no such folder")
            source = cls(DataFolder(where, _names_below(root)), root, None, work_dir)
        if not source.folder.names:
            raise EvaluationError(f"{where}: nothing there")
        return source

    def file(self, name: str) -> LocalFile:
        """One of its files, on this machine."""
        if self.storage is None:
            return LocalFile(Path(self.root) / name)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix="fetched-", suffix=PurePosixPath(name).suffix, dir=self.work_dir)
        os.close(descriptor)
        file = LocalFile(Path(path), fetched=True)
        self.storage.download_file(join(str(self.root), name), file.path)
        return file


def _from_hub(name: str, work_dir: Path) -> Path:
    """A folder with a data set of the hub, its archives unpacked; fetched once."""
    if not name:
        raise EvaluationError("a set of your own is not on the hub; give its folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = work_dir / "hub" / name.replace("/", "--")
    try:
        snapshot_download(name, repo_type="dataset", local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"the data set {name} cannot be fetched from the hub ({reason}); give the folder it is in"
        ) from None
    for archive in sorted(folder.rglob("*.zip")):
        unpack(archive)
    return folder


def unpack(archive: Path) -> Path:
    """Unpack a zip archive into a folder of its name beside it, once; nothing is written outside of that folder.

    Raises:
        EvaluationError: it is damaged, or there is no room for it.
    """
    target = archive.with_suffix("")
    done = archive.with_name(f".{archive.name}.unpacked")
    if done.exists():
        return target
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted, free = sum(item.file_size for item in opened.infolist()), shutil.disk_usage(archive.parent).free
            if wanted > free:
                raise EvaluationError(
                    f"{archive}: needs {wanted / 2**30:.1f} GiB unpacked, {free / 2**30:.1f} are free"
                )
            opened.extractall(target)  # leaves out leading slashes and ".."
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from None
    done.touch()
    return target


def _names_below(root: Path) -> list[str]:
    """Files below a folder; linked folders are followed, each once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files]
    return names


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
        BenchmarkError, EvaluationError, ModelError, StorageError: in one line.
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
        from ..common.video import DecodeError, Decoder, map_in_order, stored

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
