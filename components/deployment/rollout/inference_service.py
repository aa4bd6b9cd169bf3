"""The `InferenceService` of a version that we trained, with vLLM's arguments, and what the object says of itself."""

import importlib.resources
import json
from dataclasses import dataclass
from typing import Self

from ...common.errors import UserError
from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Object, at, condition, is_true, one_line
from ...common.launch.kubernetes.trainjob import pod_placement
from ...common.model.folder import CARD, ModelCard
from ...common.model.prompts import Prompt, get_template
from ...common.storage.names import canonical_json, join
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ..ask import API_KEY
from ..config import DeploymentConfig
from ..registry import DTYPE, RegisteredVersion


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What serving must know of a model folder; ``family`` is its ``model_type``, ``dtype`` the type that evaluation
    computed in (empty: unknown)."""

    prompt: Prompt
    video: VideoConfig
    family: str
    chat_template: str
    dtype: str = ""

    @classmethod
    def read(cls, storage: Storage, version: RegisteredVersion) -> Self:
        """Read it from a version's folder in the store. UserError: a file is missing or damaged."""
        source = version.source
        try:
            card = ModelCard.load(storage.read_json(join(source, CARD)), join(source, CARD))
            config = storage.read_json(join(source, "config.json"))
            template = storage.read_bytes(join(source, "chat_template.jinja")).decode()
            get_template(card.prompt)
            return cls(card.prompt, card.video, str(config["model_type"]), template, version.tags.get(DTYPE, ""))
        except UserError as error:
            raise UserError(f"{source} cannot be served: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} cannot be served: vthink.json or config.json is damaged ({error})") from error


def serving_template(model: TrainedModel) -> str:
    """The chat template for a server that knows nothing of ours: it puts a question as training did.

    Around the model's own template it sets the system message, puts the media before the words, letters the options,
    and appends what the prompt template says for the problem type. A request may give ``options`` and
    ``problem_type`` in its ``chat_template_kwargs``; with ``whole_prompt`` its messages are left as they are."""
    template = get_template(model.prompt)
    texts = {"system": template.system or "", "suffix": template.suffix, "hints": template.type_hints}
    head = "".join(f"{{%- set vt_{name} = {json.dumps(value)} %}}" for name, value in texts.items())
    lines = importlib.resources.files(__package__).joinpath("question.jinja").read_text("utf-8").splitlines()
    return head + "".join(line.strip() for line in lines) + model.chat_template


def vllm_arguments(model: TrainedModel, section: DeploymentConfig) -> list[str]:
    """vLLM's arguments that make it sample, resize and ask as training did (spelling of vLLM 0.31; not run here).

    vLLM takes at most so many frames at so many per second, evenly spread; it rounds places down where `VideoConfig`
    takes the nearest frame, knows no least number, does not round to pairs, and does not recompress frames. What that
    changes shows in the smoke test."""
    video, server = model.video, section.server
    frames = video.num_frames or video.max_frames
    # Named outright: the loaders that vLLM 0.32 has for Qwen's processors go by frames per second, up to 768 of them,
    # and do not look at num_frames.
    sampling: dict[str, object] = {"num_frames": frames, "video_backend": "opencv"}
    if video.fps is not None:
        sampling["fps"] = video.fps
    pixels: dict[str, object] = {"min_pixels": video.min_pixels, "max_pixels": video.max_pixels}
    if model.family == "qwen3_vl":  # its processor's budget is for all frames together
        pixels = {"size": {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels * frames}}
    arguments = {
        "max-model-len": str(section.kserve.max_model_len),
        "limit-mm-per-prompt": '{"image":1,"video":1}',
        "media-io-kwargs": canonical_json({"video": sampling}),
        "mm-processor-kwargs": canonical_json(pixels),
        "generation-config": "vllm",  # the folder's own may penalise repetition, which evaluation did not
        "chat-template-content-format": "openai",
        "chat-template": serving_template(model),
        # Without, vLLM serves a float32 model in bfloat16, whatever evaluation computed in.
        "dtype": _dtype(model, section),
    }
    if section.kserve.gpus > 1:
        arguments["tensor-parallel-size"] = str(section.kserve.gpus)
    # KServe reads arguments as a Go template: braces of ours are quoted for it, and are themselves again in the pod.
    line = [f"--{name}={value}".replace("{{", "{{`{{`}}") for name, value in arguments.items()]
    domains = server.allowed_media_domains if server.allow_http_media else ()
    # Without any domain vLLM would fetch media from everywhere; this one cannot exist (RFC 2606).
    return [*line, "--allowed-media-domains", *([domain.lstrip(".") for domain in domains] or ["none.invalid"])]


def _dtype(model: TrainedModel, section: DeploymentConfig) -> str:
    """The configuration's, else evaluation's, else what ``auto`` means on such a machine (`ServerConfig.dtype`)."""
    if section.server.dtype != "auto":
        return section.server.dtype
    return model.dtype or ("bfloat16" if section.kserve.gpus else "float32")


def predictor(
    version: RegisteredVersion, model: TrainedModel, section: DeploymentConfig, launch: LaunchConfig,
    namespace: str | None = None, *, canary: bool = False,
) -> Object:  # fmt: skip
    """A version as a predictor: in service, or as a canary, whose number of replicas is fixed."""
    settings = section.kserve
    lineage = ("fingerprint", "evaluation_uri", "data_uri", "git_commit")
    tags = {name: version.tags.get(f"vthink.{name}") for name in lineage}
    annotations = {f"vthink.dev/{name.replace('_', '-')}": value for name, value in tags.items() if value}
    body: Object = {
        "name": version.predictor,
        "labels": {"sidecar.istio.io/inject": "false"},  # its container is not `restricted`; the gateway speaks TLS
        "annotations": annotations | {"vthink.dev/model-version": f"{version.name}/{version.version}"},
        "serviceAccountName": settings.service_account,
        # Down to zero is for whoever scales from outside: KServe lets a canary have no more than what stands here.
        "minReplicas": settings.canary_replicas if canary else max(1, settings.min_replicas),
        **({"priorityClassName": settings.priority_class} if settings.priority_class is not None else {}),
        **pod_placement(launch.placement("deploy", queued=False)),
        "model": _container(version.source, model, section, launch.cluster.accelerator),
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


def _container(source: str, model: TrainedModel, section: DeploymentConfig, accelerator: str | None) -> Object:
    settings, vllm = section.kserve, section.kserve.model_format == "vLLM"
    resources: Object = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus and accelerator is not None:
        resources[accelerator] = str(settings.gpus)
    container: Object = {
        "modelFormat": {"name": settings.model_format},
        "runtime": settings.runtime,
        "storageUri": f"{source.rstrip('/')}/",
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
    version: RegisteredVersion, model: TrainedModel, section: DeploymentConfig, launch: LaunchConfig,
    namespace: str | None = None,
) -> Object:  # fmt: skip
    """The `InferenceService` with a version in service and no canary. ``namespace`` None: that of ``launch``, which
    says where the pods go, or of whoever applies it."""
    labels = {"app.kubernetes.io/part-of": "vthink"}
    metadata: Object = {"name": section.kserve.name, "labels": labels, "annotations": service_annotations(section)}
    if namespace or launch.cluster.namespace:
        metadata["namespace"] = namespace or launch.cluster.namespace
    spec = {"predictor": predictor(version, model, section, launch, namespace)}
    kind = {"apiVersion": INFERENCE_SERVICE.api_version, "kind": INFERENCE_SERVICE.name}
    return {**kind, "metadata": metadata, "spec": spec}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an InferenceService, or one of its canaries, is ready; else why not, and whether waiting is hopeless."""

    ready: bool
    why: str
    hopeless: bool = False

    @classmethod
    def read(cls, service: Object | None, canary: str | None = None) -> Self:
        """Of the predictor in service, or of the canary of this name.

        Whether KServe has followed a change is seen by ``canaryStatuses``: its ``observedGeneration`` is that of the
        Deployment in service (mode Standard), which a canary leaves as it is. Of a canary nothing else is in the
        status, not even why it does not start (KServe 0.20, ``reconcileCanaryDeployments``)."""
        if service is None:
            return cls(False, "the InferenceService was deleted", hopeless=True)
        status: Object = service.get("status") or {}
        seen = {entry["name"]: entry for entry in status.get("canaryStatuses") or []}
        if canary is not None:
            entry = seen.get(canary, {})
            if entry.get("trafficPercent", 0) != canaries(service).get(canary) or not entry:
                return cls(False, "KServe has not followed the change yet")
            return cls(bool(entry.get("ready")), "its Deployment has no pod that is ready")
        if not seen.keys() <= canaries(service).keys():
            return cls(False, "KServe has not followed the change yet")
        model: Object = status.get("modelStatus") or {}
        hopeless = model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec")
        # The last failure is kept after its end, so it counts only while KServe says that it does.
        failure = at(model, "lastFailureInfo", "message") if hopeless else None
        why = condition(service, "Ready")
        text = failure or why.get("message") or why.get("reason") or "KServe has not reported anything"
        return cls(is_true(service, "Ready") and not hopeless, one_line(text, 300), hopeless)


def canaries(service: Object) -> dict[str, int]:
    """The candidates beside the predictor in service: share of the traffic in percent by name."""
    entries = service["spec"].get("canary") or []
    return {entry["predictor"]["name"]: int(entry.get("trafficPercent") or 0) for entry in entries}


def service_lines(service: Object) -> list[str]:
    """What is in service, and what beside it, a line each."""
    shares, predictors = canaries(service), [c["predictor"] for c in service["spec"].get("canary") or []]
    lines = [_line("in service", service["spec"]["predictor"], 100 - sum(shares.values()), Readiness.read(service))]
    return lines + [_line("candidate", p, shares[p["name"]], Readiness.read(service, p["name"])) for p in predictors]


def _line(role: str, predictor: Object, percent: int, readiness: Readiness) -> str:
    annotations = predictor.get("annotations") or {}
    version = annotations.get("vthink.dev/model-version") or predictor.get("name") or "unnamed"
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas")
    replicas = f"{low}" if high in (None, low) else f"{low}–{high}"
    state = "ready" if readiness.ready else f"not ready: {readiness.why}"
    return f"{role}: {version}, {percent} % of the traffic, {replicas} replica(s), {state}"
