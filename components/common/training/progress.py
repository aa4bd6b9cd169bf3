"""What a training logs: to MLflow under the project's names, and as a line for a person."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from ..tracking.run import Tracker

RENAMED = {"mean_token_accuracy": "token_accuracy"}
"""Metrics of the trainers that we document under another name; every other one keeps its own."""

_ENDINGS_NOT_PRINTED = ("learning_rate", "grad_norm", "epoch", "num_tokens", "step_time")


def metric_names(stage: str, logs: Mapping[str, Any]) -> dict[str, float]:
    """What the trainer logged, by name in MLflow; what is not a number (TRL's None for "no value") has none.

    ``validation/…`` for the validation split, ``time/…`` for seconds, ``<stage>/…`` for everything else.
    """
    metrics: dict[str, float] = {}
    for name, value in logs.items():
        if not isinstance(value, int | float):
            continue
        if name.startswith("eval_"):
            name = f"validation/{name.removeprefix('eval_')}"
        elif not name.startswith((f"{stage}/", "time/")):
            name = f"{stage}/{RENAMED.get(name, name)}"
        metrics[name] = value
    return metrics


class ProgressCallback(TrainerCallback):
    """Sends everything that the trainer logs to MLflow, and prints a line."""

    def __init__(self, stage: str, tracker: Tracker | None) -> None:
        """Args: ``tracker``: None on every rank but the first."""
        self.stage, self.tracker = stage, tracker
        self.started, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Track, and print where training stands."""
        if self.tracker is None or not logs:
            return
        metrics = metric_names(self.stage, logs)
        self.tracker.log_metrics(metrics, step=state.global_step)
        if "train_runtime" in logs:  # the trainer's summary at the end
            return
        done = state.global_step - self.first_step
        pace = (time.monotonic() - self.started) / done if done else 0.0
        left = pace * (state.max_steps - state.global_step)
        shown = " · ".join(
            f"{name.removeprefix(self.stage + '/')} {value:.3g}"
            for name, value in metrics.items()
            if not name.endswith(_ENDINGS_NOT_PRINTED) and not name.startswith(("time/", f"{self.stage}/clip_ratio"))
        )
        print(f"{self.stage} {state.global_step}/{state.max_steps} · {shown} · {pace:.2f} s/step · {left:.0f} s left")
        sys.stdout.flush()
