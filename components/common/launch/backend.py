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
from typing import TYPE_CHECKING

from ..storage.manifest import Manifest
from ..storage.s3 import Storage
from .config import LaunchConfig
from .job import TrainingJob, explain_failure
from .process import LaunchError, on_sigterm, spawn

if TYPE_CHECKING:
    from .kubernetes.backend import KubernetesBackend

_RANK = re.compile(r"^\[[^\]\d]*(\d+)\]:\s?")  # torchrun's mark before a line of one of several workers


def choose_backend(launch: LaunchConfig) -> LocalBackend | KubernetesBackend:
    """The backend that the configuration names; LaunchError when there is no cluster.

    Its ``train(job, on_log)`` writes the job to the store, hands every line that the workers print to ``on_log``, and
    returns the manifest that rank 0 wrote last. It raises `LaunchError` with the reason of a failure as far as the
    output tells, and SystemExit when this process was asked to end (SIGTERM)."""
    if launch.backend == "trainjob":
        from .kubernetes.backend import KubernetesBackend
        from .kubernetes.client import Cluster

        return KubernetesBackend(Cluster.connect(launch.cluster.namespace))
    return LocalBackend()


def torchrun_command(job: TrainingJob, log_dir: Path) -> list[str]:
    """torchrun on this machine; what several workers print is copied to ``log_dir``, its rank in front."""
    processes = job.run.launch.processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += ["--max-restarts=0", f"--nproc-per-node={processes}"]
    if processes > 1:
        command += ["--tee=3", f"--log-dir={log_dir}"]
    return [*command, *job.worker_command()]


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """torchrun on this machine (``launch.backend: local``)."""

    grace_s: float = 120.0
    """How long the workers, to which a SIGTERM is passed on, may take to save and end before they are killed."""

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        """See `choose_backend`. Asked to end, it returns once the workers have ended."""
        run = job.run
        if run.launch.nodes != 1:
            raise LaunchError(f"launch.nodes={run.launch.nodes}: launch.backend=local trains on one node")
        storage = Storage(run.storage)
        job.write(storage)
        recent: deque[str] = deque(maxlen=400)
        stopped = threading.Event()
        if run.work_dir is not None:
            Path(run.work_dir).mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f"{job.stage}-", dir=run.work_dir, ignore_cleanup_errors=True) as logs,
            spawn(torchrun_command(job, Path(logs)), env={**os.environ, **job.environment()}) as process,
        ):

            def stop() -> None:
                stopped.set()
                process.terminate()
                force = threading.Timer(self.grace_s, process.terminate)
                force.daemon = True
                force.start()

            with on_sigterm(stop):
                for line in process.lines:
                    recent.append(_RANK.sub(r"[rank \1] ", line))
                    on_log(recent[-1])
                code = process.wait()
        if stopped.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        if code != 0:
            raise LaunchError(f"{job.stage}: {explain_failure(code, list(recent))}", recent)
        return job.required_result(storage, recent)
