"""Training as a `TrainJob` of Kubeflow Trainer: the cluster's half of `launch.run_training`.

The job's name follows from the run, the stage and its settings, so that a launcher that was killed and started again
finds the job it had made. A job that runs, waits in a queue or has finished is adopted; one that failed, or that was
made for other nodes, gets a successor (``-a2``, ``-a3``, …), which goes on from the last checkpoint in the store. Jobs
say how they are; results are read from the store, never from logs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .cluster import (
    EVENT,
    POD,
    TRAIN_JOB,
    WORKFLOW,
    WORKLOAD,
    Cluster,
    ClusterError,
    Object,
    condition,
    is_true,
    own_namespace,
)
from .launch import (
    ROLLOUT_URL,
    WORK_DIR,
    LaunchError,
    NoResultError,
    explain_output,
    training_environment,
    worker_command,
    write_job,
)

if TYPE_CHECKING:
    from .config import RunContext, Stage
    from .storage import Manifest

MANAGER = "vthink.dev/launcher"
"""Who wrote the part of ``runtimePatches`` that is ours; Kueue writes one of its own."""
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL, ATTEMPT_LABEL, STAGE_LABEL = "vthink.dev/job", "vthink.dev/attempt", "vthink.dev/stage"
SHAPE = "vthink.dev/shape"
"""Annotation: fingerprint of what a running job must not differ in."""
RUN = "vthink.dev/run"
"""Annotation with the run's id, which may be longer than a label's value."""

_FORWARDED = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "NO_PROXY",
              "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "http_proxy", "https_proxy", "VTHINK_GIT_COMMIT")  # fmt: skip
_FORWARDED_PREFIXES = ("MLFLOW_", "NCCL_", "HF_")
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|USERNAME|_KEY$|AUTH")
_TICK_S = 10.0
_REMIND_S = 600.0


# --- the object ---------------------------------------------------------------------------------------------


def job_name(context: RunContext, stage: str, job: Mapping[str, Any]) -> str:
    """Name of a stage's job, the same whenever it is asked for again: run, stage, hash of the settings.

    The number of ranks is not part of it: a run that goes on with other nodes must find the job it replaces. Short
    enough for what JobSet appends to it, also with an attempt.
    """
    from .storage import fingerprint

    job = {key: value for key, value in job.items() if key != "processes"}
    settings = fingerprint("trainjob", context.run_id, stage, job, context.redo.get(stage, 0))
    run = re.sub(r"[^a-z0-9]+", "-", context.run_id.lower()).strip("-")[:20].strip("-")
    run = run if run[:1].isalpha() else f"r-{run}".rstrip("-")
    return f"{run}-{stage}-{settings[:8]}"


def nodes(context: RunContext) -> int:
    """Nodes that a job gets."""
    return context.launch.cluster.nodes or context.launch.nodes


def image(context: RunContext) -> str:
    """Image of the training pods."""
    from ... import __version__

    known = os.environ.get("VTHINK_IMAGE_TRAIN", f"ghcr.io/vthink/vthink-train-python:{__version__}")
    return context.launch.cluster.image or known


def environment(context: RunContext, environ: Mapping[str, str] = os.environ) -> list[Object]:
    """The training container's variables: where the stores are, and which run it belongs to.

    Keys are never copied into the object, which every reader of the namespace sees: they come from the secret.
    """
    settings = context.launch.cluster
    values = {
        name: value
        for name, value in environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not _SECRET.search(name))
    }
    values |= training_environment(context)
    values[WORK_DIR] = settings.work_dir
    # Which rank of the whole job printed a line; torchrun's own mark counts per node.
    values["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "[rank${rank}]:"
    found: list[Object] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    if settings.s3_secret is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            reference = {"name": settings.s3_secret, "key": name, "optional": True}
            found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found


def command(context: RunContext, module: str, job_uri: str) -> list[str]:
    """What a node runs. The nodes, this node's number and the meeting point come from the runtime (``PET_*``).

    It is torchrun itself: ``accelerate launch`` and the ``trl`` command ignore those variables and would silently train
    with one process.
    """
    launch = context.launch
    found = ["torchrun", "--max-restarts=0"]
    # Workers get nearly all of the grace period to write their checkpoint; torchrun's own limit is 30 s.
    found.append(f"--shutdown-timeout={max(10, launch.cluster.grace_period_s - 20)}")
    if nodes(context) * launch.processes > 1:
        found += ["--tee=3", f"--log-dir={launch.cluster.work_dir}/logs"]
    return [*found, *worker_command(module, job_uri)]


def train_job(
    context: RunContext,
    stage: Stage,
    name: str,
    attempt: int,
    run: Sequence[str],
    owner: Mapping[str, Any] | None = None,
    rollout_model: str | None = None,
) -> Object:
    """The `TrainJob`.

    Args:
        context: the run; ``launch`` says how many nodes and processes, and where.
        stage: decides the pool.
        name: see `job_name`.
        attempt: from 1.
        run: the command, see `command`.
        owner: reference to the run's Workflow: when that is deleted, so is the job.
        rollout_model: hub id of the model that a rollout server starts with; it gets the policy's weights later.
    """
    from .storage import fingerprint

    launch, settings = context.launch, context.launch.cluster
    placement = launch.placement(stage)
    resources: Object = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.accelerator is not None:
        resources[settings.accelerator] = launch.processes
    pod: Object = {
        "serviceAccountName": settings.service_account,
        "terminationGracePeriodSeconds": settings.grace_period_s,
    }
    pod |= pod_placement(placement)
    template: Object = {"spec": pod}
    if settings.topology is not None and placement.labels:
        template["metadata"] = {"annotations": {"kueue.x-k8s.io/podset-required-topology": settings.topology}}
    jobs = [{"name": "node", "template": {"spec": {"template": template}}}]
    runtime, env = settings.runtime, environment(context)
    full_name = name if attempt == 1 else f"{name}-a{attempt}"
    if settings.rollout_servers and stage == "grpo":
        # The second replicated job is the runtime's; a patch can place its pods and set variables. Not run here.
        runtime = f"{settings.runtime}-vllm"
        server: Object = pod_placement(placement)
        if rollout_model is not None:
            server["containers"] = [{"name": "vllm", "env": [{"name": "VTHINK_ROLLOUT_MODEL", "value": rollout_model}]}]
        if server:
            jobs.append({"name": "vllm", "template": {"spec": {"template": {"spec": server}}}})
        env.append({"name": ROLLOUT_URL, "value": f"http://{full_name}-vllm-0-0.{full_name}:8000"})
    spec: Object = {
        "runtimeRef": {"apiGroup": TRAIN_JOB.group, "kind": "ClusterTrainingRuntime", "name": runtime},
        "trainer": {
            "image": image(context),
            "numNodes": nodes(context),
            "numProcPerNode": launch.processes,
            "command": list(run),
            "env": env,
            "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
        },
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
        ],
    }
    shape = [nodes(context), launch.processes, image(context), runtime, list(run), resources, placement.model_dump()]
    metadata: Object = {
        "name": full_name,
        "labels": {
            "app.kubernetes.io/part-of": "vthink",
            JOB_LABEL: name,
            STAGE_LABEL: stage,
            ATTEMPT_LABEL: str(attempt),
            **placement.labels,
        },
        "annotations": {SHAPE: fingerprint("shape", shape), RUN: context.run_id},
    }
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {"apiVersion": TRAIN_JOB.api_version, "kind": TRAIN_JOB.name, "metadata": metadata, "spec": spec}


def pod_placement(placement: Any) -> Object:
    """A `Placement` as fields of a pod's spec."""
    found: Object = {}
    if placement.node_selector:
        found["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerations:
        found["tolerations"] = [entry.model_dump(exclude_none=True) for entry in placement.tolerations]
    return found


# --- the run it belongs to ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """The Workflow of the run that this launcher's pod belongs to."""

    reference: Object
    """As in ``metadata.ownerReferences``."""

    @classmethod
    def find(cls, cluster: Cluster) -> Owner | None:
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


class _StoppedError(BaseException):
    """SIGTERM, raised out of whatever the main thread waits for."""


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


# --- what goes wrong ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed, and whether another one may succeed where it did not."""

    reason: str
    advice: str
    machines: bool = False
    """The machines were taken away; the training itself did nothing wrong."""

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}"


_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_TAKEN = {"Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Terminated", "Shutdown"}
_QUOTA = re.compile(r"exceeded quota|forbidden: maximum|is forbidden", re.I)
_NCCL = re.compile(
    r"Watchdog caught collective operation timeout|NCCL (error|timeout)|ProcessGroupNCCL.*timed? ?out", re.I
)


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def pull_failure(pods: Sequence[Object], context: RunContext) -> Failure | None:
    """An image that cannot be pulled."""
    for pod in pods:
        for container in _containers(pod):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _PULL:
                said = " ".join(f"{waiting['reason']}: {waiting.get('message') or 'no reason given'}".split())[:200]
                return Failure(
                    f"the image {container.get('image') or image(context)} cannot be pulled ({said})",
                    "check launch.cluster.image, and the pull secret of the namespace",
                )
    return None


def taken_away(pod: Object) -> str | None:
    """Why a pod's machine was taken from it: eviction, preemption, a lost node; None when it was not."""
    status = pod.get("status") or {}
    disrupted = condition(pod, "DisruptionTarget")
    if disrupted.get("status") == "True":
        return str(disrupted.get("reason") or "DisruptionTarget")
    return str(status["reason"]) if status.get("reason") in _TAKEN else None


def quota_failure(events: Sequence[Object]) -> Failure | None:
    """A ResourceQuota (or an admission rule) that refuses the pods."""
    for event in reversed(events):
        if event.get("reason") == "FailedCreate" and _QUOTA.search(event.get("message") or ""):
            said = " ".join(event["message"].split())[:250]
            return Failure(
                f"the namespace refuses the pods ({said})",
                "ask for less (launch.nodes, launch.processes, launch.cluster.memory), or have its quota raised",
            )
    return None


def diagnose(
    job: Object, pods: Sequence[Object], events: Sequence[Object], lines: Sequence[str], context: RunContext
) -> Failure:
    """Why a job failed, in the order in which causes hide one another."""
    for pod in pods:
        if (why := taken_away(pod)) is not None:
            name = pod["metadata"]["name"]
            return Failure(f"the machine of {name} was taken away ({why})", "it goes on from the last checkpoint", True)
    for pod in pods:
        for container in _containers(pod):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                ended = state.get("terminated") or {}
                if ended.get("reason") == "OOMKilled":
                    memory = context.launch.cluster.memory
                    return Failure(
                        f"{pod['metadata']['name']} ran out of memory (OOMKilled, limit {memory})",
                        "raise launch.cluster.memory, or use fewer processes per node",
                    )
    if (found := pull_failure(pods, context) or quota_failure(events)) is not None:
        return found
    if any(_NCCL.search(line) for line in lines):
        return Failure(
            "the GPUs stopped talking to each other (NCCL)",
            "see which rank printed an error first; then NCCL_DEBUG=INFO and NCCL_SOCKET_IFNAME in the launcher's "
            "environment, and the NetworkPolicy between training pods",
        )
    reason, hint = explain_output(lines)
    failed = condition(job, "Failed")
    said = f"{failed.get('reason') or 'Failed'}: {failed.get('message') or 'no message'}"
    reason = reason or " ".join(said.split())[:300]
    return Failure(reason, hint or f"see the pods' logs: kubectl logs -l {JOBSET_LABEL}={job['metadata']['name']}")


def standing(job: Object, workloads: Sequence[Object], pods: Sequence[Object]) -> str:
    """Where a job stands, in one line: queued and why, waiting for machines, starting, running."""
    queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    nodes = job["spec"]["trainer"].get("numNodes", 1)
    for workload in workloads:
        evicted, reserved = condition(workload, "Evicted"), condition(workload, "QuotaReserved")
        if is_true(workload, "Admitted"):
            break
        said = " ".join(str((evicted if evicted.get("status") == "True" else reserved).get("message") or "").split())
        if evicted.get("status") == "True":
            why = f"{evicted.get('reason')}: {said}"
            return f"put back into the queue '{queue}' ({why}); it goes on from its last checkpoint"
        return f"queued in '{queue}'" + (f": {said}" if said else "")
    if job["spec"].get("suspend"):
        return f"queued in '{queue}'" if queue else "suspended"
    if not pods:
        return "admitted, no pods yet"
    waiting = [pod for pod in pods if (pod.get("status") or {}).get("phase") in (None, "Pending")]
    for pod in waiting:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            said = " ".join(str(scheduled.get("message") or scheduled.get("reason") or "").split())[:200]
            return f"{len(waiting)} of {nodes} pods wait for a machine: {said}"
    if waiting:
        states = {
            ((container.get("state") or {}).get("waiting") or {}).get("reason")
            for pod in waiting
            for container in _containers(pod)
        }
        shown = ", ".join(sorted(state for state in states if state)) or "being placed"
        return f"{len(waiting)} of {nodes} pods are starting ({shown})"
    return f"running on {nodes} node{'s' if nodes > 1 else ''}"


# --- watching one job ---------------------------------------------------------------------------------------


@dataclass
class _Watcher:
    """Tells a person how a job fares: its state when that changes, warnings once, every line its pods print."""

    cluster: Cluster
    context: RunContext
    name: str
    stage: str
    on_log: Callable[[str], None]
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    events: list[Object] = field(default_factory=list)
    _told: str = ""
    _told_at: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _seen: set[str] = field(default_factory=set)
    _streams: dict[str, threading.Thread] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pull_failed_at: float | None = None
    pods: list[Object] = field(default_factory=list)
    """The last pods that were seen; a failed job's may be gone."""

    def say(self, line: str) -> None:
        """A line of our own."""
        with self._lock:
            self.on_log(f"{self.stage}: {line}")

    def look(self, job: Object) -> None:
        """Look around the job.

        Raises:
            LaunchError: it can never start (no such image, no quota).
        """
        found = self.cluster.find(POD, {JOBSET_LABEL: self.name})
        self.pods = found or self.pods
        workloads: list[Object] = []
        with contextlib.suppress(ClusterError):  # no Kueue, or no right to look
            workloads = self.cluster.find(WORKLOAD, {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]})
        idle = [pod for pod in found if (pod.get("status") or {}).get("phase") != "Running"]
        # A quota's refusal is told about the batch Job that JobSet makes.
        self._warnings([self.name, f"{self.name}-node-0", *(pod["metadata"]["name"] for pod in idle)])
        text = standing(job, workloads, found)
        now = time.monotonic()
        if text != self._told:
            self._since = now
            self.say(text)
        elif now - self._told_at > _REMIND_S and not text.startswith("running"):
            self.say(f"still {text} ({(now - self._since) / 60:.0f} min)")
        else:
            now = self._told_at
        self._told, self._told_at = text, now
        self._stream([pod for pod in found if (pod.get("status") or {}).get("phase") not in (None, "Pending")])
        self._refuse(found)

    def _refuse(self, pods: Sequence[Object]) -> None:
        if (quota := quota_failure(self.events)) is not None and not pods:
            raise LaunchError(f"{self.stage}: {quota}")
        pull = pull_failure(pods, self.context)
        if pull is None:
            self._pull_failed_at = None
            return
        first = self._pull_failed_at = self._pull_failed_at or time.monotonic()
        if "InvalidImageName" in pull.reason or time.monotonic() - first > self.context.launch.cluster.pull_timeout_s:
            raise LaunchError(f"{self.stage}: {pull}")

    def _warnings(self, names: Sequence[str]) -> None:
        for name in names:
            events: list[Object] = []
            with contextlib.suppress(ClusterError):  # they only explain
                events = self.cluster.find(EVENT, fields={"involvedObject.name": name})
            for event in events:
                key = event["metadata"]["uid"]
                if event.get("type") == "Warning" and key not in self._seen:
                    self._seen.add(key)
                    self.events.append(event)
                    said = " ".join(str(event.get("message")).split())[:250]
                    self.say(f"{event.get('reason')} ({name}): {said}")

    def _stream(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            key = pod["metadata"]["uid"]
            labels = pod["metadata"].get("labels", {})
            if key in self._streams or labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") != "node":
                continue
            index = labels.get("batch.kubernetes.io/job-completion-index", "?")
            mark = f"[node {index}] " if nodes(self.context) > 1 else ""
            thread = threading.Thread(
                target=self._follow_log, args=(pod["metadata"]["name"], mark), name=f"logs-{key}", daemon=True
            )
            self._streams[key] = thread
            thread.start()

    def _follow_log(self, pod: str, mark: str) -> None:
        """Copy what a pod prints; a stream that breaks is taken up after the last line, to the nanosecond."""
        last: tuple[str, float] | None = None
        stamp: str | None = None
        while True:
            follow = not self._ended.is_set()
            try:
                for at_text, text in self.cluster.logs(pod, "node", stamp, follow):
                    stamp, at = at_text, _instant(at_text)
                    if last is not None and at <= last:
                        continue
                    last = at
                    line = re.sub(r"^\[rank(\d+)\]:\s?", r"[rank \1] ", text.rstrip("\r"))
                    with self._lock:
                        self.recent.append(line)
                        self.on_log(mark + line)
                return  # the container has ended
            except ClusterError as error:
                if error.status == 404 or not follow:
                    return
            self._ended.wait(1.0)

    def finish(self, grace_s: float = 10.0) -> None:
        """Wait for the last lines."""
        if self._ended.is_set():
            return
        self._ended.set()
        deadline = time.monotonic() + grace_s
        for thread in self._streams.values():
            thread.join(max(0.0, deadline - time.monotonic()))


def _instant(stamp: str) -> tuple[str, float]:
    """An RFC 3339 time, comparable: seconds, then their fraction, however many digits it has."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return seconds, float(f"0.{fraction}") if fraction.isdigit() else 0.0


# --- the whole ----------------------------------------------------------------------------------------------


def _attempts(cluster: Cluster, name: str) -> list[Object]:
    """A stage's jobs, the first attempt first."""
    found = cluster.find(TRAIN_JOB, {JOB_LABEL: name})
    return sorted(found, key=lambda job: int(job["metadata"]["labels"][ATTEMPT_LABEL]))


def _finished(job: Object) -> bool:
    return is_true(job, "Complete") or is_true(job, "Failed")


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
    from .storage import Manifest, Storage

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
