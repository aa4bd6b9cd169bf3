"""Training as a `TrainJob` of Kubeflow Trainer: jobs say how they are; results are read from the store, not logs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from ...storage.manifest import Manifest
from ...storage.s3 import Storage
from ..diagnose import Failure
from ..job import TrainingJob
from ..lifetime import on_sigterm
from ..process import TAIL_LINES, LaunchError
from .attempts import Attempt, Attempts
from .client import TRAIN_JOB, Cluster, ClusterError, is_true
from .diagnose import diagnose
from .watch import JobWatcher
from .workflow import WorkflowOwner


class _StopRequested(BaseException):
    """SIGTERM, raised out of whatever the main thread waits for."""


def _stop() -> None:
    raise _StopRequested


@dataclass(frozen=True, slots=True)
class KubernetesBackend:
    """A `TrainJob` on a cluster (``launch.backend: trainjob``)."""

    cluster: Cluster
    tick_s: float = 10.0
    """Seconds between two looks at a job that does not change."""

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        """See `Backend.train`. Asked to end, it deletes the job if the run was cancelled; else the job goes on."""
        storage, limit = Storage(job.run.storage), job.run.launch.cluster.attempts
        job.write(storage)
        attempts = Attempts(self.cluster, job, lambda line: on_log(f"{job.stage}: {line}"))
        try:
            with on_sigterm(_stop):
                attempts.owner = WorkflowOwner.find(self.cluster)
                for used in range(1, limit + 1):
                    attempt = attempts.find_or_create(lambda: job.result(storage) is not None)
                    watcher = JobWatcher(self.cluster, job.run.launch, attempt.name, job.stage, on_log)
                    failure = self._wait(watcher, attempt)
                    if (manifest := job.result(storage)) is not None:
                        return manifest
                    last = list(watcher.recent)[-TAIL_LINES:]
                    if failure is None:
                        raise LaunchError(
                            f"{job.stage}: the training ended without writing its manifest to {job.prefix}", last
                        )
                    if not failure.machines_lost or used == limit:
                        raise LaunchError(f"{job.stage}: {failure}", last)
                    watcher.say(str(failure))
        except _StopRequested:
            attempts.leave()
            raise SystemExit(128 + signal.SIGTERM) from None
        except KeyboardInterrupt:
            attempts.leave()
            raise
        raise AssertionError("unreachable")

    def _wait(self, watcher: JobWatcher, attempt: Attempt) -> Failure | None:
        """Wait for a job's end, however long it is queued; None when it is complete.

        Raises:
            LaunchError: it can never start (it is deleted then, to free what it holds), or the API refuses us.
        """
        try:
            for state in self.cluster.follow(TRAIN_JOB, attempt.name, self.tick_s, watcher.say):
                if state is None or state["metadata"]["uid"] != attempt.uid:
                    return Failure(
                        f"the TrainJob {attempt.name} was deleted", "run again to go on from its last checkpoint"
                    )
                try:
                    watcher.update(state)
                except ClusterError as error:
                    if error.status in (401, 403):
                        raise
                    watcher.say(str(error))  # the job goes on; so do we
                except LaunchError:
                    self.cluster.delete(TRAIN_JOB, attempt.name, attempt.uid)
                    raise
                if is_true(state, "Complete"):
                    return None
                if is_true(state, "Failed"):
                    watcher.finish()  # the reason may be among the last lines
                    warnings = list(watcher.warnings.values())
                    return diagnose(state, watcher.pods, warnings, list(watcher.recent), watcher.launch)
        except (_StopRequested, KeyboardInterrupt):
            watcher.finish(grace_s=0.0)
            raise
        finally:
            watcher.finish()
        raise AssertionError("unreachable")
