"""The controllers of Trainer, JobSet, Kueue and Argo, and the kubelet, as a test plays them: one status at a time.

Compared with: Trainer 2.3.0, JobSet 0.12.0, Kueue 0.20-devel and a kubelet 1.34, on 2026-12-01: names, labels and
conditions are those seen there. Argo and the KFP server were not run: what a Workflow looks like is from their source.
Known to differ: nothing follows by itself (a suspended job keeps its pods until the test takes them away); pods carry
no logs but those that the test prints.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from vthink.components.common.launch.kubernetes.client import (
    EVENT,
    POD,
    TRAIN_JOB,
    WORKFLOW,
    WORKLOAD,
    Cluster,
    ClusterError,
    Kind,
)
from vthink.tests.fakes.admission import kueue_priority

Object = dict[str, Any]
_QUEUE = "kueue.x-k8s.io/queue-name"


def until(happened: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something to become true; what it was."""
    deadline = time.monotonic() + timeout_s
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Hand:
    """Plays the controllers of Trainer, JobSet, Kueue and KServe, and the kubelet, over the API that is tested."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def set_status(self, kind: Kind, name: str, status: Object) -> None:
        """Write an object's status, as its controller does: through the subresource, with the version it has seen."""
        while True:
            found = self.cluster.get(kind, name)
            assert found is not None
            found["status"] = {**found.get("status", {}), **status}
            try:
                self.cluster.request("PUT", kind.path(self.cluster.namespace, name, "status"), body=found)
                return
            except ClusterError as error:
                if error.status != 409:
                    raise

    def condition(
        self, kind: Kind, name: str, type_: str, value: str = "True", reason: str = "Test", message: str = ""
    ) -> None:
        found = self.cluster.get(kind, name)
        assert found is not None
        others = [c for c in found.get("status", {}).get("conditions", []) if c["type"] != type_]
        entry = {"type": type_, "status": value, "reason": reason, "message": message}
        entry["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        self.set_status(kind, name, {"conditions": [*others, entry]})

    def jobs(self) -> list[Object]:
        """The TrainJobs, the oldest first."""
        return sorted(self.cluster.find(TRAIN_JOB), key=lambda job: int(job["metadata"]["resourceVersion"]))

    def job(self, attempt: int = 1, admitted: bool = True) -> Object:
        """Wait for the TrainJob of an attempt, which is admitted at once where there is a place."""
        wanted = str(attempt)
        made = until(
            lambda: next((j for j in self.jobs() if j["metadata"]["labels"]["vthink.dev/attempt"] == wanted), None)
        )
        if admitted and made["spec"].get("suspend"):
            self.suspend(made, False)
        return made

    def finish(self, job: Object, type_: str = "Complete", reason: str = "JobsCompleted", message: str = "") -> None:
        self.condition(TRAIN_JOB, job["metadata"]["name"], type_, "True", reason, message)

    def suspend(self, job: Object, value: bool) -> None:
        def change(found: Object) -> Object:
            found["spec"]["suspend"] = value
            return found

        self.cluster.update(TRAIN_JOB, job["metadata"]["name"], change)

    def pod(self, job: Object, index: int = 0, phase: str = "Running", **status: Any) -> str:
        """Create a node's pod; its name."""
        name = f"{job['metadata']['name']}-node-0-{index}-{secrets.token_hex(2)}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": job["metadata"]["name"]}
        owner["uid"] = job["metadata"]["uid"]
        container = {"name": "node", "image": job["spec"]["trainer"]["image"]}
        self.cluster.create(
            POD,
            {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
                # No scheduler of this name exists: on a real cluster the pod is never run.
                "spec": {"containers": [container], "schedulerName": "test"},
            },
        )  # fmt: skip
        self.set_status(POD, name, {"phase": phase, **status})
        return name

    def event(self, name: str, reason: str, message: str, kind: str = "TrainJob", type_: str = "Warning") -> None:
        namespace = self.cluster.namespace
        self.cluster.create(
            EVENT,
            {
                "apiVersion": "v1", "kind": "Event", "type": type_, "reason": reason, "message": message,
                "metadata": {"name": f"{name}.{secrets.token_hex(4)}", "namespace": namespace},
                "involvedObject": {"kind": kind, "name": name, "namespace": namespace},
            },
        )  # fmt: skip

    def workload(self, job: Object, **conditions: tuple[str, str, str]) -> None:
        """Kueue's view of a job: a condition's status, reason and message by its type."""
        name = f"trainjob-{job['metadata']['name']}"
        entries = [
            {
                "type": type_,
                "status": value,
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for type_, (value, reason, message) in conditions.items()
        ]
        if self.cluster.get(WORKLOAD, name) is None:
            labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
            body = {
                "apiVersion": WORKLOAD.api_version,
                "kind": "Workload",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "priority": kueue_priority(job),
                    "queueName": job["metadata"].get("labels", {}).get(_QUEUE, ""),
                },
            }
            self.cluster.create(WORKLOAD, body)
        self.set_status(WORKLOAD, name, {"conditions": entries})

    def workflow(self, name: str) -> Object:
        """The run's Workflow, and the launcher's pod in it, named ``<name>-launcher``."""
        body = {"apiVersion": WORKFLOW.api_version, "kind": "Workflow", "metadata": {"name": name}, "spec": {}}
        made = self.cluster.create(WORKFLOW, body)
        owner = {"apiVersion": WORKFLOW.api_version, "kind": "Workflow", "name": name, "uid": made["metadata"]["uid"]}
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"{name}-launcher", "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "main", "image": "x"}], "schedulerName": "test"},
        }  # fmt: skip
        self.cluster.create(POD, pod)
        return made
