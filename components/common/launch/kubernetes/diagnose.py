"""Why a job failed, and where one stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..diagnose import explain_output
from .client import Object, condition, is_true
from .trainjob import JOBSET_LABEL, image

if TYPE_CHECKING:
    from ...context import RunContext


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


def _finished(job: Object) -> bool:
    return is_true(job, "Complete") or is_true(job, "Failed")
