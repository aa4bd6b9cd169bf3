"""The served model on a cluster: its `InferenceService`, and how a new version takes the place of the one in service.

A version is a predictor of its own, named ``v<version>``. A candidate starts beside the predictor in service, without
traffic; held-out items are asked of both; then it gets a share of the traffic, then all of it. Whatever goes wrong
before that, the candidate is taken away and the predictor in service stays as it was. KServe renames the predictor
without restarting it (KServe 0.20 and later, mode ``Standard``; the controllers' side is UNVERIFIED here).

What a vLLM server must be told so that it sees what training saw is generated from the model's own card
(``vthink.json``) and chat template.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.cluster import INFERENCE_SERVICE, Cluster, ClusterError, Object, condition, is_true
from ..common.config import ConfigError, LaunchConfig, VideoConfig
from ..common.prompts import get_template
from ..common.storage import Storage, StorageError, join
from ..common.trainjob import pod_placement
from .client import API_KEY, AskError
from .config import DeploymentConfig
from .registry import ModelVersion

ANNOTATION = "serving.kserve.io/"
NO_DOMAIN = "none.invalid"
"""A host that cannot exist (RFC 2606): without any, vLLM would fetch media from everywhere."""


class RolloutError(RuntimeError):
    """A version did not go into service, and why, in one line; what was in service still is."""


# --- what training saw --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What serving must know of a model folder."""

    prompt: str
    """Name of the prompt template."""
    video: VideoConfig
    family: str
    """``model_type`` of its ``config.json``."""
    chat_template: str
    """The chat template of its tokenizer."""

    @classmethod
    def read(cls, storage: Storage, source: str) -> TrainedModel:
        """Read it from a model folder in the store.

        Raises:
            RolloutError: a file is missing or damaged.
        """
        try:
            card = storage.read_json(join(source, "vthink.json"))
            config = storage.read_json(join(source, "config.json"))
            template = storage.read_bytes(join(source, "chat_template.jinja")).decode()
            video = VideoConfig.load(card["video"], join(source, "vthink.json"))
            get_template(card["prompt"])
            return cls(str(card["prompt"]), video, str(config["model_type"]), template)
        except (StorageError, ConfigError) as error:
            raise RolloutError(f"{source} cannot be served: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise RolloutError(f"{source} cannot be served: vthink.json or config.json is damaged ({error})") from error


def serving_template(model: TrainedModel) -> str:
    """The chat template for a server that knows nothing of ours: it puts a question as training did.

    Around the model's own template it sets the system message, puts the media before the words, letters the options,
    and appends what the prompt template says for the problem type. A request may give ``options`` and
    ``problem_type`` in its ``chat_template_kwargs``.
    """
    template = get_template(model.prompt)
    quoted = {
        name: json.dumps(value)
        for name, value in (
            ("system", template.system or ""),
            ("suffix", template.suffix),
            ("hints", template.type_hints),
        )
    }
    return (
        f"{{%- set vt_system = {quoted['system']} %}}"
        f"{{%- set vt_suffix = {quoted['suffix']} %}}"
        f"{{%- set vt_hints = {quoted['hints']} %}}"
        "{%- set vt_options = options | default([], true) %}"
        "{%- set vt_type = problem_type | default('multiple_choice' if vt_options else 'free_form', true) %}"
        "{%- set vt = namespace(messages=[], media=[], text=[]) %}"
        "{%- if vt_system and messages[0]['role'] not in ['system', 'developer'] %}"
        "{%- set vt.messages = [{'role': 'system', 'content': [{'type': 'text', 'text': vt_system}]}] %}"
        "{%- endif %}"
        "{%- for message in messages %}"
        "{%- if loop.last and message['role'] == 'user' %}"
        "{%- set content = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
        "else message['content'] %}"
        "{%- for part in content %}"
        "{%- if part['type'] == 'text' %}{%- set vt.text = vt.text + [part['text'] | trim] %}"
        "{%- else %}{%- set vt.media = vt.media + [part] %}{%- endif %}"
        "{%- endfor %}"
        "{%- for option in vt_options %}"
        "{%- set vt.text = vt.text + ['ABCDEFGHIJKLMNOPQRSTUVWXYZ'[loop.index0] + '. ' + option] %}"
        "{%- endfor %}"
        "{%- for words in [vt_suffix, vt_hints.get(vt_type, '')] if words %}"
        "{%- set vt.text = vt.text + [words] %}"
        "{%- endfor %}"
        "{%- set words = [{'type': 'text', 'text': vt.text | join('\\n')}] %}"
        "{%- set vt.messages = vt.messages + [{'role': 'user', 'content': vt.media + words}] %}"
        "{%- else %}{%- set vt.messages = vt.messages + [message] %}{%- endif %}"
        "{%- endfor %}"
        "{%- set messages = vt.messages %}"
    ) + model.chat_template


def vllm_arguments(model: TrainedModel, section: DeploymentConfig) -> list[str]:
    """vLLM's arguments that make it sample, resize and ask as training did (spelling of vLLM 0.31; not run here).

    vLLM takes at most so many frames at so many per second, evenly spread, as `VideoConfig` does; it knows no least
    number of frames, does not round to pairs, and does not recompress frames. What that changes shows in the smoke
    test.
    """
    video, server = model.video, section.server
    sampling: dict[str, Any] = {"num_frames": video.num_frames or video.max_frames}
    if video.fps is not None:
        sampling["fps"] = int(video.fps) if video.fps == int(video.fps) else video.fps
    if model.family == "qwen3_vl":  # its processor's budget is for all frames together
        frames = sampling["num_frames"]
        edges = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels * frames}
        pixels: dict[str, Any] = {"size": edges}
    else:
        pixels = {"min_pixels": video.min_pixels, "max_pixels": video.max_pixels}
    domains = server.allowed_media_domains if server.allow_http_media else ()
    arguments = {
        "max-model-len": str(section.kserve.max_model_len),
        "limit-mm-per-prompt": '{"image":1,"video":1}',
        "media-io-kwargs": _json({"video": sampling}),
        "mm-processor-kwargs": _json(pixels),
        "generation-config": "vllm",  # the folder's own may penalise repetition, which evaluation did not
        "chat-template-content-format": "openai",
        "chat-template": serving_template(model),
    }
    if server.dtype != "auto":
        arguments["dtype"] = server.dtype
    if section.kserve.gpus > 1:
        arguments["tensor-parallel-size"] = str(section.kserve.gpus)
    # KServe reads arguments as a Go template: braces of ours are quoted for it, and are themselves again in the pod.
    found = [f"--{name}={value}".replace("{{", "{{`{{`}}") for name, value in arguments.items()]
    return [*found, "--allowed-media-domains", *([d.lstrip(".") for d in domains] or [NO_DOMAIN])]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# --- the object ---------------------------------------------------------------------------------------------


def variant(version: int) -> str:
    """Name of a version's predictor."""
    return f"v{version}"


def predictor(
    version: ModelVersion, model: TrainedModel, section: DeploymentConfig, launch: LaunchConfig, canary: bool = False
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
    found: Object = {
        "name": variant(version.version),
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
        found["autoScaling"] = {"metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}
    return found


def _autoscaler(section: DeploymentConfig) -> str:
    settings = section.kserve
    if settings.min_replicas == 0:
        return "external"
    return "keda" if settings.max_replicas > settings.min_replicas else "none"


def inference_service(
    version: ModelVersion,
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


# --- rolling out --------------------------------------------------------------------------------------------

Test = Callable[[str], Mapping[str, Any]]
"""Asks the held-out items of the server at a URL: ``passed``, ``why``, ``correct`` and so on, see `deploy`."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One version's way into service."""

    cluster: Cluster
    section: DeploymentConfig
    launch: LaunchConfig
    version: ModelVersion
    model: TrainedModel
    say: Callable[[str], None]
    tick_s: float = 5.0

    @property
    def name(self) -> str:
        """Name of the InferenceService."""
        return self.section.kserve.name

    def url(self, predictor_name: str | None) -> str:
        """Where a predictor's Service is; KServe names it after the InferenceService and the predictor."""
        service = "-".join(filter(None, [self.name, predictor_name, "predictor"]))
        return self.section.kserve.url.format(service=service, namespace=self.cluster.namespace)

    def run(self, test: Test, hold: bool = False) -> dict[str, Any]:
        """Bring the version into service.

        Args:
            test: the smoke test.
            hold: stop with the candidate at its share of the traffic; `promote` goes on from there.

        Returns:
            The record of the smoke test, with ``stable`` (the same items asked of the model in service) where there
            was one; ``promoted`` says whether the version has all of the traffic.

        Raises:
            RolloutError: it did not pass or did not become ready. What was in service still is.
        """
        found = self.cluster.get(INFERENCE_SERVICE, self.name)
        ours = variant(self.version.version)
        if found is None:
            return self._first(test)
        if found["spec"]["predictor"].get("name") == ours:
            # Already there: a deployer was killed before the alias moved, or the version is deployed again.
            self._update(lambda spec: {**spec, "predictor": self._stable(), "canary": []})
            self._wait("it")
            return {**self._tested(test, self.url(ours)), "promoted": True}
        in_service = found["spec"]["predictor"]
        with self._withdrawn_on_failure(found):
            if not any(entry["predictor"]["name"] == ours for entry in found["spec"].get("canary") or []):
                self._set_canary(in_service, 0)
            self._wait(f"the candidate {ours}", ours)
            record = self._compared(test, in_service)
            if self.section.kserve.canary_percent:
                self._set_canary(in_service, self.section.kserve.canary_percent)
                self._wait(f"the candidate {ours}", ours)
                if hold:
                    return {**record, "promoted": False}
                self._stays_ready(ours)
            elif hold:
                return {**record, "promoted": False}
            self._promote()
            return {**record, "promoted": True}

    def _first(self, test: Test) -> dict[str, Any]:
        """Nothing is in service yet; what fails is deleted."""
        body = inference_service(self.version, self.model, self.section, self.launch, self.cluster.namespace)
        made = self.cluster.create(INFERENCE_SERVICE, body)
        self.say(f"created the InferenceService {self.name} with version {self.version.version}")
        try:
            self._wait("it")
            return {**self._tested(test, self.url(variant(self.version.version))), "promoted": True}
        except (RolloutError, AskError):
            self.cluster.delete(INFERENCE_SERVICE, self.name, made["metadata"]["uid"])
            raise

    def _stable(self) -> Object:
        body = inference_service(self.version, self.model, self.section, self.launch, self.cluster.namespace)
        found: Object = body["spec"]["predictor"]
        return found

    def _update(self, change: Callable[[Object], Object]) -> None:
        def changed(found: Object) -> Object:
            wanted = inference_service(self.version, self.model, self.section, self.launch)["metadata"]
            found["metadata"].setdefault("annotations", {}).update(wanted["annotations"])
            found["spec"] = change(found["spec"])
            if not found["spec"].get("canary"):
                found["spec"].pop("canary", None)
            return found

        self.cluster.update(INFERENCE_SERVICE, self.name, changed)

    def _set_canary(self, in_service: Object, percent: int) -> None:
        candidate = predictor(self.version, self.model, self.section, self.launch, canary=True)
        # A canary needs names on both sides; the one in service may have been applied by hand without.
        named = in_service if in_service.get("name") else {**in_service, "name": "stable"}
        self._update(
            lambda spec: {**spec, "predictor": named, "canary": [{"trafficPercent": percent, "predictor": candidate}]}
        )
        self.say(f"candidate {candidate['name']} beside {named['name']}, with {percent} % of the traffic")

    def _promote(self) -> None:
        self._update(lambda spec: {**{k: v for k, v in spec.items() if k != "canary"}, "predictor": self._stable()})
        self._wait(f"version {self.version.version} in service")
        self.say(f"version {self.version.version} has all of the traffic")

    @contextlib.contextmanager
    def _withdrawn_on_failure(self, before: Object) -> Iterator[None]:
        """Whatever fails inside, the predictor that was in service is the only one afterwards, unchanged."""
        try:
            yield
        except BaseException as error:
            try:
                withdraw(self.cluster, self.name, before)
            except ClusterError as away:
                raise RolloutError(
                    f"{error}; the candidate could not be taken away ({away}): `vthink rollback` does it later"
                ) from error
            self.say("took the candidate away; in service is what was")
            raise

    # --- waiting and testing ---

    def _wait(self, what: str, canary: str | None = None) -> None:
        """Wait until the controllers have followed: the service, or one of its canaries, is ready.

        Raises:
            RolloutError: not within ``start_timeout_s``, or the model cannot be loaded.
        """
        limit_s, started = self.section.start_timeout_s, time.monotonic()
        why = "nothing was reported"
        for found in self.cluster.follow(INFERENCE_SERVICE, self.name, self.tick_s, self.say):
            if found is None:
                raise RolloutError(f"the InferenceService {self.name} was deleted")
            ready, why, hopeless = readiness(found, canary)
            if ready:
                return
            if hopeless or time.monotonic() - started > limit_s:
                after = "" if hopeless else f" after {limit_s:.0f} s"
                raise RolloutError(f"{what} is not ready{after}: {why}")

    def _stays_ready(self, canary: str) -> None:
        settings = self.section.kserve
        until, tick_s = time.monotonic() + settings.canary_s, min(self.tick_s, settings.canary_s)
        for found in self.cluster.follow(INFERENCE_SERVICE, self.name, tick_s, self.say):
            ready, why, _ = readiness(found, canary) if found is not None else (False, "it was deleted", True)
            if not ready:
                raise RolloutError(f"the candidate {canary} did not stay ready under traffic: {why}")
            if time.monotonic() >= until:
                return

    def _tested(self, test: Test, url: str) -> dict[str, Any]:
        record = dict(test(url))
        self.say(f"smoke test: {record['why']}")
        if not record["passed"]:
            raise SmokeTestError(record)
        return record

    def _compared(self, test: Test, in_service: Object) -> dict[str, Any]:
        """The smoke test of the candidate, then the same items asked of the model in service.

        Raises:
            RolloutError: it did not pass, or answers fewer items rightly than the model in service.
        """
        record = self._tested(test, self.url(variant(self.version.version)))
        # It was trained on something else: that it agrees with the candidate's evaluation is not expected of it.
        try:
            stable = test(self.url(in_service.get("name")))
        except AskError as error:  # what is broken must not keep its repair out
            self.say(f"the model in service cannot be asked ({error}); the candidate is not compared with it")
            return {**record, "stable": {"name": in_service.get("name"), "why": str(error)}}
        keys = ("asked", "correct", "agreement", "why")
        record["stable"] = {"name": in_service.get("name"), **{key: stable.get(key) for key in keys}}
        ours, theirs = record.get("correct"), stable.get("correct")
        if ours is not None and theirs is not None and ours < theirs - self.section.kserve.max_loss - 1e-9:
            why = (
                f"right answers to {record['asked']} replayed items: candidate {ours:.0%}, in service {theirs:.0%}; "
                f"at most {self.section.kserve.max_loss:.0%} less is allowed (deployment.kserve.max_loss)"
            )
            raise SmokeTestError({**record, "passed": False, "why": why})
        return record


def withdraw(cluster: Cluster, name: str, before: Object | None = None) -> bool:
    """Take a candidate away; whether there was one.

    Args:
        name: of the InferenceService.
        before: the InferenceService as it must be again; None: what is in service stays as it is.
    """
    removed = False

    def changed(found: Object) -> Object:
        nonlocal removed
        removed = bool(found["spec"].get("canary"))
        found["spec"].pop("canary", None)
        if before is not None:
            found["spec"]["predictor"] = before["spec"]["predictor"]
            found["metadata"]["annotations"] = dict(before["metadata"].get("annotations") or {})
        return found

    cluster.update(INFERENCE_SERVICE, name, changed)
    return removed


class SmokeTestError(RolloutError):
    """A version that starts and says something else than it should."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(str(record["why"]))
        self.record = dict(record)
        """The record of the smoke test."""


def readiness(found: Mapping[str, Any], canary: str | None = None) -> tuple[bool, str, bool]:
    """Whether an InferenceService (or one of its canaries) is ready; why not, and whether it is hopeless."""
    status = found.get("status") or {}
    if int(status.get("observedGeneration") or 0) < int(found["metadata"]["generation"]):
        return False, "the controller has not seen the change yet", False
    part: Mapping[str, Any] = status
    ready = is_true(found, "Ready")
    why = condition(found, "Ready")
    if canary is not None:
        part = next((c for c in status.get("canaryStatuses") or [] if c.get("name") == canary), {})
        ready = bool(part.get("ready")) and is_true(found, "PredictorReady")
        why = condition(found, "CanaryReady") or why
    model = part.get("modelStatus") or {}
    failed = model.get("lastFailureInfo") or {}
    text = failed.get("message") or why.get("message") or why.get("reason") or "nothing was reported"
    hopeless = model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec")
    return ready and not hopeless, " ".join(str(text).split())[:300], hopeless


def standing(found: Mapping[str, Any]) -> list[str]:
    """What is in service, and what beside it, a line each."""
    predictors: Sequence[tuple[str, Mapping[str, Any], str | None]] = [
        ("in service", found["spec"]["predictor"], None),
        *(("candidate", c["predictor"], c["predictor"]["name"]) for c in found["spec"].get("canary") or []),
    ]
    shares = {c["predictor"]["name"]: int(c.get("trafficPercent") or 0) for c in found["spec"].get("canary") or []}
    rest = 100 - sum(shares.values())
    lines = []
    for role, entry, canary in predictors:
        ready, why, _ = readiness(found, canary)
        share = rest if canary is None else shares[canary]
        version = (entry.get("annotations") or {}).get("vthink.dev/model-version") or entry.get("name") or "unnamed"
        low, high = entry.get("minReplicas", 1), entry.get("maxReplicas", entry.get("minReplicas", 1))
        replicas = f"{low}" if low == high else f"{low}–{high}"
        state = "ready" if ready else f"not ready: {why}"
        lines.append(f"{role}: {version}, {share} % of the traffic, {replicas} replica(s), {state}")
    return lines
