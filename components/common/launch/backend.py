"""Where a stage trains: on this machine or on a cluster, by ``launch.backend``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..storage.manifest import Manifest
from .config import LaunchConfig
from .job import TrainingJob
from .local import LocalBackend


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
