"""The `InferenceService` of a version, and the version as one of its predictors."""

from __future__ import annotations

import json

from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Object
from ...common.launch.kubernetes.trainjob import pod_placement
from ..ask import API_KEY
from ..config import DeploymentConfig
from ..registry import RegisteredVersion
from .trained_model import TrainedModel
from .vllm import vllm_arguments

ANNOTATION = "serving.kserve.io/"


def predictor_name(version: int) -> str:
    """Name of a version's predictor."""
    return f"v{version}"


def predictor(
    version: RegisteredVersion,
    model: TrainedModel,
    section: DeploymentConfig,
    launch: LaunchConfig,
    canary: bool = False,
) -> Object:
    """A version as a predictor: in service, or as a canary, whose number of replicas is fixed."""
    settings = section.kserve
    resources: Object = {"cpu": settings.cpu, "memory": settings.memory}
    accelerator = launch.cluster.accelerator
    if settings.gpus and accelerator is not None:
        resources[accelerator] = str(settings.gpus)
    container: Object = {
        # The CRD asks for a name in a canary, KServe's webhook forbids it in service.
        **({"name": "kserve-container"} if canary else {}),
        "modelFormat": {"name": settings.model_format},
        "runtime": settings.runtime,
        "storageUri": version.source if version.source.endswith("/") else f"{version.source}/",
        "resources": {"requests": resources, "limits": dict(resources)},
    }
    if settings.model_format == "vLLM":
        container["args"] = vllm_arguments(model, section)
        container["env"] = [{"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"}]
    if settings.api_key_secret is not None:
        # Not optional: a server without its key would answer everybody.
        reference = {"name": settings.api_key_secret, "key": "VLLM_API_KEY"}
        variable = "VLLM_API_KEY" if settings.model_format == "vLLM" else API_KEY
        container.setdefault("env", []).append({"name": variable, "valueFrom": {"secretKeyRef": reference}})
    kept = ("vthink.fingerprint", "vthink.evaluation_uri", "vthink.data_uri", "vthink.git_commit")
    lineage = {
        name.replace("vthink.", "vthink.dev/").replace("_", "-"): version.tags[name]
        for name in kept
        if version.tags.get(name)
    }
    lineage["vthink.dev/model-version"] = f"{version.name}/{version.version}"
    body: Object = {
        "name": predictor_name(version.version),
        "annotations": lineage,
        "serviceAccountName": settings.service_account,
        # Down to zero is for whoever scales from outside: KServe lets a canary have no more than what stands here.
        "minReplicas": settings.canary_replicas if canary else max(1, settings.min_replicas),
        # A canary's number is fixed: KServe refuses maxReplicas there.
        **({} if canary else {"maxReplicas": settings.max_replicas}),
        **pod_placement(launch.placement("deploy", queued=False)),
        "model": container,
    }
    if not canary and _autoscaler(section) == "keda":
        in_work = f'{{namespace="{{namespace}}",pod=~"{settings.name}-.*-predictor-.*"}}'
        query = f"sum(vllm:num_requests_running{in_work}) + sum(vllm:num_requests_waiting{in_work})"
        metric = {"backend": "prometheus", "serverAddress": settings.prometheus, "query": query}
        # KServe hands `value` to KEDA, which divides by the replicas whatever the type says here.
        target = {"type": "Value", "value": str(settings.requests_per_replica)}
        body["autoScaling"] = {"metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}
    return body


def _autoscaler(section: DeploymentConfig) -> str:
    settings = section.kserve
    if settings.min_replicas == 0:
        return "external"
    return "keda" if settings.max_replicas > settings.min_replicas else "none"


def inference_service(
    version: RegisteredVersion,
    model: TrainedModel,
    section: DeploymentConfig,
    launch: LaunchConfig,
    namespace: str | None = None,
) -> Object:
    """The `InferenceService` with a version in service and no canary."""
    service = predictor(version, model, section, launch)
    text = json.dumps(service).replace("{namespace}", namespace or launch.cluster.namespace or "vthink")
    metadata: Object = {
        "name": section.kserve.name,
        "labels": {"app.kubernetes.io/part-of": "vthink"},
        # Named outright: spec.canary works only where the mode is.
        "annotations": {
            f"{ANNOTATION}deploymentMode": "Standard",
            f"{ANNOTATION}autoscalerClass": _autoscaler(section),
        },
    }
    if namespace or launch.cluster.namespace:
        metadata["namespace"] = namespace or launch.cluster.namespace
    return {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.name,
        "metadata": metadata,
        "spec": {"predictor": json.loads(text)},
    }
