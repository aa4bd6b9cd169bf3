"""Checkpoints on their way to the store, and a training that is asked to stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .checkpoints import CheckpointStore
from .processes import barrier, in_group, local_rank


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint the trainer has written and sends it to the store."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called on every rank after the checkpoint's files are written."""
        barrier()  # every rank has written its part of the optimiser and its random state
        if local_rank() != 0:
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
        self.requested = self.stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ranks stop together, at the same step, however many of them got the signal."""
        requested = torch.tensor(float(self.requested), device=args.device)
        if in_group():
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
        if requested > 0 and state.global_step % self.every_steps == 0 and state.global_step < state.max_steps:
            self.stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint is sealed (this callback comes after the one that does it): see it stored, and leave."""
        if not self.stopping:
            return
        self.store.wait()
        barrier()
        print(f"asked to stop: checkpoint {state.global_step} is stored; the next start goes on from it", flush=True)
        raise SystemExit(self.EXIT_CODE)
