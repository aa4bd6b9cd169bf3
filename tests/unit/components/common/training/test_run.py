"""Names of metrics in MLflow, and the line for a person."""

from types import SimpleNamespace
from typing import Any

import pytest
from vthink.components.common.training.run import ProgressCallback, metric_names


def test_everything_that_a_trainer_logs_arrives_under_the_stages_name() -> None:
    logged = {
        "loss": 0.5,
        "clip_ratio/high_mean": 0.01,  # TRL's
        "something/new": 3,  # of a version to come
        "mean_token_accuracy": 0.7,
        "grpo/reward/total": 1.5,
        "time/step_s": 2.0,
        "eval_accuracy": 0.9,
        "grpo/accuracy_shuffled": None,  # TRL's "no value in this step"
    }
    assert metric_names("grpo", logged) == {
        "grpo/loss": 0.5,
        "grpo/clip_ratio/high_mean": 0.01,
        "grpo/something/new": 3,
        "grpo/token_accuracy": 0.7,
        "grpo/reward/total": 1.5,
        "time/step_s": 2.0,
        "validation/accuracy": 0.9,
    }


def test_the_summary_at_the_end_is_tracked_and_a_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    recorded: list[tuple[dict[str, float], int]] = []
    tracker: Any = SimpleNamespace(log_metrics=lambda metrics, step: recorded.append((metrics, step)))
    callback = ProgressCallback("sft", tracker)
    state = SimpleNamespace(global_step=3, max_steps=10)
    callback.on_log(None, state, None, logs={"loss": 0.25, "step_time": 1.5, "learning_rate": 1e-6})
    callback.on_log(None, state, None, logs={"train_runtime": 9.0})
    assert recorded == [
        ({"sft/loss": 0.25, "sft/step_time": 1.5, "sft/learning_rate": 1e-6}, 3),
        ({"sft/train_runtime": 9.0}, 3),
    ]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("sft 3/10 · loss 0.25 · ")
