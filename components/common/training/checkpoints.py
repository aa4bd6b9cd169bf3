"""Checkpoints of a training: a local folder, mirrored to a prefix in the store."""

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from ..storage.names import SEAL
from ..storage.s3 import Storage
from .processes import barrier, in_group, local_rank, node_rank, rank

_SENDING = "sending"  # below the checkpoints' folder: hard links to what is on its way to the store
STOPPED_EXIT_CODE = 143  # expected of a process that SIGTERM ended; whoever started it starts it again, and it resumes


class CheckpointStore:
    """The checkpoints of one training job."""

    def __init__(self, storage: Storage, prefix_uri: str, folder: Path) -> None:
        """Args: ``prefix_uri``: where checkpoints go, ending in ``/``; ``folder``: the trainer's output folder."""
        self.storage, self.prefix_uri, self.folder = storage, prefix_uri, folder
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-upload")
        self._pending: list[Future[Any]] = []

    @staticmethod
    def is_sealed(checkpoint: Path) -> bool:
        """Whether every file that the seal lists is there in full."""
        try:
            files: dict[str, int] = json.loads((checkpoint / SEAL).read_text())
            return all((checkpoint / name).stat().st_size == size for name, size in files.items())
        except (OSError, json.JSONDecodeError, AttributeError):
            return False

    def seal(self, checkpoint: Path) -> None:
        """Declare a checkpoint whole. The list of files appears at once, by a rename."""
        files = {str(p.relative_to(checkpoint)): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
        files.pop(SEAL, None)
        temporary = checkpoint / f"{SEAL}.tmp"
        temporary.write_text(json.dumps(files, sort_keys=True))
        temporary.rename(checkpoint / SEAL)

    def upload(self, checkpoint: Path, keep: Collection[str] | None = None) -> None:
        """Copy a sealed checkpoint to the store in the background; `wait` waits for it.

        Of several nodes each sends what its processes wrote, to a folder of its own; it counts when all have arrived.
        The trainer may delete the folder meanwhile: what is sent are hard links to its files.

        Args: ``keep``: once it has arrived, checkpoints of other names are deleted from the store; None: none are."""
        node, nodes = node_rank()
        uri = f"{self.prefix_uri}{checkpoint.name}/" + (f"node-{node}-of-{nodes}/" if nodes > 1 else "")
        held = self.folder / _SENDING / checkpoint.name
        shutil.copytree(checkpoint, held, copy_function=os.link)
        self._pending.append(self._uploads.submit(self._send, held, uri, keep))

    def _send(self, held: Path, uri: str, keep: Collection[str] | None) -> None:
        try:
            self.storage.upload_dir(held, uri)
        finally:
            shutil.rmtree(held)
        if keep is not None:
            self.prune(keep)

    def wait(self, but: int = 0) -> None:
        """Wait for the uploads until so many are left; an upload's error is raised here."""
        while len(self._pending) > but or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()

    def prune(self, keep: Collection[str]) -> None:
        """Delete checkpoints from the store whose names are not in ``keep`` (the trainer prunes the local folder)."""
        for name in {f"checkpoint-{step}" for step, _ in self._parts()} - set(keep):
            self.storage.delete_prefix(f"{self.prefix_uri}{name}/")

    def _parts(self) -> set[tuple[int, int]]:
        """Checkpoints of which something is in the store: the step, and on how many nodes (0: it lies there whole)."""
        names = [item.uri.removeprefix(self.prefix_uri) for item in self.storage.list(self.prefix_uri)]
        matches = [re.match(r"checkpoint-(\d+)/(?:node-\d+-of-(\d+)/)?", name) for name in names]
        return {(int(match[1]), int(match[2] or 0)) for match in matches if match}

    def _stored(self) -> dict[int, list[str]]:
        """Whole checkpoints in the store: step → the prefixes of their parts, one per node that wrote them."""
        stored = {}
        for step, nodes in self._parts():
            uri = f"{self.prefix_uri}checkpoint-{step}/"
            parts = [f"{uri}node-{node}-of-{nodes}/" for node in range(nodes)] or [uri]
            if all(map(self.storage.is_complete, parts)):
                stored[step] = parts
        return stored

    def _fetch(self, checkpoint: Path) -> None:
        for part in self._stored()[int(checkpoint.name.removeprefix("checkpoint-"))]:
            self.storage.download_dir(part, checkpoint)

    def newest(self) -> Path | None:
        """The newest whole checkpoint, fetched from the store if it is only there. Torn ones are removed. Called by
        every process: the first of the run chooses, the first of each node fetches. Where there are several nodes, a
        folder on one of them is not the whole checkpoint: then only what is in the store counts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        newest: list[int | None] = [None]
        if rank() == 0:
            steps = set(self._stored())
            for path in self.folder.iterdir():
                if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
                    if self._is_whole(path):
                        steps.add(int(match[1]))
                    else:
                        shutil.rmtree(path)
            newest = [max(steps, default=None)]
        if in_group():
            torch.distributed.broadcast_object_list(newest, src=0)
        if local_rank() == 0:
            shutil.rmtree(self.folder / _SENDING, ignore_errors=True)  # a process before this one was killed
        if newest[0] is None:
            return None
        checkpoint = self.folder / f"checkpoint-{newest[0]}"
        if local_rank() == 0 and not self._is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
            self._fetch(checkpoint)
            self._fetch_best(checkpoint)
            self.seal(checkpoint)
        barrier()
        return checkpoint

    def _is_whole(self, checkpoint: Path) -> bool:
        return node_rank()[1] == 1 and self.is_sealed(checkpoint)

    def _fetch_best(self, checkpoint: Path) -> None:
        """Fetch the best checkpoint so far too, which a fetched one may name, and name it where it is here."""
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if not state.get("best_model_checkpoint"):
            return
        best = self.folder / Path(state["best_model_checkpoint"]).name
        if best != checkpoint and not self.is_sealed(best):
            self._fetch(best)
            self.seal(best)
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2))


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint the trainer has written and sends it to the store. SIGTERM (a spot node about to be taken,
    a pod evicted): a checkpoint, safely stored, and then the end."""

    def __init__(self, store: CheckpointStore, stop_every_steps: int | None = None) -> None:
        """Args: ``stop_every_steps``: SIGTERM ends after a multiple of so many steps; None: it is not listened to."""
        self.store, self.stop_every_steps = store, stop_every_steps
        self.requested = self.stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        if self.stop_every_steps and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ranks stop together, at the same step, however many of them got the signal."""
        if not self.stop_every_steps:
            return
        requested = torch.tensor(float(self.requested), device=args.device)
        if in_group():
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
        if requested > 0 and state.global_step % self.stop_every_steps == 0 and state.global_step < state.max_steps:
            self.stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called on every rank after the checkpoint's files are written."""
        barrier()  # every rank has written its part of the optimiser and its random state
        if local_rank() == 0:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.store.seal(checkpoint)
            # The other ranks wait in the next collective, and not for ever (NCCL's timeout): as a rule nothing is
            # waited for. Where the store is slower than checkpoints are made, the disk would fill up.
            self.store.wait(but=1)
            names = [path.name for path in Path(args.output_dir).iterdir()]
            if not state.is_world_process_zero:
                # The trainer removes old checkpoints on the first node only; the disks of the others would fill up.
                best = state.best_model_checkpoint and checkpoint.with_name(Path(state.best_model_checkpoint).name)
                rotate_checkpoints(args.output_dir, args.save_total_limit, best)
            self.store.upload(checkpoint, names if state.is_world_process_zero else None)
        if self.stopping:
            self.store.wait()
            barrier()
            step = state.global_step
            print(f"asked to stop: checkpoint {step} is stored; the next start goes on from it", flush=True)
            raise SystemExit(STOPPED_EXIT_CODE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave no upload behind."""
        self.store.wait()
