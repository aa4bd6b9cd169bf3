"""Where a job stands, why it failed, and what a person is told of both."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..config import QUEUE_LABEL, LaunchConfig
from ..diagnose import Failure, explain_output
from ..process import LaunchError
from .client import EVENT, POD, WORKLOAD, Cluster, ClusterError, Object, condition, is_true, one_line, phase
from .trainjob import JOBSET_LABEL, image, nodes

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_LOST = {"Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Terminated", "Shutdown"}
_QUOTA = re.compile(r"exceeded quota|forbidden: maximum|is forbidden", re.I)
_NCCL = re.compile(
    r"Watchdog caught collective operation timeout|NCCL (error|timeout)|ProcessGroupNCCL.*timed? ?out", re.I
)


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def pull_failure(pods: Sequence[Object], launch: LaunchConfig) -> Failure | None:
    """An image that cannot be pulled."""
    for pod in pods:
        for container in _containers(pod):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _PULL:
                message = one_line(f"{waiting['reason']}: {waiting.get('message') or 'no reason given'}", 200)
                return Failure(
                    f"the image {container.get('image') or image(launch)} cannot be pulled ({message})",
                    "check launch.cluster.image, and the pull secret of the namespace",
                )
    return None


def machine_loss(pod: Object) -> str | None:
    """Why a pod's machine was taken from it: eviction, preemption, a lost node; None when it was not."""
    status = pod.get("status") or {}
    disrupted = condition(pod, "DisruptionTarget")
    if disrupted.get("status") == "True":
        return str(disrupted.get("reason") or "DisruptionTarget")
    return str(status["reason"]) if status.get("reason") in _LOST else None


def quota_failure(events: Sequence[Object]) -> Failure | None:
    """A ResourceQuota (or an admission rule) that refuses the pods."""
    for event in reversed(events):
        if event.get("reason") == "FailedCreate" and _QUOTA.search(event.get("message") or ""):
            return Failure(
                f"the namespace refuses the pods ({one_line(event['message'], 250)})",
                "ask for less (launch.nodes, launch.processes, launch.cluster.memory), or have its quota raised",
            )
    return None


def diagnose(
    job: Object, pods: Sequence[Object], events: Sequence[Object], lines: Sequence[str], launch: LaunchConfig
) -> Failure:
    """Why a job failed, in the order in which causes hide one another."""
    for pod in pods:
        if (cause := machine_loss(pod)) is not None:
            reason = f"the machine of {pod['metadata']['name']} was taken away ({cause})"
            return Failure(reason, "it goes on from the last checkpoint", machines_lost=True)
    for pod in pods:
        for container in _containers(pod):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                ended = state.get("terminated") or {}
                if ended.get("reason") == "OOMKilled":
                    memory = launch.cluster.memory
                    return Failure(
                        f"{pod['metadata']['name']} ran out of memory (OOMKilled, limit {memory})",
                        "raise launch.cluster.memory, or use fewer processes per node",
                    )
    if (failure := pull_failure(pods, launch) or quota_failure(events)) is not None:
        return failure
    if any(_NCCL.search(line) for line in lines):
        return Failure(
            "the GPUs stopped talking to each other (NCCL)",
            "see which rank printed an error first; then NCCL_DEBUG=INFO and NCCL_SOCKET_IFNAME in the launcher's "
            "environment, and the NetworkPolicy between training pods",
        )
    printed = explain_output(lines)
    failed = condition(job, "Failed")
    condition_text = one_line(f"{failed.get('reason') or 'Failed'}: {failed.get('message') or 'no message'}", 300)
    return Failure(
        printed.reason or condition_text,
        printed.advice or f"see the pods' logs: kubectl logs -l {JOBSET_LABEL}={job['metadata']['name']}",
    )


def describe_state(job: Object, workloads: Sequence[Object], pods: Sequence[Object]) -> str:
    """Where a job stands, in one line: queued and why, waiting for machines, starting, running."""
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    nodes = job["spec"]["trainer"].get("numNodes", 1)
    for workload in workloads:
        evicted, reserved = condition(workload, "Evicted"), condition(workload, "QuotaReserved")
        if is_true(workload, "Admitted"):
            break
        if evicted.get("status") == "True":
            cause = f"{evicted.get('reason')}: {one_line(evicted.get('message'))}"
            return f"put back into the queue '{queue}' ({cause}); it goes on from its last checkpoint"
        return ": ".join(filter(None, [f"queued in '{queue}'", one_line(reserved.get("message"))]))
    if job["spec"].get("suspend"):
        return f"queued in '{queue}'" if queue else "suspended"
    if not pods:
        return "admitted, no pods yet"
    waiting = [pod for pod in pods if phase(pod) in (None, "Pending")]
    for pod in waiting:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            cause = one_line(scheduled.get("message") or scheduled.get("reason"), 200)
            return f"{len(waiting)} of {nodes} pods wait for a machine: {cause}"
    if waiting:
        states = {
            ((container.get("state") or {}).get("waiting") or {}).get("reason")
            for pod in waiting
            for container in _containers(pod)
        }
        shown = ", ".join(sorted(state for state in states if state)) or "being placed"
        return f"{len(waiting)} of {nodes} pods are starting ({shown})"
    return f"running on {nodes} node{'s' if nodes > 1 else ''}"


_REMIND_S = 600.0
"""Seconds after which a job that still waits is mentioned again."""


@dataclass
class JobWatcher:
    """Tells a person how a job fares: its state when that changes, warnings once, every line its pods print."""

    cluster: Cluster
    launch: LaunchConfig
    name: str
    stage: str
    on_log: Callable[[str], None]
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    """The last lines that its pods printed."""
    pods: list[Object] = field(default_factory=list)
    """The last pods that were seen; a failed job's may be gone."""
    warnings: dict[str, Object] = field(default_factory=dict)
    """The events that warn of something, by their uid."""
    _reported: str = ""
    _reported_at: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _streams: dict[str, threading.Thread] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pull_failed_at: float | None = None

    def say(self, line: str) -> None:
        """A line of our own."""
        with self._lock:
            self.on_log(f"{self.stage}: {line}")

    def update(self, job: Object) -> None:
        """Read the pods, the queue and the warnings of a job, and tell what has changed.

        Raises:
            LaunchError: it can never start (no such image, no quota).
        """
        pods = self.cluster.find(POD, {JOBSET_LABEL: self.name})
        self.pods = pods or self.pods
        workloads: list[Object] = []
        with contextlib.suppress(ClusterError):  # no Kueue, or no right to look
            workloads = self.cluster.find(WORKLOAD, {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]})
        idle = [pod for pod in pods if phase(pod) != "Running"]
        # A quota's refusal is told about the batch Job that JobSet makes.
        self._read_warnings([self.name, f"{self.name}-node-0", *(pod["metadata"]["name"] for pod in idle)])
        text = describe_state(job, workloads, pods)
        now = time.monotonic()
        if text != self._reported:
            self._since = now
            self.say(text)
        elif now - self._reported_at > _REMIND_S and not text.startswith("running"):
            self.say(f"still {text} ({(now - self._since) / 60:.0f} min)")
        else:
            now = self._reported_at
        self._reported, self._reported_at = text, now
        self._stream([pod for pod in pods if phase(pod) not in (None, "Pending")])
        self._refuse(pods)

    def _refuse(self, pods: Sequence[Object]) -> None:
        if (quota := quota_failure(list(self.warnings.values()))) is not None and not pods:
            raise LaunchError(f"{self.stage}: {quota}")
        pull = pull_failure(pods, self.launch)
        if pull is None:
            self._pull_failed_at = None
            return
        first = self._pull_failed_at = self._pull_failed_at or time.monotonic()
        if "InvalidImageName" in pull.reason or time.monotonic() - first > self.launch.cluster.pull_timeout_s:
            raise LaunchError(f"{self.stage}: {pull}")

    def _read_warnings(self, names: Sequence[str]) -> None:
        for name in names:
            events: list[Object] = []
            with contextlib.suppress(ClusterError):  # they only explain
                events = self.cluster.find(EVENT, fields={"involvedObject.name": name})
            for event in events:
                key = event["metadata"]["uid"]
                if event.get("type") == "Warning" and key not in self.warnings:
                    self.warnings[key] = event
                    self.say(f"{event.get('reason')} ({name}): {one_line(event.get('message'), 250)}")

    def _stream(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            key = pod["metadata"]["uid"]
            labels = pod["metadata"].get("labels", {})
            if key in self._streams or labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") != "node":
                continue
            index = labels.get("batch.kubernetes.io/job-completion-index", "?")
            mark = f"[node {index}] " if nodes(self.launch) > 1 else ""
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
