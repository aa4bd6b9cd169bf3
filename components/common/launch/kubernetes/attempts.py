"""The TrainJobs of one stage: which of them to wait for, when to replace it, and what to leave behind.

A stage's jobs share a name that follows from the run, the stage and its settings, so that a launcher that was killed
and started again finds them. A job that runs, waits in a queue or has finished is adopted; one that failed, or that was
made for other nodes, gets a successor (``-a2``, ``-a3``, …), which goes on from the last checkpoint in the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..job import TrainingJob
from .client import POD, TRAIN_JOB, Cluster, ClusterError, Object, is_true, phase
from .trainjob import ATTEMPT_LABEL, JOB_LABEL, JOBSET_LABEL, SHAPE, job_name, train_job
from .workflow import WorkflowOwner


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
