"""Callbacks that SFT and GRPO share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback

from ..tracking.run import Tracker
from .checkpoints import CheckpointStore


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint the trainer has written and sends it to the store."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called on every rank after the checkpoint's files are written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part of the optimiser and its random state
        if int(os.environ.get("LOCAL_RANK", "0")) != 0:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        self.store.seal(checkpoint)
        if state.is_world_process_zero:
            self.store.prune([path.name for path in Path(args.output_dir).iterdir()])
        elif args.save_total_limit:
            # The trainer removes old checkpoints on the first node only; the disks of the others would fill up.
            best = Path(state.best_model_checkpoint or "").name
            self.store.rotate(args.save_total_limit, {best, checkpoint.name})
        self.store.upload(checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave no upload behind."""
        self.store.wait()


class StopOnSignal(TrainerCallback):
    """SIGTERM (a spot node about to be taken, a pod evicted): a checkpoint, safely stored, and then the end."""

    EXIT_CODE = 143
    """What a process that SIGTERM ended is expected to return; whoever started it starts it again, and it resumes."""

    def __init__(self, store: CheckpointStore, every_steps: int = 1) -> None:
        """Args: ``every_steps``: a checkpoint may only be made after a multiple of so many steps."""
        self.store, self.every_steps = store, every_steps
        self.asked = self.stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ranks stop together, at the same step, however many of them were asked."""
        asked = torch.tensor(float(self.asked), device=args.device)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        if asked > 0 and state.global_step % self.every_steps == 0 and state.global_step < state.max_steps:
            self.stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint is sealed (this callback comes after the one that does it): see it stored, and leave."""
        if not self.stopping:
            return
        self.store.wait()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        print(f"asked to stop: checkpoint {state.global_step} is stored; the next start goes on from it", flush=True)
        raise SystemExit(self.EXIT_CODE)


class ProgressCallback(TrainerCallback):
    """Sends metrics to MLflow under the project's fixed names and prints a line for a person."""

    NAMES: ClassVar[dict[str, str]] = {
        "loss": "loss",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "mean_token_accuracy": "token_accuracy",
        "entropy": "entropy",
        "kl": "kl",
    }

    def __init__(self, stage: str, tracker: Tracker | None) -> None:
        """Args: ``tracker``: None on every rank but the first."""
        self.stage, self.tracker = stage, tracker
        self.started, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Translate the trainer's names, track, print."""
        if self.tracker is None or not logs or "train_runtime" in logs:
            return
        metrics: dict[str, float] = {}
        for name, value in logs.items():
            if not isinstance(value, int | float):
                continue
            if name.startswith("eval_"):
                metrics[f"validation/{name.removeprefix('eval_')}"] = value
            elif name in self.NAMES:
                metrics[f"{self.stage}/{self.NAMES[name]}"] = value
            elif name.startswith(("grpo/", "time/")):
                metrics[name] = value
        self.tracker.log_metrics(metrics, step=state.global_step)
        done = state.global_step - self.first_step
        pace = (time.monotonic() - self.started) / done if done else 0.0
        left = pace * (state.max_steps - state.global_step)
        shown = " · ".join(
            f"{name.removeprefix(self.stage + '/').removeprefix('grpo/')} {value:.3g}"
            for name, value in metrics.items()
            if not name.endswith(("learning_rate", "grad_norm")) and not name.startswith("time/")
        )
        print(f"{self.stage} {state.global_step}/{state.max_steps} · {shown} · {pace:.2f} s/step · {left:.0f} s left")
        sys.stdout.flush()
