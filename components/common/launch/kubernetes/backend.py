"""Training as a `TrainJob` of Kubeflow Trainer: jobs say how they are; results are read from the store, not logs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...storage.manifest import Manifest
from ...storage.s3 import Storage
from ..diagnose import Failure
from ..job import TrainingJob
from ..process import TAIL_LINES, LaunchError, on_sigterm
from .client import POD, TRAIN_JOB, WORKFLOW, Cluster, ClusterError, Object, is_true, own_namespace, phase
from .trainjob import ATTEMPT_LABEL, JOB_LABEL, JOBSET_LABEL, SHAPE, job_name, train_job
from .watch import JobWatcher, diagnose


@dataclass(frozen=True, slots=True)
class WorkflowOwner:
    """The Workflow of the run that this launcher's pod belongs to."""

    reference: Object
    """As in ``metadata.ownerReferences``."""

    @classmethod
    def find(cls, cluster: Cluster) -> WorkflowOwner | None:
        """The owner of this pod; None outside of a run, or in another namespace, which a reference cannot reach."""
        namespace = own_namespace() or os.environ.get("VTHINK_POD_NAMESPACE")
        name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME")
        if namespace != cluster.namespace or not name:
            return None
        pod = cluster.get(POD, name)
        for entry in (pod or {}).get("metadata", {}).get("ownerReferences", []):
            if entry["kind"] == WORKFLOW.name:
                kept = {key: entry[key] for key in ("apiVersion", "kind", "name", "uid")}
                return cls({**kept, "controller": False, "blockOwnerDeletion": False})
        return None

    def cancelled(self, cluster: Cluster) -> bool:
        """Whether the run was ended on purpose, so that its job must go too.

        Kubeflow Pipelines ends a run by giving its Workflow a deadline of 0 s (its `TerminateWorkflow`); Argo by
        ``spec.shutdown``. Both are written before any pod is stopped, so a launcher that is stopped without them was
        evicted. What follows from an ownerReference on a cluster is UNVERIFIED here.
        """
        workflow = cluster.get(WORKFLOW, self.reference["name"])
        if workflow is None or workflow["metadata"]["uid"] != self.reference["uid"]:
            return True
        spec, phase = workflow.get("spec", {}), workflow.get("status", {}).get("phase")
        ended = (
            spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown") or phase in ("Failed", "Error", "Succeeded")
        )
        return bool(ended or workflow["metadata"].get("deletionTimestamp"))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A TrainJob of a stage, as the API showed it last."""

    name: str
    uid: str
    number: int
    """From 1."""
    shape: str | None
    """Fingerprint of what it was made for; another one's jobs are not adopted."""
    complete: bool
    failed: bool
    deleting: bool

    @classmethod
    def read(cls, obj: Object) -> Attempt:
        """From the object."""
        metadata = obj["metadata"]
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            number=int(metadata["labels"][ATTEMPT_LABEL]),
            shape=metadata.get("annotations", {}).get(SHAPE),
            complete=is_true(obj, "Complete"),
            failed=is_true(obj, "Failed"),
            deleting=metadata.get("deletionTimestamp") is not None,
        )

    @property
    def ended(self) -> bool:
        """Whether its training is over."""
        return self.complete or self.failed


class Attempts:
    """The TrainJobs of one stage.

    Args:
        say: gets a line about what is done with them.
    """

    def __init__(self, cluster: Cluster, job: TrainingJob, say: Callable[[str], None]) -> None:
        self.cluster, self.job, self._say = cluster, job, say
        self.name = job_name(job)
        self.owner: WorkflowOwner | None = None
        """What owns new jobs, and whose end ends them."""

    def all(self) -> list[Attempt]:
        """Those that are there, the first attempt first."""
        objects = self.cluster.find(TRAIN_JOB, {JOB_LABEL: self.name})
        return sorted(map(Attempt.read, objects), key=lambda attempt: attempt.number)

    def find_or_create(self, has_result: Callable[[], bool]) -> Attempt:
        """The job to wait for: one that is there already, or a new one.

        Args:
            has_result: whether the result is in the store: a job that is complete without it is not adopted.
        """
        while True:
            newest = next(reversed(self.all()), None)
            if newest is not None:
                same = newest.shape == self._object(newest.number)["metadata"]["annotations"][SHAPE]
                if newest.complete and has_result():
                    return newest
                if same and not newest.deleting and not newest.ended:
                    self._say(f"adopted the TrainJob {newest.name}")
                    return newest
                if not newest.ended:
                    why = "is being deleted" if newest.deleting else "was made for other nodes or settings"
                    self._say(f"{newest.name} {why}")
                    self._remove(newest)
                self._wait_for_pods(newest)
            try:
                created = self.cluster.create(TRAIN_JOB, self._object(newest.number + 1 if newest else 1))
            except ClusterError as error:
                if error.status == 409:  # another launcher, or our own request whose answer got lost
                    continue
                raise
            self._say(f"created the TrainJob {created['metadata']['name']}")
            return Attempt.read(created)

    def _object(self, number: int) -> Object:
        return train_job(self.job, number, self.owner.reference if self.owner is not None else None)

    def _remove(self, attempt: Attempt) -> None:
        """Delete a job and wait until it is gone."""
        self.cluster.delete(TRAIN_JOB, attempt.name, attempt.uid)
        for state in self.cluster.follow(TRAIN_JOB, attempt.name, tick_s=5.0, say=self._say):
            if state is None or state["metadata"]["uid"] != attempt.uid:
                break

    def _wait_for_pods(self, attempt: Attempt) -> None:
        """Wait until a job's pods have ended: they get their grace period, in which they write a last checkpoint.

        Two jobs must never write the same checkpoints.
        """
        deadline = time.monotonic() + self.job.run.launch.cluster.grace_period_s + 30
        while left := [
            pod
            for pod in self.cluster.find(POD, {JOBSET_LABEL: attempt.name})
            if phase(pod) not in ("Succeeded", "Failed")
        ]:
            if time.monotonic() > deadline:  # its node is lost; nobody will confirm its end
                self._say(f"{left[0]['metadata']['name']} does not end; going on without it")
                return
            time.sleep(0.5)

    def leave(self) -> None:
        """Delete the jobs of a cancelled run; leave every other one to be adopted."""
        self.cluster.patience_s = 10.0
        try:
            running = [attempt for attempt in self.all() if not attempt.ended]
            if self.owner is not None and self.owner.cancelled(self.cluster):
                for attempt in running:
                    self.cluster.delete(TRAIN_JOB, attempt.name, attempt.uid)
                    self._say(f"the run was cancelled: deleted the TrainJob {attempt.name}")
                return
            for attempt in running:
                self._say(
                    f"this launcher ends, the TrainJob {attempt.name} goes on; the same stage adopts it when it is "
                    f"started again, or end it: kubectl delete trainjob -n {self.cluster.namespace} {attempt.name}"
                )
        except ClusterError as error:
            self._say(f"{error}; a TrainJob of this stage, if there is one, goes on")


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
