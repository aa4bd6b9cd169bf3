"""Base, SFT and GRPO side by side on the held-out split: ask, grade, estimate, report.

Every model is asked every question with ordered frames, and every question about a video again with its
frames in random order and, as a control, with the pixels of another video. Grades are computed from the
answers at the end.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ... import __version__
from ..common.config import ModelConfig, RunContext
from ..common.launch import die_with_owner, git_commit
from ..common.prompts import get_template
from ..common.samples import Sample
from ..common.storage import Manifest, Storage, fingerprint, join, stage_prefix
from .asking import (
    Completion,
    EvaluationError,
    Items,
    Journal,
    Predict,
    ask,
    choose_items,
    conditions,
    seed_of,
    video_of,
)
from .config import EvaluationConfig
from .expressions import FRAMES, check_asked, parse
from .measures import (
    Rows,
    baseline_items,
    conclude,
    flat_metrics,
    grade_answer,
    items_table,
    mean_span,
    result_table,
)

if TYPE_CHECKING:
    from ..common.video import Clip

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
    asked = [name for name, on in zip(FRAMES, (True, config.shuffled, config.other_video_control), strict=True) if on]
    for rule in config.gate:
        check_asked(parse(rule), ["base", *trained], asked)
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
        from .report_page import report_page

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
                "left_out": {frames: why for frames, why in left_out.items() if why},
                "data": {"uri": self.data.manifest_uri, "fingerprint": self.data.fingerprint},
                "prompt": self.model.prompt,
                "settings": config.model_dump(mode="json", exclude={"gate"}),
            }
            html = report_page(result, rows, split, indices, config)
            files = {"result": "result.json", "items": "items.jsonl", "report": "report.html"}
            files = {name: join(prefix, file) for name, file in files.items()}
            items = "".join(json.dumps(row, ensure_ascii=False) + "\n" for cell in rows.values() for row in cell)
            storage.write_bytes(files["items"], items.encode())
            storage.write_bytes(files["report"], html.encode())
            storage.write_json(files["result"], result)
            metrics = flat_metrics(result)
            seconds = round(time.monotonic() - started, 3)
            tracker.log_metrics(metrics | {"time/evaluate_s": seconds})
            tracker.log_table("evaluation", result_table(result))
            tracker.log_table("evaluation_items", items_table(rows))
            tracker.log_html("evaluation_report", html)
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
                loaded = _Loaded(self.storage, about["uri"], self.model, self.config, self.work_dir)
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


class _Loaded:
    """A model that is fetched and loaded when it is first asked."""

    def __init__(
        self, storage: Storage, uri: str, model: ModelConfig, config: EvaluationConfig, work_dir: Path
    ) -> None:
        self._where = (storage, uri, work_dir)
        self._model = model
        self._config = config
        self._predict: Predict | None = None

    def predict(self) -> Predict:
        if self._predict is None:
            from ..common.models import fetch_model, load_model

            folder = fetch_model(*self._where)
            loaded = load_model(folder, dtype=self._model.dtype, attention=self._model.attention)
            self._predict = predictor(loaded, self._config)
        return self._predict

    def release(self) -> None:
        """Free the weights before the next model comes."""
        if self._predict is not None:
            import torch

            self._predict = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def predictor(model: Any, config: EvaluationConfig) -> Predict:
    """Ask a `LoadedModel`, through the engine that rollouts and the server use."""
    from ..common.generation import Sampling, sample

    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )

    def predict(samples: Sequence[Sample], clips: Sequence[Clip]) -> Sequence[Completion]:
        prompts = [
            model.encoder.encode(row.question, row.options, row.problem_type, clip)
            for row, clip in zip(samples, clips, strict=True)
        ]
        # With a temperature, a completion depends on its sample, not on its neighbours.
        keys = [seed_of("sampling", row.id) % 2**31 for row in samples]
        completions = sample(model.model, model.encoder, prompts, sampling, batch_size=config.batch_size, keys=keys)
        return [group[0] for group in completions]

    return predict
