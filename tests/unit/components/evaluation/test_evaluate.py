"""The stage on real parts: generated mp4 files, a prepared set, a tiny Qwen2.5-VL, S3 and MLflow."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.model.store import ensure_base_model
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep.config import DataPrepConfig, SynthesizeConfig
from vthink.components.data_prep.merge import merge_data
from vthink.components.data_prep.plan import plan_data
from vthink.components.data_prep.shard import prepare_shard
from vthink.components.data_prep.world.synthesize import synthesize
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.evaluate import evaluate_models
from vthink.components.evaluation.gate import judge_candidate, read_gate
from vthink.components.evaluation.rules import GateRule

from .published import FORMATS

VIDEO = VideoConfig(min_pixels=3136, max_pixels=3136, num_frames=4)
MODEL = ModelConfig(prompt="compact/1")
CONFIG = EvaluationConfig(batch_size=4, max_new_tokens=12, bootstrap_resamples=200, report_items=4)


class Stage:
    """One prepared set and one trained model, and the stage over them."""

    def __init__(self, context: RunContext, num_train: int = 6, num_validation: int = 2) -> None:
        self.context = context
        self.storage = Storage(context.storage)
        synthesize = {"num_train": num_train, "num_validation": num_validation, "num_test": 14, "images": 0.2}
        synthesize["mix"] = {"direction": 2, "ocr": 1, "speed": 1, "describe": 1}
        texts = (context.to_json(), DataPrepConfig.load({"synthesize": synthesize}).to_json(), VIDEO.to_json())
        shards = plan_data(*texts)
        self.data = merge_data(*texts, [prepare_shard(*texts, shard) for shard in shards])
        # Another initialization stands for a trained model.
        trained = ensure_base_model(self.storage, MODEL.model_copy(update={"seed": 1}), VIDEO)
        prefix = context.storage.root_uri + "sft/other/"
        sft = Manifest(stage="sft", fingerprint="other", uri=prefix, files={"model": trained})
        self.sft = sft.write(self.storage)

    def run(self, config: EvaluationConfig = CONFIG, redo: int = 0, **arguments) -> Manifest:
        context = self.context.model_copy(update={"redo": {"evaluate": redo}})
        texts = (context.to_json(), config.to_json(), MODEL.to_json())
        return Manifest.read(self.storage, evaluate_models(*texts, self.data, self.sft, "", **arguments))

    def items(self, manifest: Manifest) -> list[dict]:
        return [json.loads(line) for line in self.storage.read_bytes(manifest.files["items"]).decode().splitlines()]


@pytest.fixture(scope="module")
def stage(s3: StorageConfig, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    return Stage(
        RunContext(
            run_id="evaluate",
            work_dir=str(folder / "work"),
            storage=s3.model_copy(update={"prefix": f"{folder.name}/"}),
            tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="test"),
        )
    )


@pytest.fixture(scope="module")
def evaluated(stage: Stage) -> Manifest:
    return stage.run()


def test_every_model_answers_every_item_under_every_condition(stage, evaluated):
    result = stage.storage.read_json(evaluated.files["result"])
    assert list(result["models"]) == ["base", "sft"]
    assert result["candidate"] == "sft"
    items = stage.items(evaluated)
    videos = {row["id"] for row in items if row["frames"] == "shuffled"}
    ids = {row["id"] for row in items}
    assert len(ids) == result["items"] == evaluated.counts["items"] >= 14
    assert 0 < len(videos) < len(ids)  # images have no order
    for model in ("base", "sft"):
        for frames, expected in (("ordered", ids), ("shuffled", videos), ("other_video", videos)):
            asked = [row["id"] for row in items if row["model"] == model and row["frames"] == frames]
            assert sorted(asked) == sorted(expected)
            assert result["models"][model][frames]["accuracy"]["n"] == len(expected)
    assert evaluated.counts["failed"] == 0
    assert evaluated.details["dtype"] == "float32"  # on a CPU
    assert evaluated.counts["asked"] == len(items)
    assert all(row["token_ids"] and len(row["token_ids"]) <= 12 for row in items)
    assert {"direction", "ocr"} <= set(result["models"]["sft"]["ordered"]["by_kind"])
    assert {"miou", "wer", "mra", "rouge"} <= set(result["models"]["sft"]["ordered"])
    assert set(result["baselines"]) == {"whole_clip", "mean_training_span"}


def test_data_without_a_train_split_are_evaluated_without_the_baseline_of_the_training_span(stage):
    prefix = {"prefix": f"{stage.context.storage.prefix}test-alone/"}
    context = stage.context.model_copy(update={"storage": stage.context.storage.model_copy(update=prefix)})
    alone = Stage(context, num_train=0, num_validation=0)
    manifest = alone.run(CONFIG.model_copy(update={"max_items": 8}))
    result = alone.storage.read_json(manifest.files["result"])
    assert set(result["baselines"]) == {"whole_clip"}
    assert result["left_out"]["mean_training_span"] == "the data have no split 'train' with evidence"


def test_the_models_differ_and_are_told_apart(stage, evaluated):
    said = {
        model: [
            row["response"] for row in stage.items(evaluated) if (row["model"], row["frames"]) == (model, "ordered")
        ]
        for model in ("base", "sft")
    }
    assert said["base"] != said["sft"]


def test_the_answers_are_those_of_the_engine_asked_directly(stage, evaluated, tmp_path):
    from vthink.components.common.model.generation import Sampling, sample
    from vthink.components.common.model.load import load_model
    from vthink.components.common.model.store import fetch_model
    from vthink.components.common.rows.prepared import PreparedSet

    prepared = PreparedSet.open(stage.storage, stage.data, tmp_path)
    model = load_model(fetch_model(stage.storage, evaluated.inputs["base"], tmp_path))
    split = prepared.split("test")
    prompts = [model.encoder.encode_sample(split[index]) for index in range(4)]
    completions = sample(model.model, model.encoder, prompts, Sampling(max_new_tokens=12))
    recorded = stage.items(evaluated)[:4]
    assert [row["id"] for row in recorded] == [split.samples[index].id for index in range(4)]
    assert [row["token_ids"] for row in recorded] == [group[0].token_ids for group in completions]


def test_metrics_table_and_report_are_in_mlflow(stage, evaluated):
    client = registry_client(stage.context.tracking, stage.context.storage)
    run = client.get_run(evaluated.mlflow_run_id)
    assert run.data.metrics["evaluation/sft/ordered/accuracy"] == evaluated.metrics["evaluation/sft/ordered/accuracy"]
    assert "evaluation/base/shuffled/accuracy/multiple_choice" in run.data.metrics
    artifacts = {item.path for item in client.list_artifacts(evaluated.mlflow_run_id)}
    assert {"evaluation.json", "evaluation_items.json", "evaluation_report.html"} <= artifacts
    assert run.info.status == "FINISHED"
    traces = client.search_traces(locations=[run.info.experiment_id], run_id=evaluated.mlflow_run_id)
    items = {row["id"]: row for row in stage.items(evaluated) if (row["model"], row["frames"]) == ("sft", "ordered")}
    assert len(traces) == CONFIG.report_items
    for trace in traces:
        span = trace.data.spans[0]
        assert span.outputs["response"] == items[span.name]["response"]
        assert span.inputs["question"] == items[span.name]["question"]
        assert trace.info.tags["vthink.outcome"] == ("right" if items[span.name]["correct"] else "wrong")


def test_a_finished_evaluation_is_reused_and_still_gives_kfp_its_artifacts(stage, evaluated, tmp_path):
    logged: dict[str, float] = {}
    again = stage.run(report_path=str(tmp_path / "kfp" / "report"), log_metric=logged.__setitem__)
    assert again == evaluated
    assert (tmp_path / "kfp" / "report").read_text().startswith("<!doctype html>")
    assert logged == evaluated.metrics


def test_another_gate_judges_the_same_numbers(stage, evaluated):
    gate = (GateRule(metric="accuracy", at_least=0.1),)
    assert stage.run(CONFIG.model_copy(update={"gate": gate})) == evaluated
    assert stage.run(CONFIG.model_copy(update={"max_items": 3})).fingerprint != evaluated.fingerprint


def test_other_statistics_ask_nothing_again(stage, evaluated, monkeypatch):
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vthink.components.common.model.load.load_model", load)
    other = stage.run(CONFIG.model_copy(update={"confidence": 0.8}))
    assert other.fingerprint != evaluated.fingerprint
    assert stage.items(other) == stage.items(evaluated)


def test_a_gate_about_a_model_that_will_not_be_measured_is_refused_before_anything_is_asked(stage):
    for model, reason in (("sft", "sft is the candidate itself"), ("grpo", "unknown model or condition 'grpo'")):
        with pytest.raises((UserError, ConfigError), match=reason):
            stage.run(EvaluationConfig.load({"gate": [{"metric": "accuracy", "above": model}]}))


def test_benchmarks_are_measured_once_for_every_model_and_gated(stage, tmp_path, monkeypatch):
    synthesize(SynthesizeConfig(num_train=0, num_validation=0, num_test=3), tmp_path / "world")
    videos = sorted((tmp_path / "world" / "videos").glob("*.mp4"))
    FORMATS["video-holmes"](random.Random(0), 9, 3).write(tmp_path / "holmes", videos)
    about = {"metric": "accuracy", "benchmark": "video-holmes"}
    rules = ({"by": 0.99, "not_worse_than": "base"}, {"at_most": 0.99}, {"not_worse_than": "champion", "by": 0.01})
    config = EvaluationConfig.load(
        CONFIG.model_dump()
        | {"benchmarks": {"video-holmes": str(tmp_path / "holmes")}, "gate": [about | rule for rule in rules]}
    )
    found = stage.run(config)
    result = stage.storage.read_json(found.files["result"])
    counts = {model: about["video_holmes"]["ordered"]["accuracy"]["n"] for model, about in result["models"].items()}
    assert counts == {"base": 9, "sft": 9}
    for page in ("report", "benchmarks"):
        assert "Video-Thinker-7B @16" in stage.storage.read_bytes(found.files[page]).decode()
    assert found.metrics["evaluation/sft/video_holmes/accuracy"] == pytest.approx(
        result["models"]["sft"]["video_holmes"]["ordered"]["accuracy"]["value"]
    )
    judge_candidate(stage.context.to_json(), config.to_json(), found.manifest_uri)
    lines = read_gate(stage.storage, stage.context, found.manifest_uri).details["lines"]
    assert "over 9 questions of 3 videos, no significant difference" in lines[0]
    assert "over 9 questions" in lines[1]
    assert "there is no champion yet" in lines[2]

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("vthink.components.common.model.load.load_model", load)
    again = stage.run(config.model_copy(update={"confidence": 0.8}))
    assert again.files["benchmarks/sft/video_holmes"] == found.files["benchmarks/sft/video_holmes"]


def test_a_benchmark_that_is_not_known_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigError, match=r"run.yaml: 'benchmarks': .*did you mean 'video-holmes'"):
        EvaluationConfig.load({"benchmarks": {"video-homes": "/data"}}, "run.yaml")


def test_a_split_that_is_not_there_is_named(stage):
    with pytest.raises(UserError, match="no split 'holdout'"):
        stage.run(CONFIG.model_copy(update={"split": "holdout"}))


def killed(stage: Stage, redo: int, when: Callable[[], bool], log: Path) -> None:
    """Run the stage in a process of its own and SIGKILL it as soon as ``when`` holds."""
    context = stage.context.model_copy(update={"redo": {"evaluate": redo}})
    arguments = [context.to_json(), CONFIG.to_json(), MODEL.to_json(), stage.data, stage.sft]
    code = (
        "import sys; from vthink.components.evaluation.evaluate import evaluate_models; evaluate_models(*sys.argv[1:])"
    )
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and not when():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, log.read_text()[-2000:]


@pytest.mark.slow
def test_a_killed_evaluation_resumes_asks_nothing_twice_and_ends_with_the_same_numbers(
    stage, evaluated, s3_folder, tmp_path
):
    answers = s3_folder / "vthink-test" / stage.context.storage.prefix / "evaluate" / "answers"

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in answers.rglob("*.jsonl")}

    before, rng = len(written()), random.Random(0)
    total = sum(1 for _ in written())
    for kill in range(3):
        kept = written()
        target = len(kept) + rng.randint(1, 4)
        killed(stage, 7, lambda target=target: len(written()) >= target, tmp_path / f"{kill}.log")
        assert kept.items() <= written().items()  # what was answered stays as it is
    kept = written()
    assert before < len(kept) < before + total
    resumed = stage.run(redo=7)
    assert kept.items() <= written().items()
    assert resumed.fingerprint != evaluated.fingerprint
    assert stage.items(resumed) == stage.items(evaluated)
    assert resumed.metrics == evaluated.metrics
