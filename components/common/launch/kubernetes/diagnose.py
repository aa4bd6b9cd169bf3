"""Why a job failed, and where one stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config import QUEUE_LABEL, LaunchConfig
from ..diagnose import Failure, explain_output
from .client import Object, condition, is_true, one_line, phase
from .trainjob import JOBSET_LABEL, image

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
                    memory = job["spec"]["trainer"]["resourcesPerNode"]["limits"]["memory"]
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
