"""Training as a `TrainJob` of Kubeflow Trainer: jobs say how they are; results are read from the store, not logs.

A stage's jobs share a name that follows from the run, the stage and its settings, so that a launcher that was killed
and started again finds them. A job that runs, waits in a queue or has finished is adopted; one that failed, or that was
made for other nodes, gets a successor (``-a2``, ``-a3``, …), which goes on from the last checkpoint in the store.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...storage.manifest import Manifest
from ...storage.s3 import Storage
from ..job import Failure, TrainingJob
from ..process import LaunchError, on_sigterm
from .client import POD, TRAIN_JOB, WORKFLOW, Cluster, ClusterError, Object, at, is_true, own_namespace, phase
from .trainjob import ATTEMPT_LABEL, JOB_LABEL, JOBSET_LABEL, SHAPE, job_name, train_job
from .watch import JobWatcher, diagnose


def workflow_of_this_pod(cluster: Cluster) -> Object | None:
    """Reference to the Workflow of the run that this launcher's pod belongs to, as in ``metadata.ownerReferences``.
    None outside of a run, or in another namespace, which a reference cannot reach."""
    namespace = own_namespace() or os.environ.get("VTHINK_POD_NAMESPACE")
    name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME")
    if namespace != cluster.namespace or not name:
        return None
    for entry in at(cluster.get(POD, name), "metadata", "ownerReferences") or []:
        if entry["kind"] == WORKFLOW.name:
            kept = {key: entry[key] for key in ("apiVersion", "kind", "name", "uid")}
            return {**kept, "controller": False, "blockOwnerDeletion": False}
    return None


def _cancelled(cluster: Cluster, owner: Object) -> bool:
    """Whether the run was ended on purpose, so that its job must go too.

    Kubeflow Pipelines ends a run by giving its Workflow a deadline of 0 s (its `TerminateWorkflow`); Argo by
    ``spec.shutdown``. Both are written before any pod is stopped, so a launcher that is stopped without them was
    evicted. What follows from an ownerReference on a cluster is UNVERIFIED here."""
    workflow = cluster.get(WORKFLOW, owner["name"])
    if workflow is None or not _same(workflow, {"metadata": owner}):
        return True
    stopped = at(workflow, "spec", "activeDeadlineSeconds") == 0 or at(workflow, "spec", "shutdown")
    ended = at(workflow, "status", "phase") in ("Failed", "Error", "Succeeded")
    return bool(stopped or ended or workflow["metadata"].get("deletionTimestamp"))


class Attempts:
    """The TrainJobs of one stage: which of them to wait for, when to replace it, and what to leave behind. ``say`` gets
    a line about what is done with them."""

    def __init__(self, cluster: Cluster, job: TrainingJob, say: Callable[[str], None]) -> None:
        self.cluster, self.job, self._say = cluster, job, say
        self.owner: Object | None = None
        """Reference to what owns new jobs, and whose end ends them."""

    def _all(self) -> list[Object]:
        return self.cluster.find(TRAIN_JOB, {JOB_LABEL: job_name(self.job)})

    def find_or_create(self, has_result: Callable[[], bool]) -> Object:
        """The job to wait for: one that is there (if complete, only with a result in the store), or a new one."""
        while True:
            number, newest = 1, max(self._all(), key=_number, default=None)
            if newest is not None:
                if is_true(newest, "Complete") and has_result():
                    return newest
                name, shape = newest["metadata"]["name"], at(newest, "metadata", "annotations", SHAPE)
                deleting = newest["metadata"].get("deletionTimestamp") is not None
                if not _ended(newest):
                    if not deleting and shape == self._object(_number(newest))["metadata"]["annotations"][SHAPE]:
                        self._say(f"adopted the TrainJob {name}")
                        return newest
                    self._say(f"{name} {'is being deleted' if deleting else 'was made for other nodes or settings'}")
                    self.delete(newest)
                    for state in self.cluster.follow(TRAIN_JOB, name, tick_s=5.0, say=self._say):
                        if not _same(state, newest):
                            break
                self._wait_for_pods(name)
                number = _number(newest) + 1
            try:
                created = self.cluster.create(TRAIN_JOB, self._object(number))
            except ClusterError as error:
                if error.status == 409:  # another launcher, or our own request whose answer got lost
                    continue
                raise
            self._say(f"created the TrainJob {created['metadata']['name']}")
            return created

    def _object(self, number: int) -> Object:
        return train_job(self.job, number, self.owner)

    def delete(self, attempt: Object) -> None:
        """Delete a job, and not another one of its name."""
        self.cluster.delete(TRAIN_JOB, attempt["metadata"]["name"], attempt["metadata"]["uid"])

    def _wait_for_pods(self, name: str) -> None:
        """Wait until a job's pods have ended: two jobs must never write the same checkpoints, and pods that are asked
        to end write a last one in their grace period."""
        deadline = time.monotonic() + self.job.run.launch.cluster.grace_period_s + 30
        while True:
            pods = self.cluster.find(POD, {JOBSET_LABEL: name})
            left = [pod["metadata"]["name"] for pod in pods if phase(pod) not in ("Succeeded", "Failed")]
            if not left:
                return
            if time.monotonic() > deadline:  # its node is lost; nobody will confirm its end
                self._say(f"{left[0]} does not end; going on without it")
                return
            time.sleep(0.5)

    def leave(self) -> None:
        """Delete the jobs of a cancelled run; leave every other one to be adopted."""
        self.cluster.patience_s = 10.0
        try:
            running = [attempt for attempt in self._all() if not _ended(attempt)]
            cancelled = self.owner is not None and _cancelled(self.cluster, self.owner)
            for attempt in running:
                name = attempt["metadata"]["name"]
                if cancelled:
                    self.delete(attempt)
                    self._say(f"the run was cancelled: deleted the TrainJob {name}")
                else:
                    self._say(
                        f"this launcher ends, the TrainJob {name} goes on; the same stage adopts it when it is started "
                        f"again, or end it: kubectl delete trainjob -n {self.cluster.namespace} {name}"
                    )
        except ClusterError as error:
            self._say(f"{error}; a TrainJob of this stage, if there is one, goes on")


def _number(attempt: Object) -> int:
    return int(attempt["metadata"]["labels"][ATTEMPT_LABEL])


def _ended(attempt: Object) -> bool:
    return is_true(attempt, "Complete") or is_true(attempt, "Failed")


def _same(state: Object | None, attempt: Object) -> bool:
    return state is not None and state["metadata"]["uid"] == attempt["metadata"]["uid"]


class _StopRequested(BaseException):
    """SIGTERM, raised out of whatever the main thread waits for."""


def _stop() -> None:
    raise _StopRequested


@dataclass(frozen=True, slots=True)
class KubernetesBackend:
    """A `TrainJob` on a cluster (``launch.backend: trainjob``)."""

    cluster: Cluster
    tick_s: float = 10.0  # seconds between two looks at a job that does not change

    def train(self, job: TrainingJob, on_log: Callable[[str], None]) -> Manifest:
        """See `Backend`. Asked to end, it deletes the job if the run was cancelled; else the job goes on."""
        storage, left = Storage(job.run.storage), job.run.launch.cluster.attempts
        job.write(storage)
        attempts = Attempts(self.cluster, job, lambda line: on_log(f"{job.stage}: {line}"))
        try:
            with on_sigterm(_stop):
                attempts.owner = workflow_of_this_pod(self.cluster)
                while True:
                    left -= 1
                    attempt = attempts.find_or_create(lambda: job.result(storage) is not None)
                    name = attempt["metadata"]["name"]
                    watcher = JobWatcher(self.cluster, job.run.launch, name, job.stage, on_log)
                    failure = self._wait(watcher, attempts, attempt)
                    if failure is None or job.result(storage) is not None:
                        return job.required_result(storage, watcher.recent)
                    if not failure.machines_lost or not left:
                        raise LaunchError(f"{job.stage}: {failure}", watcher.recent)
                    watcher.say(str(failure))
        except (_StopRequested, KeyboardInterrupt) as error:
            attempts.leave()
            if isinstance(error, KeyboardInterrupt):
                raise
            raise SystemExit(128 + signal.SIGTERM) from None

    def _wait(self, watcher: JobWatcher, attempts: Attempts, attempt: Object) -> Failure | None:
        """Wait for a job's end, however long it is queued; None when it is complete. LaunchError when it can never
        start (it is deleted then, to free what it holds), or the API refuses us."""
        try:
            for state in self.cluster.follow(TRAIN_JOB, watcher.name, self.tick_s, watcher.say):
                if state is None or not _same(state, attempt):
                    what = f"the TrainJob {watcher.name} was deleted"
                    return Failure(what, "run again to go on from its last checkpoint")
                try:
                    watcher.update(state)
                except ClusterError as error:
                    if error.status in (401, 403):
                        raise
                    watcher.say(str(error))  # the job goes on; so do we
                except LaunchError:
                    attempts.delete(attempt)
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
