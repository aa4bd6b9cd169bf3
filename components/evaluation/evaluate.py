"""Base, SFT and GRPO side by side on the held-out split, or one model on a public benchmark: ask, grade, estimate.

In the pipeline every model is asked every question with ordered frames, and every question about a video again
with its frames in random order and, as a control, with the pixels of another video. A benchmark is asked the
same way, but video by video, of whatever answers questions. Grades are computed from the answers at the end.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ... import __version__
from ..common.context import RunContext
from ..common.launch.process import die_with_owner
from ..common.model.config import ModelConfig
from ..common.model.prompts import get_template
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.video.config import VideoConfig
from .answers import EvaluationError
from .ask import ask
from .captions import left_out_metrics
from .conditions import Items, choose_items, conditions, video_of
from .config import EvaluationConfig
from .expressions import FRAMES, check_asked, parse
from .grade import grade_answer
from .grounding import baseline_items, mean_span
from .journal import Journal
from .models.local import StoredModel
from .results import BenchmarkResult, key_of, parse_benchmark
from .run_benchmark import run_benchmark
from .summary import Rows, conclude, flat_metrics, item_traces, items_table, result_table


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
        from ..common.model.store import ensure_base_model
        from ..common.rows.prepared import PreparedSet
        from ..common.tracking.run import Tracker
        from .report.benchmarks import benchmark_page
        from .report.split import report_page

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
                "prompt": get_template(self.model.prompt).name,
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
