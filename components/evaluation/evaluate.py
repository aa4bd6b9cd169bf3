"""The stage: base, SFT and GRPO side by side on the held-out split, and on the benchmarks of the configuration.

Every model is asked every question with frames in order, and every question about a video again under the other
conditions of the configuration. Answers are kept in the store by model and settings, so that a killed evaluation loses
a batch, and another gate, or other statistics, ask nothing again."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ..common.answers.reading import GRADER_VERSION
from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.process import end_with_owner, limit_threads
from ..common.model.config import ModelConfig
from ..common.model.prompts import get_template
from ..common.rows.sample import Sample
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.video.config import VideoConfig
from .ask import Media
from .benchmarks.benchmark import Benchmark, QuestionSet
from .conditions import ORDERED, choose_items, video_of, which_conditions
from .config import EvaluationConfig
from .evaluate_benchmark import folder_media, open_questions
from .item import Item, Journal, StoreLog
from .measure import conclude, failed_items, measure, settings_of
from .metrics import baseline_items, left_out_metrics, mean_span
from .models import LocalModel
from .results import (
    HELD_OUT,
    BenchmarkResult,
    DataReference,
    EvaluatedModel,
    EvaluationResult,
    ModelIdentity,
    parse_benchmark,
    read_result,
    stage_files,
)
from .rules import check_evaluated
from .scores import ACCURACY
from .summary import (
    comparisons,
    flat_metrics,
    grounding_sentence,
    in_one_sentence,
    item_traces,
    items_table,
    result_table,
    summarize,
)

if TYPE_CHECKING:
    from ..common.rows.prepared import PreparedSet
    from ..common.video.clip import Clip


def evaluate_models(
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
        run_json, config_json, model_json: `RunContext`, `EvaluationConfig`, and `ModelConfig` of the base model.
        data_uri: manifest of the prepared data.
        sft_uri, grpo_uri: manifests of the stages; empty where the pipeline has none.
        report_path: also write the HTML report to this file.
        log_metric: also tell this function every metric.

    Returns:
        URI of the evaluation's manifest (`results.read_stage`).

    Raises:
        ConfigError: a mistake in a section.
        UserError: nothing to evaluate, or a machine that fails every item.
        StorageError: the store or something in it is not as expected."""
    end_with_owner()
    context = RunContext.load(run_json, "run")
    limit_threads(context.launch)
    config = EvaluationConfig.load(config_json, "evaluation")
    model = ModelConfig.load(model_json, "model")
    storage = Storage(context.storage)
    data = Manifest.read(storage, data_uri)
    inputs = {"data": data_uri} | {name: uri for name, uri in (("sft", sft_uri), ("grpo", grpo_uri)) if uri}
    trained = {name: Manifest.read(storage, uri) for name, uri in inputs.items() if name != "data"}
    try:
        check_evaluated(config.gate, models=["base", *trained])
    except ValueError as error:
        raise UserError(str(error)) from None
    identity = fingerprint(
        "evaluate",
        config.model_dump(mode="json", exclude={"gate"}),  # another gate judges the same numbers
        model,
        data.fingerprint,
        {name: manifest.fingerprint for name, manifest in trained.items()},
        context.redo.get("evaluate", 0),
        __version__,
        GRADER_VERSION,
    )
    prefix = stage_prefix(context, "evaluate", identity)
    manifest = Manifest.find(storage, prefix)
    if manifest is not None:
        print(f"evaluate: reused {prefix}")
    else:
        with ExitStack() as stack:
            scratch = context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-"))
            stage = _Stage(context, config, model, storage, data, trained, Path(scratch))
            manifest = stage.carry_out(prefix, identity, inputs)
    if report_path is not None:
        Path(report_path).parent.mkdir(parents=True, exist_ok=True)
        Path(report_path).write_bytes(storage.read_bytes(manifest.files["report"]))
    if log_metric is not None:
        for name, value in manifest.metrics.items():
            log_metric(name, value)
    return manifest.manifest_uri


def _held_out(prepared: PreparedSet, config: EvaluationConfig) -> tuple[QuestionSet, Callable[[str], Clip]]:
    """The questions of the split that are asked, and what gives the prepared clip of each by its id."""
    split = prepared.split(config.split)
    samples: Sequence[Sample] = split.samples
    if not samples:
        raise UserError(f"split '{config.split}' is empty; name another (evaluation.split)")
    index = {samples[place].id: place for place in choose_items(samples, config.max_items, config.seed)}
    about: dict[str, Any] = {"title": f"split “{config.split}”", "asks": "", "source": "the prepared data"}
    benchmark = Benchmark(name=HELD_OUT, scores={"accuracy": ACCURACY}, **about)
    questions = QuestionSet(benchmark, [samples[place] for place in index.values()], {}, {})
    return questions, lambda item_id: split[index[item_id]].clip


def _media(clip: Callable[[str], Clip], samples: Iterable[Sample]) -> Iterator[Clip | Exception]:
    for sample in samples:
        try:
            yield clip(sample.id)
        except Exception as error:
            yield error


@dataclass(frozen=True, slots=True)
class _Stage:
    context: RunContext
    config: EvaluationConfig
    model: ModelConfig
    storage: Storage
    data: Manifest
    trained: Mapping[str, Manifest]
    work_dir: Path

    def carry_out(self, prefix: str, identity: str, inputs: dict[str, str]) -> Manifest:
        """Measure, summarize, report and record."""
        from ..common.model.load import best_device, pick_dtype
        from ..common.model.store import ensure_base_model, fetch_model
        from ..common.rows.prepared import PreparedSet
        from ..common.tracking.run import Tracker
        from .report.pages import benchmark_page, evaluation_page

        started = time.monotonic()
        config, storage, prompt = self.config, self.storage, get_template(self.model.prompt).name
        settings = config.model_dump(mode="json")
        with Tracker.start(self.context, "evaluate", identity, settings, inputs) as tracker:
            prepared = PreparedSet.open(storage, self.data.manifest_uri, self.work_dir / "data")
            questions, clip = _held_out(prepared, config)
            samples, media = questions.samples, partial(_media, clip)
            conditions, left_out = which_conditions(config.condition_names, samples)
            left_out |= left_out_metrics(samples)
            typical = mean_span(prepared.split("train").samples) if "train" in prepared.split_names else None
            if typical is None and any(sample.evidence for sample in samples):
                left_out["mean_training_span"] = "the data have no split 'train' with evidence"
            base = ensure_base_model(storage, self.model, prepared.video)
            about = ModelIdentity(kind="s3", uri=base, fingerprint=base.rstrip("/").rsplit("/", 1)[-1], prompt=prompt)
            models = {"base": about}
            for name, trained in self.trained.items():
                changed = {"uri": trained.files["model"], "fingerprint": trained.fingerprint}
                models[name] = about.model_copy(update=changed)
            on_split, on_benchmarks = [], []
            for name, about in models.items():
                model = LocalModel(partial(fetch_model, storage, about.uri, self.work_dir), self.model, config, about)
                on_split.append(self._measure_split(name, model, (questions, media), conditions, prepared.video))
                on_benchmarks += [self._measure_benchmark(name, model, *where) for where in config.benchmarks.items()]
                model.release()
            durations_s: dict[str, float] = {}
            for item in (item for result in on_split for item in result.items[ORDERED]):  # of models that were shown it
                durations_s[item.id] = max(durations_s.get(item.id, 0.0), item.duration_s)
            baselines = baseline_items(samples, durations_s, typical)
            items = [item for one in on_split for cell in one.items.values() for item in cell]
            lines = b"".join(item.to_line() for item in items)
            result = EvaluationResult(
                models={
                    one.model: EvaluatedModel(
                        uri=models[one.model].uri,
                        fingerprint=models[one.model].fingerprint,
                        **one.result.conditions,
                        **{
                            other.key: {n: cell.with_scores_as_metrics() for n, cell in other.result.conditions.items()}
                            for other in on_benchmarks
                            if other.model == one.model
                        },
                    )
                    for one in on_split
                },
                baselines={name: {ORDERED: summarize(cell, {}, config.resampling)} for name, cell in baselines.items()},
                comparisons=tuple(comparisons(on_split, config.resampling, held_out=True)),
                candidate=on_split[-1].model,
                failed=tuple(failed for one in on_split for failed in failed_items(one.items)),
                split=config.split,
                items=len(samples),
                videos=len({video_of(sample) for sample in samples}),
                left_out=left_out,
                data=DataReference(uri=self.data.manifest_uri, fingerprint=self.data.fingerprint),
                prompt=prompt,
                settings={name: value for name, value in settings.items() if name != "gate"},
                grader=GRADER_VERSION,
                items_sha256=hashlib.sha256(lines).hexdigest(),
            )
            html = evaluation_page(result, on_split, on_benchmarks, clip, config)
            files = stage_files(prefix, on_benchmarks)
            pair = (on_split[0], on_split[-1])
            opening = [in_one_sentence(*pair, config.resampling)] if len(on_split) > 1 else []
            opening += filter(None, [grounding_sentence(pair[1], config.resampling)])
            for sentence in opening:
                print(f"evaluate: {sentence}", flush=True)
            if opening:  # else the run keeps the description that it has
                tracker.set_tags({"mlflow.note.content": "\n\n".join(opening)})
            if on_benchmarks:
                page = benchmark_page(on_benchmarks, config)
                storage.write_bytes(files["benchmarks"], page.encode())
                tracker.log_html("benchmark_report", page)
            storage.write_bytes(files["items"], lines)
            storage.write_bytes(files["report"], html.encode())
            storage.write_bytes(files["result"], result.model_dump_json(by_alias=True).encode())
            metrics = flat_metrics(result)
            for one in on_benchmarks:
                metrics[f"evaluation/{one.model}/{one.key}/{one.headline}"] = one.ordered.scores[one.headline].value
            seconds = round(time.monotonic() - started, 3)
            tracker.log_metrics(metrics | {"time/evaluate_s": seconds})
            tracker.log_table("evaluation", result_table(result))
            tracker.log_table("evaluation_items", items_table(items))
            tracker.log_html("evaluation_report", html)
            tracker.log_traces(item_traces(on_split[-1].items[ORDERED], config.report_items, config.seed))
            counts = {"items": result.items, "videos": result.videos}
            manifest = Manifest(
                stage="evaluate",
                fingerprint=identity,
                uri=prefix,
                inputs=inputs | {"base": base},
                counts=counts | {"asked": len(items), "failed": len(result.failed)},
                metrics=metrics,
                files=files,
                config=settings,
                details={
                    "candidate": result.candidate,
                    "data_fingerprint": self.data.fingerprint,
                    "dtype": str(pick_dtype(self.model.dtype, best_device())).removeprefix("torch."),
                },
                mlflow_run_id=tracker.run_id,
                seconds=seconds,
            )
            manifest.write(storage)
            return manifest

    def _measure_split(
        self,
        name: str,
        model: LocalModel,
        data: tuple[QuestionSet, Media],
        conditions: Sequence[str],
        video: VideoConfig,
    ) -> BenchmarkResult:
        questions, media = data
        began = time.monotonic()
        with Journal(StoreLog(self.storage, self._answers_prefix(model.about))) as journal:
            items = measure(questions, media, model, journal, conditions, self.config, name)
        for condition, cell in items.items():
            print(f"evaluate: {name}, {condition}: {sum(i.correct for i in cell)} of {len(cell)} right", flush=True)
        print(f"evaluate: {name}: {time.monotonic() - began:.1f} s", flush=True)
        settings = settings_of(questions, model, video, self.config)
        return BenchmarkResult(name, "", conclude(questions, items, settings, self.config), items)

    def _measure_benchmark(self, name: str, model: LocalModel, benchmark: str, data: str) -> BenchmarkResult:
        """A model on a public benchmark; what was measured before is read again."""
        storage, config = self.storage, self.config
        answers = fingerprint("benchmark", benchmark, data, self._answers_prefix(model.about))
        prefix = join(storage.config.root_uri, "evaluate", "benchmarks", answers + "/")
        result_uri, items_uri = (join(prefix, file) for file in ("result.json", "items.jsonl"))
        measured = storage.exists(result_uri)  # which is written last
        if not measured or read_result(storage.read_bytes(result_uri), result_uri).settings.grader != GRADER_VERSION:
            questions, source = open_questions(benchmark, data, config, storage, self.work_dir)
            media = folder_media(source, model.video, config.decode_workers)
            with Journal(StoreLog(storage, join(prefix, "answers/"))) as journal:
                cells: Mapping[str, Sequence[Item]] = measure(questions, media, model, journal, [ORDERED], config)
            settings = settings_of(questions, model, model.video, config)
            lines = b"".join(item.to_line() for cell in cells.values() for item in cell)
            seal = hashlib.sha256(lines).hexdigest()
            result = conclude(questions, cells, settings, config, data=data, items_sha256=seal)
            storage.write_bytes(items_uri, lines)
            storage.write_bytes(result_uri, result.model_dump_json(by_alias=True).encode())
        one = parse_benchmark(storage.read_bytes(result_uri), storage.read_bytes(items_uri), prefix, name)
        score = one.ordered.scores[one.headline].value
        print(f"evaluate: {name}, {benchmark}: {one.headline} {score:.4f}", flush=True)
        return one

    def _answers_prefix(self, about: ModelIdentity) -> str:
        """Where the answers of one model are kept: named by all that determines them, whatever the condition."""
        settings = ("split", "max_new_tokens", "temperature", "top_p", "seed", "max_items")
        identity = fingerprint(
            "answers",
            [about.uri, about.fingerprint],
            {name: getattr(self.config, name) for name in settings},
            [self.model.prompt, self.model.dtype, self.model.attention],
            self.data.fingerprint,
            self.context.redo.get("evaluate", 0),
            __version__,
        )
        return join(self.context.storage.root_uri, "evaluate", "answers", identity + "/")
