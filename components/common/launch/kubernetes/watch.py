"""Where a job stands, why it failed, and what a person is told of both."""

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..config import QUEUE_LABEL, LaunchConfig
from ..job import Failure, explain_output
from ..process import LaunchError
from .client import EVENT, POD, WORKLOAD, Cluster, ClusterError, Object, at, condition, is_true, one_line, phase
from .trainjob import JOBSET_LABEL, image, nodes

_REMIND_S = 600.0  # seconds after which a job that still waits is mentioned again
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_LOST = {"Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Terminated", "Shutdown"}
_QUOTA = re.compile(r"exceeded quota|forbidden: maximum|is forbidden", re.I)
_NCCL = re.compile(
    r"Watchdog caught collective operation timeout|NCCL (error|timeout)|ProcessGroupNCCL.*timed? ?out", re.I
)


def _containers(pods: Sequence[Object]) -> Iterator[tuple[Object, Object]]:
    """Each pod with each of its containers' states."""
    for pod in pods:
        for kind in ("initContainerStatuses", "containerStatuses"):
            yield from ((pod, container) for container in at(pod, "status", kind) or [])


def _pull_failure(pods: Sequence[Object], launch: LaunchConfig) -> Failure | None:
    """An image that cannot be pulled."""
    for _, container in _containers(pods):
        if (reason := at(container, "state", "waiting", "reason")) in _PULL:
            message = at(container, "state", "waiting", "message") or "no reason given"
            return Failure(
                f"the image {container.get('image') or image(launch)} cannot be pulled "
                f"({one_line(f'{reason}: {message}', 200)})",
                "check launch.cluster.image, and the pull secret of the namespace",
            )
    return None


def _quota_failure(events: Sequence[Object]) -> Failure | None:
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
    for pod in pods:  # eviction, preemption, a lost node
        cause = at(pod, "status", "reason")
        if is_true(pod, "DisruptionTarget"):
            cause = condition(pod, "DisruptionTarget").get("reason") or "DisruptionTarget"
        elif cause not in _LOST:
            continue
        reason = f"the machine of {pod['metadata']['name']} was taken away ({cause})"
        return Failure(reason, "it goes on from the last checkpoint", machines_lost=True)
    for pod, container in _containers(pods):
        if "OOMKilled" in [at(container, state, "terminated", "reason") for state in ("state", "lastState")]:
            return Failure(
                f"{pod['metadata']['name']} ran out of memory (OOMKilled, limit {launch.cluster.memory})",
                "raise launch.cluster.memory, or use fewer processes per node",
            )
    if (failure := _pull_failure(pods, launch) or _quota_failure(events)) is not None:
        return failure
    if any(_NCCL.search(line) for line in lines):
        return Failure(
            "the GPUs stopped talking to each other (NCCL)",
            "see which rank printed an error first; then NCCL_DEBUG=INFO and NCCL_SOCKET_IFNAME in the launcher's "
            "environment, and the NetworkPolicy between training pods",
        )
    printed, failed = explain_output(lines), condition(job, "Failed")
    told = one_line(f"{failed.get('reason') or 'Failed'}: {failed.get('message') or 'no message'}", 300)
    look = f"see the pods' logs: kubectl logs -l {JOBSET_LABEL}={job['metadata']['name']}"
    return Failure(printed.reason or told, printed.advice or look)


def describe_state(job: Object, workloads: Sequence[Object], pods: Sequence[Object]) -> str:
    """Where a job stands, in one line: queued and why, waiting for machines, starting, running."""
    queue = at(job, "metadata", "labels", QUEUE_LABEL)
    nodes = job["spec"]["trainer"].get("numNodes", 1)
    if workloads and not is_true(workloads[0], "Admitted"):
        if is_true(workloads[0], "Evicted"):
            evicted = condition(workloads[0], "Evicted")
            cause = f"{evicted.get('reason')}: {one_line(evicted.get('message'))}"
            return f"put back into the queue '{queue}' ({cause}); it goes on from its last checkpoint"
        why = one_line(condition(workloads[0], "QuotaReserved").get("message"))
        return ": ".join(filter(None, [f"queued in '{queue}'", why]))
    if job["spec"].get("suspend"):
        return f"queued in '{queue}'" if queue else "suspended"
    if not pods:
        return "admitted, no pods yet"
    waiting = [pod for pod in pods if phase(pod) in (None, "Pending")]
    if not waiting:
        return f"running on {nodes} node{'s' if nodes > 1 else ''}"
    for pod in waiting:
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            cause = one_line(scheduled.get("message") or scheduled.get("reason"), 200)
            return f"{len(waiting)} of {nodes} pods wait for a machine: {cause}"
    states = {at(container, "state", "waiting", "reason") for _, container in _containers(waiting)}
    return f"{len(waiting)} of {nodes} pods are starting ({', '.join(sorted(filter(None, states))) or 'being placed'})"


@dataclass
class JobWatcher:
    """Tells a person how a job fares: its state when that changes, warnings once, every line its pods print."""

    cluster: Cluster
    launch: LaunchConfig
    name: str
    stage: str
    on_log: Callable[[str], None]
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=400))  # the last lines that its pods printed
    pods: list[Object] = field(default_factory=list)  # the last pods that were seen; a failed job's may be gone
    warnings: dict[str, Object] = field(default_factory=dict)  # the events that warn of something, by their uid
    _reported: str = ""
    _reported_at: float = 0.0
    _since: float = 0.0
    _streams: dict[str, threading.Thread] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pull_failed_at: float | None = None

    def say(self, line: str) -> None:
        """A line of our own."""
        with self._lock:
            self.on_log(f"{self.stage}: {line}")

    def update(self, job: Object) -> None:
        """Read the pods, the queue and the warnings of a job, and tell what has changed; LaunchError when it can never
        start (no such image, no quota)."""
        pods = self.cluster.find(POD, {JOBSET_LABEL: self.name})
        self.pods = pods or self.pods
        workloads: list[Object] = []
        with contextlib.suppress(ClusterError):  # no Kueue, or no right to look
            workloads = self.cluster.find(WORKLOAD, {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]})
        idle = [pod["metadata"]["name"] for pod in pods if phase(pod) != "Running"]
        # A quota's refusal is told about the batch Job that JobSet makes.
        for name in (self.name, f"{self.name}-node-0", *idle):
            self._read_warnings(name)
        text, now = describe_state(job, workloads, pods), time.monotonic()
        if text != self._reported:
            self._reported, self._reported_at, self._since = text, now, now
            self.say(text)
        elif now - self._reported_at > _REMIND_S and not text.startswith("running"):
            self._reported_at = now
            self.say(f"still {text} ({(now - self._since) / 60:.0f} min)")
        for pod in pods:
            if phase(pod) not in (None, "Pending"):
                self._stream(pod)
        if not pods and (quota := _quota_failure(list(self.warnings.values()))) is not None:
            raise LaunchError(f"{self.stage}: {quota}")
        pull = _pull_failure(pods, self.launch)
        if pull is None:
            self._pull_failed_at = None
            return
        self._pull_failed_at = first = self._pull_failed_at or now
        if "InvalidImageName" in pull.reason or now - first > self.launch.cluster.pull_timeout_s:
            raise LaunchError(f"{self.stage}: {pull}")

    def _read_warnings(self, name: str) -> None:
        with contextlib.suppress(ClusterError):  # they only explain
            for event in self.cluster.find(EVENT, fields={"involvedObject.name": name}):
                key = event["metadata"]["uid"]
                if event.get("type") == "Warning" and key not in self.warnings:
                    self.warnings[key] = event
                    self.say(f"{event.get('reason')} ({name}): {one_line(event.get('message'), 250)}")

    def _stream(self, pod: Object) -> None:
        key, labels = pod["metadata"]["uid"], pod["metadata"].get("labels", {})
        if key in self._streams or labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") != "node":
            return
        index = labels.get("batch.kubernetes.io/job-completion-index", "?")
        arguments = (pod["metadata"]["name"], f"[node {index}] " if nodes(self.launch) > 1 else "")
        self._streams[key] = threading.Thread(target=self._follow_log, args=arguments, name=f"logs-{key}", daemon=True)
        self._streams[key].start()

    def _follow_log(self, pod: str, mark: str) -> None:
        """Copy what a pod prints; a stream that breaks is taken up after the last line, to the nanosecond."""
        last: str | None = None
        while True:
            follow = not self._ended.is_set()
            try:
                for stamp, text in self.cluster.logs(pod, "node", last, follow):
                    if last is not None and _instant(stamp) <= _instant(last):
                        continue
                    last = stamp
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
