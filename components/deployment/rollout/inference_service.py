"""The `InferenceService` of a version, the version as one of its predictors, and what the object says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Object, condition, is_true, one_line
from ...common.launch.kubernetes.trainjob import pod_placement
from ..ask import API_KEY
from ..config import DeploymentConfig
from ..registry import RegisteredVersion
from .trained_model import TrainedModel, vllm_arguments

_LINEAGE = ("fingerprint", "evaluation_uri", "data_uri", "git_commit")
"""Tags of a version (``vthink.…``) that its predictor carries as annotations (``vthink.dev/…``)."""

_HOPELESS = ("BlockedByFailedLoad", "InvalidSpec")


def predictor(
    version: RegisteredVersion,
    model: TrainedModel,
    section: DeploymentConfig,
    launch: LaunchConfig,
    namespace: str | None = None,
    *,
    canary: bool = False,
) -> Object:
    """A version as a predictor: in service, or as a canary, whose number of replicas is fixed."""
    settings = section.kserve
    tags = {name: version.tags.get(f"vthink.{name}") for name in _LINEAGE}
    annotations = {f"vthink.dev/{name.replace('_', '-')}": value for name, value in tags.items() if value}
    body: Object = {
        "name": version.predictor,
        "annotations": annotations | {"vthink.dev/model-version": f"{version.name}/{version.version}"},
        "serviceAccountName": settings.service_account,
        # Down to zero is for whoever scales from outside: KServe lets a canary have no more than what stands here.
        "minReplicas": settings.canary_replicas if canary else max(1, settings.min_replicas),
        **pod_placement(launch.placement("deploy", queued=False)),
        "model": _container(version, model, section, launch.cluster.accelerator),
    }
    if canary:
        body["model"]["name"] = "kserve-container"  # the CRD asks for a name here, KServe's webhook forbids it else
        return body
    body["maxReplicas"] = settings.max_replicas  # KServe refuses it in a canary
    if _autoscaler(section) == "keda":
        pods = f'namespace="{namespace or launch.cluster.namespace or "vthink"}",pod=~"{settings.name}-.*-predictor-.*"'
        query = " + ".join(f"sum(vllm:num_requests_{state}{{{pods}}})" for state in ("running", "waiting"))
        metric = {"backend": "prometheus", "serverAddress": settings.prometheus, "query": query}
        # KServe hands `value` to KEDA, which divides by the replicas whatever the type says here.
        target = {"type": "Value", "value": str(settings.requests_per_replica)}
        body["autoScaling"] = {"metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}
    return body


def _container(
    version: RegisteredVersion, model: TrainedModel, section: DeploymentConfig, accelerator: str | None
) -> Object:
    settings, vllm = section.kserve, section.kserve.model_format == "vLLM"
    resources: Object = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus and accelerator is not None:
        resources[accelerator] = str(settings.gpus)
    container: Object = {
        "modelFormat": {"name": settings.model_format},
        "runtime": settings.runtime,
        "storageUri": f"{version.source.rstrip('/')}/",
        "resources": {"requests": resources, "limits": dict(resources)},
    }
    if vllm:
        container["args"] = vllm_arguments(model, section)
        container["env"] = [{"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"}]
    if settings.api_key_secret is not None:
        # Not optional: a server without its key would answer everybody.
        reference = {"name": settings.api_key_secret, "key": "VLLM_API_KEY"}
        key = {"name": "VLLM_API_KEY" if vllm else API_KEY, "valueFrom": {"secretKeyRef": reference}}
        container.setdefault("env", []).append(key)
    return container


def _autoscaler(section: DeploymentConfig) -> str:
    if section.kserve.min_replicas == 0:
        return "external"
    return "keda" if section.kserve.max_replicas > section.kserve.min_replicas else "none"


def service_annotations(section: DeploymentConfig) -> dict[str, str]:
    """How KServe is to run the service."""
    # Named outright: spec.canary works only where the mode is.
    mode = {"deploymentMode": "Standard", "autoscalerClass": _autoscaler(section)}
    return {f"serving.kserve.io/{name}": value for name, value in mode.items()}


def inference_service(
    version: RegisteredVersion,
    model: TrainedModel,
    section: DeploymentConfig,
    launch: LaunchConfig,
    namespace: str | None = None,
) -> Object:
    """The `InferenceService` with a version in service and no canary.

    Args:
        version: the registered model.
        model: what its server must be told.
        section: the deployment's settings.
        launch: where the pods go.
        namespace: None: that of ``launch``, or of whoever applies it.
    """
    labels = {"app.kubernetes.io/part-of": "vthink"}
    metadata: Object = {"name": section.kserve.name, "labels": labels, "annotations": service_annotations(section)}
    if namespace or launch.cluster.namespace:
        metadata["namespace"] = namespace or launch.cluster.namespace
    return {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.name,
        "metadata": metadata,
        "spec": {"predictor": predictor(version, model, section, launch, namespace)},
    }


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an InferenceService, or one of its canaries, is ready."""

    ready: bool
    why: str
    """Why not."""
    hopeless: bool = False
    """Whether waiting will not help."""

    @classmethod
    def read(cls, service: Object, canary: str | None = None) -> Readiness:
        """Of the service, or of the canary of this name."""
        status: Object = service.get("status") or {}
        if int(status.get("observedGeneration") or 0) < int(service["metadata"]["generation"]):
            return cls(False, "the controller has not seen the change yet")
        part, ready, why = status, is_true(service, "Ready"), condition(service, "Ready")
        if canary is not None:
            part = next((c for c in status.get("canaryStatuses") or [] if c.get("name") == canary), {})
            ready = bool(part.get("ready")) and is_true(service, "PredictorReady")
            why = condition(service, "CanaryReady") or why
        model = part.get("modelStatus") or {}
        failure = (model.get("lastFailureInfo") or {}).get("message")
        text = failure or why.get("message") or why.get("reason") or "nothing was reported"
        hopeless = model.get("transitionStatus") in _HOPELESS
        return cls(ready and not hopeless, one_line(text, 300), hopeless)


def canaries(service: Object) -> dict[str, int]:
    """The candidates beside the predictor in service: share of the traffic in percent by name."""
    entries = service["spec"].get("canary") or []
    return {entry["predictor"]["name"]: int(entry.get("trafficPercent") or 0) for entry in entries}


def service_lines(service: Object) -> list[str]:
    """What is in service, and what beside it, a line each."""
    shares = canaries(service)
    lines = [_line("in service", service["spec"]["predictor"], 100 - sum(shares.values()), Readiness.read(service))]
    for entry in service["spec"].get("canary") or []:
        name = entry["predictor"]["name"]
        lines.append(_line("candidate", entry["predictor"], shares[name], Readiness.read(service, name)))
    return lines


def _line(role: str, predictor: Object, percent: int, readiness: Readiness) -> str:
    annotations = predictor.get("annotations") or {}
    version = annotations.get("vthink.dev/model-version") or predictor.get("name") or "unnamed"
    low = predictor.get("minReplicas", 1)
    high = predictor.get("maxReplicas", low)
    replicas = f"{low}" if low == high else f"{low}–{high}"
    state = "ready" if readiness.ready else f"not ready: {readiness.why}"
    return f"{role}: {version}, {percent} % of the traffic, {replicas} replica(s), {state}"
