"""What stands between a request and the store of a played Kubernetes API: roles, webhooks, priorities, quota.

Read in the source, on 2026-12-01: KServe (aaac4e2, after 0.20.0: ``inference_service_defaults.go``,
``inference_service_validation.go``), Trainer (after 2.3.0: ``trainjob_webhook.go``, the JobSet plugin's ``Validate``),
Kueue 0.20-devel (``trainjob_webhook.go``). Their texts are the ones that a real API server 1.34 passes on. Only what
concerns this project is played: of KServe's rules those about models, names, replicas and canaries.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from vthink.tests.fakes.kubernetes_store import Object, Refusal, Resource, now

K8S = Path(__file__).parents[2] / "k8s"
PIPELINE_ROLE = K8S / "team" / "rbac.yaml"


def manifests(path: str | Path) -> list[Object]:
    """The objects of a file of ``k8s/``."""
    return [obj for obj in yaml.safe_load_all((K8S / path).read_text()) if obj]


# --- roles ---

Access = tuple[str, str, str, str | None]
"""Verb, group, resource (``pods/log``), name."""


def access(
    method: str, group: str, plural: str, name: str | None, below: str | None, query: Mapping[str, str]
) -> Access:
    """What a request needs the right to, as the API server works it out."""
    reading = "watch" if query.get("watch") in ("true", "1") else "get" if name else "list"
    verbs = {"GET": reading, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    return verbs[method], group, "/".join(filter(None, [plural, below])), name


def grants(rules: Iterable[Object], wanted: Access) -> Object | None:
    """The rule of a Role that grants an access; None: none does."""
    verb, group, resource, name = wanted
    for rule in rules:
        named = rule.get("resourceNames")
        fits = group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
        if fits and (named is None or name in named):
            return rule
    return None


def forbidden(user: str, wanted: Access, namespace: str) -> Refusal:
    verb, group, resource, name = wanted
    title = f"{resource}.{group}" if group else resource
    what = f'{title} "{name}" is' if name else f"{title} is"
    where = f'resource "{resource}" in API group "{group}" in the namespace "{namespace}"'
    return Refusal(403, "Forbidden", f'{what} forbidden: User "{user}" cannot {verb} {where}')


# --- webhooks ---

RUNTIMES: dict[str, dict[str, set[str]]] = {
    "vthink-torch": {"node": {"node"}},
    "vthink-torch-rdma": {"node": {"node"}},
    "vthink-torch-vllm": {"node": {"node"}, "vllm": {"vllm"}},
}
"""Containers by replicated job of the ClusterTrainingRuntimes in ``k8s/cluster``."""
TYPED = {"TrainJob", "InferenceService", "Workload"}
"""Kinds whose webhooks decode the object before its schema is looked at: a wrong type is 400 there, not 422."""


def denied(webhook: str, why: str) -> Refusal:
    return Refusal(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {why}')


def set_webhook_defaults(resource: Resource, new: Object, old: Object | None) -> None:
    """What the mutating webhooks write into an object."""
    if resource.kind == "TrainJob":
        _default_train_job(new, old)
    if resource.kind == "InferenceService":
        model = new["spec"].get("predictor", {}).get("model")
        # Only of the predictor in service: a canary inherits it, as it inherits all that it does not say.
        if model is not None:
            if model["modelFormat"]["name"] in ("vLLM", "triton"):
                model.setdefault("protocolVersion", "v2")
            annotations = new["metadata"].setdefault("annotations", {})
            annotations.setdefault("serving.kserve.io/modelFormat", model["modelFormat"]["name"])


def _default_train_job(new: Object, old: Object | None) -> None:
    patches = new["spec"].setdefault("runtimePatches", [])
    if old is None:  # Kueue's, and on creation only
        if "kueue.x-k8s.io/queue-name" in new["metadata"].get("labels", {}):
            new["spec"]["suspend"] = True
        patches.append({"manager": "kueue.x-k8s.io/manager", "trainingRuntimeSpec": {"template": {"spec": {}}}})
    before = {patch["manager"]: patch for patch in (old or {}).get("spec", {}).get("runtimePatches", [])}
    for patch in patches:
        same = before.get(patch["manager"], {})
        timeless = [{k: v for k, v in entry.items() if k != "time"} for entry in (patch, same)]
        patch["time"] = same.get("time") if same and timeless[0] == timeless[1] else patch.get("time") or now()


def check_webhooks(resource: Resource, new: Object, old: Object | None) -> None:
    """Refuse what the validating webhooks refuse."""
    changed = old is None or new["spec"] != old["spec"]
    if resource.kind == "TrainJob" and changed and (why := _train_job_fault(new)):
        raise denied("validator.trainjob.trainer.kubeflow.org", why)
    if resource.kind == "InferenceService" and (why := _inference_service_fault(new, old)):
        raise denied("inferenceservice.kserve-webhook-server.validator", why)


def _train_job_fault(new: Object) -> str | None:
    name = new["spec"]["runtimeRef"]["name"]
    jobs = RUNTIMES.get(name)
    if jobs is None:
        return f'spec.runtimeRef: Invalid value: ClusterTrainingRuntime.trainer.kubeflow.org "{name}" not found: specified clusterTrainingRuntime must be created before the TrainJob is created'  # noqa: E501
    for patch in new["spec"].get("runtimePatches", []):
        if "/" not in patch["manager"]:
            return f"spec.runtimePatches.manager: Invalid value: {patch['manager']!r}: must be a domain-prefixed path"
        spec = patch.get("trainingRuntimeSpec", {}).get("template", {}).get("spec", {})
        for job in spec.get("replicatedJobs", []):
            if job["name"] not in jobs:
                return "spec.runtimePatches: Invalid value: must not have replicated job that doesn't exist in the runtime job template"  # noqa: E501
            pod = job.get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
            for container in pod.get("containers", []):
                if container["name"] not in jobs[job["name"]]:
                    return f"spec.runtimePatches: Invalid value: must not have container that doesn't exist in the runtime job {job['name']}"  # noqa: E501
                if container.get("env") and container["name"] == "node":
                    return "spec.runtimePatches: Invalid value: must not have envs for the dataset-initializer, model-initializer, node containers"  # noqa: E501
    return None


def _inference_service_fault(new: Object, old: Object | None) -> str | None:
    spec, annotations = new["spec"], new["metadata"].get("annotations", {})
    stable, canaries = spec["predictor"], spec.get("canary", [])
    mode = annotations.get("serving.kserve.io/deploymentMode", "Standard")
    if old is not None:
        before = old["spec"]["predictor"]
        same = before.get("model", {}).get("storageUri") == stable.get("model", {}).get("storageUri")
        if before.get("name", "") != stable.get("name", "") and same:
            return "predictor.name change requires a model change (e.g. storageUri)"
    low, high = stable.get("minReplicas", 1), stable.get("maxReplicas", 0)
    if high and low > high:
        return "MinReplicas cannot be greater than MaxReplicas."
    if stable.get("model", {}).get("name"):
        return "Custom container name is not allowed"
    if (canaries and "serving.kserve.io/deploymentMode" not in annotations) or (canaries and mode != "Standard"):
        return "canary is only supported in Standard deployment mode"
    names: set[str] = set()
    for index, canary in enumerate(canaries):
        predictor, name = canary["predictor"], canary["predictor"].get("name", "")
        if not name:
            return f"canary[{index}] predictor.name is required"
        if name in names:
            return f'canary predictor.name "{name}" is duplicated'
        if name == stable.get("name", ""):
            return f'canary predictor.name "{name}" conflicts with stable predictor name'
        names.add(name)
        for key in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if predictor.get(key):
                return f'canary "{name}" must not set {key} (canary uses fixed replicas)'
        if predictor.get("minReplicas", 1) > low:
            return f'canary "{name}" minReplicas ({predictor["minReplicas"]}) must not exceed stable predictor minReplicas ({low})'  # noqa: E501
    total = sum(canary.get("trafficPercent", 0) for canary in canaries)
    return f"sum of canary trafficPercent values ({total}) must be <= 100" if total > 100 else None


# --- priorities and quota ---


def priority_classes() -> dict[tuple[str, str], int]:
    """Values of the classes in ``k8s/cluster`` by kind and name."""
    return {(obj["kind"], obj["metadata"]["name"]): obj["value"] for obj in manifests("cluster/priorities.yaml")}


def check_priority(resource: Resource, new: Object) -> None:
    """A pod's class must exist, and its value becomes the pod's (the admission plugin ``Priority``)."""
    if resource.kind != "Pod":
        return
    name = new["spec"].get("priorityClassName")
    value = 0 if name is None else priority_classes().get(("PriorityClass", name))
    if value is None:
        pod = new["metadata"]["name"]
        raise Refusal(403, "Forbidden", f'pods "{pod}" is forbidden: no PriorityClass with name {name} was found')
    new["spec"]["priority"] = value


def kueue_priority(job: Object) -> int:
    """The priority of a job's Workload: of its WorkloadPriorityClass, or else of its pods' PriorityClass, or else 0."""
    classes, labels = priority_classes(), job["metadata"].get("labels", {})
    if (name := labels.get("kueue.x-k8s.io/priority-class")) is not None:
        return classes["WorkloadPriorityClass", name]
    (runtime,) = manifests("cluster/runtimes/torch/runtime.yaml")
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return classes["PriorityClass", pod["priorityClassName"]] if "priorityClassName" in pod else 0


def check_quota(resource: Resource, new: Object, used: int, limit: int | None) -> None:
    if limit is not None and used >= limit:
        key = f"count/{resource.title}"
        what = f"exceeded quota: vthink, requested: {key}=1, used: {key}={used}, limited: {key}={limit}"
        raise Refusal(403, "Forbidden", f'{resource.title} "{new["metadata"]["name"]}" is forbidden: {what}')


# --- Workloads ---

_TEXT = {"type": "string", "minLength": 1}
_CONDITION: Object = {
    "type": "object",
    "required": ["lastTransitionTime", "message", "reason", "status", "type"],
    "properties": {
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "message": {"type": "string"},
        "observedGeneration": {"type": "integer"},
        "reason": _TEXT | {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "type": _TEXT,
    },
}
WORKLOAD_SCHEMA: Object = {
    "type": "object",
    "properties": {
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "status": {
            "type": "object",
            "properties": {"conditions": {"type": "array", "items": copy.deepcopy(_CONDITION)}},
        },
    },
}
"""Of Kueue's v1beta2 Workload what is written here: the conditions, as in its CRD (0.20-devel)."""
