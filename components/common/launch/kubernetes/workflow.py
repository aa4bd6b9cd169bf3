"""The Workflow of the run that a stage's jobs belong to."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .client import POD, WORKFLOW, Cluster, Object, own_namespace


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
