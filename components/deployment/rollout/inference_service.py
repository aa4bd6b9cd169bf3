"""The `InferenceService` of a version, and the version as one of its predictors."""

from __future__ import annotations

from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Object
from ...common.launch.kubernetes.trainjob import pod_placement
from ..ask import API_KEY
from ..config import DeploymentConfig
from ..registry import RegisteredVersion
from .trained_model import TrainedModel
from .vllm import vllm_arguments

_LINEAGE = ("fingerprint", "evaluation_uri", "data_uri", "git_commit")
"""Tags of a version (``vthink.…``) that its predictor carries as annotations (``vthink.dev/…``)."""


def predictor_name(version: int) -> str:
    """Name of a version's predictor."""
    return f"v{version}"


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
        "name": predictor_name(version.version),
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
    settings = section.kserve
    if settings.min_replicas == 0:
        return "external"
    return "keda" if settings.max_replicas > settings.min_replicas else "none"


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
    metadata: Object = {
        "name": section.kserve.name,
        "labels": {"app.kubernetes.io/part-of": "vthink"},
        "annotations": service_annotations(section),
    }
    if namespace or launch.cluster.namespace:
        metadata["namespace"] = namespace or launch.cluster.namespace
    return {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.name,
        "metadata": metadata,
        "spec": {"predictor": predictor(version, model, section, launch, namespace)},
    }
