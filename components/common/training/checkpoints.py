"""Checkpoints of a training job: a local folder, mirrored to a prefix in the store."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..storage.names import join
from ..storage.s3 import Storage

_BASE_MODEL_WAIT_S = 3600.0
"""How long other ranks wait for the first to bring the base model into the store: a hub's 7B takes minutes."""


SEAL = "sealed.json"


class CheckpointStore:
    """The checkpoints of one training job: a local folder, mirrored to a prefix in the store."""

    def __init__(self, storage: Storage, prefix_uri: str, folder: Path) -> None:
        """Args: ``prefix_uri``: where checkpoints go in the store; ``folder``: the trainer's output folder."""
        self.storage, self.prefix_uri, self.folder = storage, prefix_uri, folder
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-upload")
        self._pending: list[Future[None]] = []

    @staticmethod
    def step_of(path: Path | str) -> int | None:
        """The step in a checkpoint's name, or None for anything else."""
        match = re.fullmatch(r"checkpoint-(\d+)", Path(str(path).rstrip("/")).name)
        return int(match.group(1)) if match else None

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

    def upload(self, checkpoint: Path) -> None:
        """Copy a sealed checkpoint to the store in the background. Training does not wait; `wait` does.

        Of several nodes each sends what its processes wrote, to a folder of its own; the checkpoint counts when all
        have arrived.
        """
        node, nodes = node_rank()
        name = checkpoint.name if nodes == 1 else f"{checkpoint.name}/node-{node}-of-{nodes}"
        uri = join(self.prefix_uri, name) + "/"

        def copy() -> None:
            self.storage.upload_dir(checkpoint, uri)

        self._pending.append(self._uploads.submit(copy))

    def wait(self) -> None:
        """Wait for the uploads; an upload's error is raised here."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def prune(self, keep: Sequence[str]) -> None:
        """Delete checkpoints from the store whose names are not in ``keep`` (the trainer prunes the local folder)."""
        self.wait()
        for name in {
            item.uri.removeprefix(self.prefix_uri).split("/")[0] for item in self.storage.list(self.prefix_uri)
        }:
            if self.step_of(name) is not None and name not in keep:
                self.storage.delete_prefix(join(self.prefix_uri, name) + "/")

    def rotate(self, limit: int, keep: set[str]) -> None:
        """Delete local checkpoints that have been sent: all but the newest ``limit`` and those named in ``keep``."""
        self.wait()
        found = sorted((step, path) for path in self.folder.iterdir() if (step := self.step_of(path)) is not None)
        for _, path in found[:-limit]:
            if path.name not in keep:
                shutil.rmtree(path)

    def _stored(self) -> dict[int, list[str]]:
        """Whole checkpoints in the store: step → the prefixes of their parts, one per node that wrote them."""
        names = {item.uri.removeprefix(self.prefix_uri).split("/")[0] for item in self.storage.list(self.prefix_uri)}
        found: dict[int, list[str]] = {}
        for name in names:
            step, uri = self.step_of(name), join(self.prefix_uri, name) + "/"
            if step is None:
                continue
            if self.storage.is_complete(uri):
                found[step] = [uri]
                continue
            folders = {item.uri.removeprefix(uri).split("/")[0] for item in self.storage.list(uri)}
            for nodes in {int(match[2]) for f in folders if (match := re.fullmatch(r"node-(\d+)-of-(\d+)", f))}:
                parts = [join(uri, f"node-{node}-of-{nodes}") + "/" for node in range(nodes)]
                if all(self.storage.is_complete(part) for part in parts):
                    found[step] = parts
        return found

    def newest(self) -> Path | None:
        """The newest whole checkpoint, fetched from the store if it is only there. Torn ones are removed.

        Called by every process: the first of the run chooses, the first of each node fetches. Where there are several
        nodes, a folder on one of them is not the whole checkpoint: then only what is in the store counts.
        """
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        alone = node_rank()[1] == 1
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen: list[tuple[int, list[str]] | None] = [None]
        if rank == 0:
            steps: dict[int, list[str]] = {}
            for path in self.folder.iterdir():
                step = self.step_of(path)
                if step is None:
                    continue
                if alone and self.is_sealed(path):
                    steps[step] = []
                else:
                    shutil.rmtree(path)
            for step, parts in self._stored().items():
                steps.setdefault(step, parts)
            if steps:
                chosen = [(max(steps), steps[max(steps)])]
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return None
        step, parts = chosen[0]
        found = self.folder / f"checkpoint-{step}"
        if parts and local_rank == 0:
            shutil.rmtree(found, ignore_errors=True)
            for part in parts:
                self.storage.download_dir(part, found)
            self._bring_best(found)
            self.seal(found)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.barrier()
        return found

    def complete(self, checkpoint: Path) -> None:
        """Fetch what other nodes wrote of a checkpoint of this training; every process calls it."""
        self.wait()
        if node_rank()[1] == 1:
            return
        torch.distributed.barrier()  # every node has sent its part
        step = self.step_of(checkpoint)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 and step is not None:
            for part in self._stored().get(step, []):
                self.storage.download_dir(part, checkpoint)
        torch.distributed.barrier()

    def _bring_best(self, checkpoint: Path) -> None:
        """Fetch the best checkpoint so far too, which a fetched one may name, and name it where it is here."""
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if not state.get("best_model_checkpoint"):
            return
        best = self.folder / Path(state["best_model_checkpoint"]).name
        step = self.step_of(best)
        if step is not None and best != checkpoint and not self.is_sealed(best):
            for part in self._stored().get(step, []):
                self.storage.download_dir(part, best)
            self.seal(best)
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2))


def node_rank() -> tuple[int, int]:
    """(which, of how many) nodes this process is on, as torchrun says."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(os.environ.get("RANK", "0")) // per_node, -(-int(os.environ.get("WORLD_SIZE", "1")) // per_node)
