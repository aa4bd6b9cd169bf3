"""Checkpoints of a training job: a local folder, mirrored to a prefix in the store."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..storage.names import join
from ..storage.s3 import Storage
from .processes import barrier, in_group, local_rank, node_rank, rank

SEAL = "sealed.json"
"""A checkpoint's list of files, written last."""


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
        for name in self._children(self.prefix_uri):
            if self.step_of(name) is not None and name not in keep:
                self.storage.delete_prefix(join(self.prefix_uri, name) + "/")

    def rotate(self, limit: int, keep: set[str]) -> None:
        """Delete local checkpoints that have been sent: all but the newest ``limit`` and those named in ``keep``."""
        self.wait()
        sent = sorted((step, path) for path in self.folder.iterdir() if (step := self.step_of(path)) is not None)
        for _, path in sent[:-limit]:
            if path.name not in keep:
                shutil.rmtree(path)

    def _children(self, prefix_uri: str) -> set[str]:
        """Names directly below a prefix of the store."""
        return {item.uri.removeprefix(prefix_uri).split("/")[0] for item in self.storage.list(prefix_uri)}

    def _stored(self) -> dict[int, list[str]]:
        """Whole checkpoints in the store: step → the prefixes of their parts, one per node that wrote them."""
        stored: dict[int, list[str]] = {}
        for name in self._children(self.prefix_uri):
            step, uri = self.step_of(name), join(self.prefix_uri, name) + "/"
            if step is None:
                continue
            if self.storage.is_complete(uri):
                stored[step] = [uri]
                continue
            matches = [re.fullmatch(r"node-\d+-of-(\d+)", child) for child in self._children(uri)]
            for nodes in {int(match[1]) for match in matches if match}:
                parts = [join(uri, f"node-{node}-of-{nodes}") + "/" for node in range(nodes)]
                if all(self.storage.is_complete(part) for part in parts):
                    stored[step] = parts
        return stored

    def _fetch(self, step: int, folder: Path) -> None:
        for part in self._stored()[step]:
            self.storage.download_dir(part, folder)

    def newest(self) -> Path | None:
        """The newest whole checkpoint, fetched from the store if it is only there. Torn ones are removed.

        Called by every process: the first of the run chooses, the first of each node fetches. Where there are several
        nodes, a folder on one of them is not the whole checkpoint: then only what is in the store counts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        newest: list[int | None] = [self._newest_step() if rank() == 0 else None]
        if in_group():
            torch.distributed.broadcast_object_list(newest, src=0)
        if newest[0] is None:
            return None
        checkpoint = self.folder / f"checkpoint-{newest[0]}"
        if local_rank() == 0 and not (node_rank()[1] == 1 and self.is_sealed(checkpoint)):
            shutil.rmtree(checkpoint, ignore_errors=True)
            self._fetch(newest[0], checkpoint)
            self._fetch_best(checkpoint)
            self.seal(checkpoint)
        barrier()
        return checkpoint

    def _newest_step(self) -> int | None:
        """The step of the newest whole checkpoint, here or in the store; what is here and not whole is removed."""
        steps = set(self._stored())
        for path in self.folder.iterdir():
            step = self.step_of(path)
            if step is None:
                continue
            if node_rank()[1] == 1 and self.is_sealed(path):
                steps.add(step)
            else:
                shutil.rmtree(path)
        return max(steps, default=None)

    def fetch_other_nodes(self, checkpoint: Path) -> None:
        """Fetch what other nodes wrote of a checkpoint of this training; every process calls it."""
        self.wait()
        if node_rank()[1] == 1:
            return
        barrier()  # every node has sent its part
        step = self.step_of(checkpoint)
        if local_rank() == 0 and step is not None:
            self._fetch(step, checkpoint)
        barrier()

    def _fetch_best(self, checkpoint: Path) -> None:
        """Fetch the best checkpoint so far too, which a fetched one may name, and name it where it is here."""
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if not state.get("best_model_checkpoint"):
            return
        best = self.folder / Path(state["best_model_checkpoint"]).name
        step = self.step_of(best)
        if step is not None and best != checkpoint and not self.is_sealed(best):
            self._fetch(step, best)
            self.seal(best)
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2))
