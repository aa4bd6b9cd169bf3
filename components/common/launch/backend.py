"""Where a stage trains, by ``launch.backend``: torchrun on this machine, or a cluster."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..storage.manifest import Manifest
from ..storage.s3 import Storage
from .config import LaunchConfig
from .diagnose import explain_failure
from .job import TrainingJob
from .process import TAIL_LINES, LaunchError, on_sigterm, spawn

_RANK = re.compile(r"^\[[^\]\d]*(\d+)\]:\s?")
"""torchrun's mark before a line of one of several workers."""


def torchrun_command(job: TrainingJob, log_dir: Path) -> list[str]:
    """torchrun on this machine; what several workers print is copied to ``log_dir``, its rank in front."""
    processes = job.run.launch.processes
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        "--max-restarts=0", f"--nproc-per-node={processes}",
    ]  # fmt: skip
    if processes > 1:
        command += ["--tee=3", f"--log-dir={log_dir}"]
    return [*command, *job.worker_command()]


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """torchrun on this machine (``launch.backend: local``)."""

    grace_s: float = 120.0
    """How long the workers, to which a SIGTERM is passed on, may take to save and end before they are killed."""

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        """See `Backend.train`. Asked to end, it returns once the workers have ended."""
        run = job.run
        if run.launch.nodes != 1:
            raise LaunchError(f"launch.nodes={run.launch.nodes}: launch.backend=local trains on one node")
        storage = Storage(run.storage)
        job.write(storage)
        recent: deque[str] = deque(maxlen=400)
        stopped = threading.Event()
        if run.work_dir is not None:
            Path(run.work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{job.stage}-", dir=run.work_dir, ignore_cleanup_errors=True
        ) as log_dir:
            command = torchrun_command(job, Path(log_dir))
            with spawn(command, env={**os.environ, **job.environment()}) as process:

                def stop() -> None:
                    stopped.set()
                    process.terminate()
                    force = threading.Timer(self.grace_s, process.terminate)
                    force.daemon = True
                    force.start()

                with on_sigterm(stop):
                    for line in process.lines:
                        line = _RANK.sub(r"[rank \1] ", line)
                        recent.append(line)
                        on_log(line)
                    code = process.wait()
        if stopped.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        last = list(recent)[-TAIL_LINES:]
        if code != 0:
            raise LaunchError(f"{job.stage}: {explain_failure(code, list(recent))}", last)
        manifest = job.result(storage)
        if manifest is None:
            raise LaunchError(f"{job.stage}: the training ended without writing its manifest to {job.prefix}", last)
        return manifest


class Backend(Protocol):
    """Starts the training processes of a job and waits for their result."""

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        """Train, and return the manifest that the job's rank 0 wrote last.

        Args:
            job: what to train; it is written to the store first.
            on_log: gets each line that the workers print.

        Raises:
            LaunchError: the training failed; says why as far as its output tells.
            SystemExit: this process was asked to end (SIGTERM).
        """
        ...


def choose_backend(launch: LaunchConfig) -> Backend:
    """The backend that the configuration names; Kubernetes' client is imported for it alone.

    Raises:
        LaunchError: the configuration does not fit the backend, or there is no cluster.
    """
    if launch.backend == "trainjob":
        from .kubernetes.backend import KubernetesBackend
        from .kubernetes.client import Cluster

        return KubernetesBackend(Cluster.connect(launch.cluster.namespace))
    return LocalBackend()
