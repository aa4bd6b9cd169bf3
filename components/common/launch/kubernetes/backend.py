"""Training as a `TrainJob` of Kubeflow Trainer: the cluster's half of `launch.run_training`.

The job's name follows from the run, the stage and its settings, so that a launcher that was killed and started again
finds the job it had made. A job that runs, waits in a queue or has finished is adopted; one that failed, or that was
made for other nodes, gets a successor (``-a2``, ``-a3``, …), which goes on from the last checkpoint in the store. Jobs
say how they are; results are read from the store, never from logs.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..job import write_job
from ..process import LaunchError, NoResultError
from .client import POD, TRAIN_JOB, Cluster, ClusterError, Object, is_true
from .diagnose import Failure, _finished, diagnose
from .owner import Owner
from .trainjob import ATTEMPT_LABEL, JOB_LABEL, JOBSET_LABEL, SHAPE, command, job_name, train_job
from .watch import _StoppedError, _Watcher

if TYPE_CHECKING:
    from ...config import Stage
    from ...context import RunContext
    from ...storage.manifest import Manifest

_TICK_S = 10.0


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM inside the block raises `_StoppedError`, once; only the main thread can take signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _attempts(cluster: Cluster, name: str) -> list[Object]:
    """A stage's jobs, the first attempt first."""
    found = cluster.find(TRAIN_JOB, {JOB_LABEL: name})
    return sorted(found, key=lambda job: int(job["metadata"]["labels"][ATTEMPT_LABEL]))


def _remove(cluster: Cluster, job: Object, say: Callable[[str], None]) -> None:
    """Delete a job and wait until it is gone."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    cluster.delete(TRAIN_JOB, name, uid)
    for state in cluster.follow(TRAIN_JOB, name, tick_s=5.0, say=say):
        if state is None or state["metadata"]["uid"] != uid:
            break


def _wait_for_pods(cluster: Cluster, name: str, grace_s: float, say: Callable[[str], None]) -> None:
    """Wait until a job's pods have ended: they get their grace period, in which they write a last checkpoint."""
    deadline = time.monotonic() + grace_s + 30
    while left := [
        pod
        for pod in cluster.find(POD, {JOBSET_LABEL: name})
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]:
        if time.monotonic() > deadline:  # its node is lost; nobody will confirm its end
            say(f"{left[0]['metadata']['name']} does not end; going on without it")
            return
        time.sleep(0.5)


def find_or_create(
    cluster: Cluster,
    wanted: Callable[[int], Object],
    name: str,
    complete: Callable[[], bool],
    grace_s: float,
    say: Callable[[str], None],
) -> Object:
    """The job to wait for: one that is there already, or a new one.

    Args:
        wanted: the job as it should be, by its attempt.
        name: see `job_name`.
        complete: whether the result is in the store.
        grace_s: how long a replaced job's pods may take to end. Two jobs must never write the same checkpoints.
    """
    while True:
        jobs = _attempts(cluster, name)
        attempt = 1
        if jobs:
            newest = jobs[-1]
            attempt = int(newest["metadata"]["labels"][ATTEMPT_LABEL])
            shape = wanted(attempt)["metadata"]["annotations"][SHAPE]
            same = newest["metadata"].get("annotations", {}).get(SHAPE) == shape
            leaving = newest["metadata"].get("deletionTimestamp") is not None
            if is_true(newest, "Complete") and complete():
                return newest
            if same and not leaving and not _finished(newest):
                say(f"adopted the TrainJob {newest['metadata']['name']}")
                return newest
            if not _finished(newest):
                say(
                    f"{newest['metadata']['name']} "
                    + ("is being deleted" if leaving else "was made for other nodes or settings")
                )
                _remove(cluster, newest, say)
            _wait_for_pods(cluster, newest["metadata"]["name"], grace_s, say)
            attempt += 1
        body = wanted(attempt)
        try:
            created = cluster.create(TRAIN_JOB, body)
        except ClusterError as error:
            if error.status == 409:  # another launcher, or our own request whose answer got lost
                continue
            raise
        say(f"created the TrainJob {created['metadata']['name']}")
        return created


def run(
    context: RunContext,
    stage: Stage,
    module: str,
    job: Mapping[str, Any],
    fingerprint: str,
    prefix: str,
    on_log: Callable[[str], None],
    cluster: Cluster | None = None,
    tick_s: float = _TICK_S,
) -> Manifest:
    """Train in a `TrainJob` and return the manifest that it wrote; see `launch.run_training`.

    Raises:
        LaunchError: the training failed, or can never start; says why and what to do.
        SystemExit: this process was asked to end. The job is deleted if the run was cancelled, else it goes on.
    """
    from ...storage.manifest import Manifest
    from ...storage.s3 import Storage

    cluster = cluster or Cluster.connect(context.launch.cluster.namespace)
    storage = Storage(context.storage)
    uri = write_job(storage, context, stage, job, fingerprint, prefix)
    name = job_name(context, stage, job)
    grace_s = float(context.launch.cluster.grace_period_s)
    owner: Owner | None = None

    def result() -> Manifest | None:
        found = Manifest.find(storage, prefix)
        return found if found is not None and found.fingerprint == fingerprint else None

    def wanted(attempt: int) -> Object:
        reference = owner.reference if owner is not None else None
        base = (job.get("model") or {}).get("name")
        return train_job(context, stage, name, attempt, command(context, module, uri), reference, base)

    def say(line: str) -> None:
        on_log(f"{stage}: {line}")

    try:
        with _stoppable():
            owner = Owner.find(cluster)
            for used in range(1, context.launch.cluster.attempts + 1):
                current = find_or_create(cluster, wanted, name, lambda: result() is not None, grace_s, say)
                watcher = _Watcher(cluster, context, current["metadata"]["name"], stage, on_log)
                failure = _wait(watcher, current, tick_s)
                if (manifest := result()) is not None:
                    return manifest
                if failure is None:
                    raise NoResultError(stage, prefix, list(watcher.recent))
                if not failure.machines or used == context.launch.cluster.attempts:
                    raise LaunchError(f"{stage}: {failure}", list(watcher.recent)[-40:])
                say(f"{failure}")
    except (_StoppedError, KeyboardInterrupt) as stop:
        _leave(cluster, owner, name, say)
        if isinstance(stop, KeyboardInterrupt):
            raise
        raise SystemExit(128 + signal.SIGTERM) from None
    raise AssertionError("unreachable")


def _wait(watcher: _Watcher, job: Object, tick_s: float) -> Failure | None:
    """Wait for a job's end, however long it is queued; None when it is complete.

    Raises:
        LaunchError: it can never start (it is deleted then, to free what it holds), or somebody deleted it.
    """
    cluster, name, uid = watcher.cluster, job["metadata"]["name"], job["metadata"]["uid"]
    try:
        for state in cluster.follow(TRAIN_JOB, name, tick_s, watcher.say):
            if state is None or state["metadata"]["uid"] != uid:
                return Failure(f"the TrainJob {name} was deleted", "run again to go on from its last checkpoint")
            try:
                watcher.look(state)
            except ClusterError as error:
                if error.status in (401, 403):
                    raise
                watcher.say(str(error))  # the job goes on; so do we
            except LaunchError:
                cluster.delete(TRAIN_JOB, name, uid)
                raise
            if is_true(state, "Complete"):
                return None
            if is_true(state, "Failed"):
                watcher.finish()  # the reason may be among the last lines
                return diagnose(state, watcher.pods, watcher.events, list(watcher.recent), watcher.context)
    finally:
        watcher.finish(grace_s=0.0 if _stopping() else 10.0)
    raise AssertionError("unreachable")


def _stopping() -> bool:
    """Whether an end was asked for: then nothing is waited for."""
    import sys

    return isinstance(sys.exc_info()[1], _StoppedError | KeyboardInterrupt)


def _leave(cluster: Cluster, owner: Owner | None, name: str, say: Callable[[str], None]) -> None:
    """Delete the job of a cancelled run; leave every other one to be adopted."""
    cluster.patience_s = 10.0
    try:
        jobs = [job for job in _attempts(cluster, name) if not _finished(job)]
        if owner is not None and owner.cancelled(cluster):
            for job in jobs:
                cluster.delete(TRAIN_JOB, job["metadata"]["name"], job["metadata"]["uid"])
                say(f"the run was cancelled: deleted the TrainJob {job['metadata']['name']}")
            return
        for job in jobs:
            found = job["metadata"]["name"]
            say(
                f"this launcher ends, the TrainJob {found} goes on; the same stage adopts it when it is started again, "
                f"or end it: kubectl delete trainjob -n {cluster.namespace} {found}"
            )
    except ClusterError as error:
        say(f"{error}; a TrainJob of this stage, if there is one, goes on")
