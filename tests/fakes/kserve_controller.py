"""KServe's controller for one InferenceService, and the gateway in front of its predictors, as a test plays them.

It starts our real server (with a played model) for every predictor that it sees, and writes the status. Read in the
source on 2026-12-01 (aaac4e2, after 0.20.0: ``components/predictor.go``, ``inference_service_status.go``) and compared
with the controllers of KServe 0.20 on a kube-apiserver 1.34. So, in mode Standard:

- ``observedGeneration`` is that of the *Deployment* in service, and stays behind the InferenceService's for ever;
- a canary has ``canaryStatuses`` (name, ready, trafficPercent) and the condition ``CanaryPredictorReady``, which has no
  message; ``modelStatus`` is only of the predictor in service, and keeps its last failure;
- a canary that cannot be built changes nothing of the status: there is an Event ``InternalError``;
- an unknown runtime, or a protocol or format that it does not list, is InvalidSpec;
- pods carry the label ``app: isvc.<Service>``, and say why a container does not start.

Known to differ: Services have no DNS names (the gateway answers at ``/<service>/``); a Deployment's pod template is the
predictor without its replicas, and a rolling update has no steps.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from vthink.components.common.launch.kubernetes.client import INFERENCE_SERVICE, POD, ClusterError
from vthink.components.deployment.config import ServerConfig
from vthink.tests.fakes.admission import manifests
from vthink.tests.fakes.controllers import Hand
from vthink.tests.fakes.model_server import ScriptedModel, running

Object = dict[str, Any]


class Gateway:
    """In front of all predictors: ``/<service>/…``."""

    def __init__(self) -> None:
        self.services: dict[str, str] = {}
        self.asked: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do(self) -> None:
                service, _, path = self.path.lstrip("/").partition("/")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, data = 503, b"{}"
                if service in gateway.services:
                    gateway.asked.append(service)
                    url = f"{gateway.services[service]}/{path}"
                    names = ("Content-Type", "Authorization")
                    sent = {name: self.headers[name] for name in names if self.headers[name]}
                    reply = httpx.request(self.command, url, content=body, headers=sent, timeout=60, trust_env=False)
                    status, data = reply.status_code, reply.content
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do  # noqa: N815

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@dataclass
class KServeController:
    """Starts a server for each predictor and writes the status."""

    hand: Hand
    gateway: Gateway
    models: dict[str, ScriptedModel]
    """By storageUri; a predictor of any other never becomes ready."""
    api_key: str
    """The key that every server asks for."""
    broken: set[str] = field(default_factory=set)
    """Names of predictors whose model cannot be loaded."""
    traffic: list[dict[str, int]] = field(default_factory=list)
    """Every split of the traffic that was ordered, by predictor."""
    runtimes: dict[str, Object] = field(default_factory=dict)
    """Specs of the ServingRuntimes by name: at first those of ``k8s/team``."""
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _running: dict[str, str] = field(default_factory=dict)
    _deployments: dict[str, tuple[Object, int]] = field(default_factory=dict)
    _pods: dict[str, str] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        found = manifests("team/serving-runtimes.yaml")
        self.runtimes = {obj["metadata"]["name"]: obj["spec"] for obj in found}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        seen = None
        while not self._ended.wait(0.05):
            found = self.hand.cluster.get(INFERENCE_SERVICE, "vthink")
            if found is None:
                seen = None
                continue
            if found["metadata"]["generation"] != seen:
                with contextlib.suppress(ClusterError):
                    self._reconcile(found)
                    seen = found["metadata"]["generation"]

    def _invalid(self, predictor: Object) -> str | None:
        """Why no pod can be made of a predictor."""
        model = predictor["model"]
        runtime = self.runtimes.get(model["runtime"])
        if runtime is None:
            return "Waiting for runtime to become available"
        if model.get("protocolVersion") not in (None, *runtime.get("protocolVersions", ["v1"])):
            return "Specified runtime does not support specified protocol version"
        if model["modelFormat"]["name"] not in [entry["name"] for entry in runtime["supportedModelFormats"]]:
            return "Specified runtime does not support specified framework/version"
        return None

    def _reconcile(self, found: Object) -> None:
        stable, canaries = found["spec"]["predictor"], found["spec"].get("canary", [])
        if (why := self._invalid(stable)) is not None:
            failure = {"reason": "NoSupportingRuntime", "message": why}
            self._fail(f"fails to reconcile predictor: {why}")
            self._write({"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}})
            return
        for canary in canaries:  # what a canary does not say is the stable predictor's
            model = {**stable["model"], **canary["predictor"]["model"]}
            if (why := self._invalid({"model": model})) is not None:
                name = canary["predictor"]["name"]
                text = f"fails to build resources for canary {name}: {why}"
                self._fail(f"fails to reconcile canary deployments: {text}")
                return
        shares = {c["predictor"]["name"]: c.get("trafficPercent", 0) for c in canaries}
        split = {stable.get("name", ""): 100 - sum(shares.values()), **shares}
        if not self.traffic or self.traffic[-1] != split:
            self.traffic.append(split)
        predictors = {p.get("name", ""): p for p in [stable, *(c["predictor"] for c in canaries)]}
        for service in set(self._deployments) - {self._service(name) for name in predictors}:
            del self._deployments[service]
            self.hand.cluster.delete(POD, self._pods.pop(service))
        new = [name for name in predictors if self._service(name) not in self._deployments]
        for name, predictor in predictors.items():
            self._deploy(self._service(name), predictor)
        if new:  # its pods start; the status is written anew when they have
            self._report(found, {name: name not in new and self._starts(p) for name, p in predictors.items()})
        self._report(found, {name: self._starts(p) for name, p in predictors.items()})

    @staticmethod
    def _service(name: str) -> str:
        return "-".join(filter(None, ["vthink", name, "predictor"]))

    def _deploy(self, service: str, predictor: Object) -> None:
        """The predictor's Deployment, of which a change of the pod's template makes a new generation, and its pod."""
        template = {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}
        before = self._deployments.get(service)
        if before is None:
            self._deployments[service] = (template, 1)
            self._pods[service] = self._make_pod(service)
        elif before[0] != template:
            self._deployments[service] = (template, before[1] + 1)

    def _make_pod(self, service: str) -> str:
        name = f"{service}-{secrets.token_hex(3)}"
        labels = {"app": f"isvc.{service}", "serving.kserve.io/inferenceservice": "vthink", "component": "predictor"}
        spec = {"containers": [{"name": "kserve-container", "image": "x"}], "schedulerName": "test"}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        self.hand.cluster.create(POD, body)
        return name

    def _starts(self, predictor: Object) -> bool:
        """Start a predictor's server; whether it is ready. Of what is broken the pod says why."""
        name, uri = predictor.get("name", ""), predictor["model"]["storageUri"]
        service = self._service(name)
        if name in self.broken:
            ended = {"terminated": {"reason": "Error", "exitCode": 1, "message": "CUDA out of memory"}}
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
            state = {"name": "kserve-container", "state": waiting, "lastState": ended}
            self.hand.set_status(POD, self._pods[service], {"phase": "Running", "containerStatuses": [state]})
            return False
        if uri not in self.models:
            return False
        if uri not in self._running:
            config = ServerConfig(model_name="vthink", decoders=1)
            self._running[uri] = self._stack.enter_context(running(self.models[uri], config, self.api_key)).url
        self.gateway.services[service] = self._running[uri]
        return True

    def _report(self, found: Object, ready: dict[str, bool]) -> None:
        """The status that follows from the Deployments and pods."""
        stable, canaries = found["spec"]["predictor"], found["spec"].get("canary", [])
        in_service = stable.get("name", "")
        is_broken = in_service in self.broken
        model: Object = {"transitionStatus": "UpToDate" if ready[in_service] else "InProgress"}
        if is_broken:
            model = {"transitionStatus": "BlockedByFailedLoad"}
            model["lastFailureInfo"] = {"reason": "ModelLoadFailed", "message": "CUDA out of memory", "exitCode": 1}
        message = "" if ready[in_service] else "Deployment does not have minimum availability."
        states = {"PredictorReady": ready[in_service], "IngressReady": True, "Ready": ready[in_service]}
        conditions = [
            {"type": type_, "status": str(value), **({"message": message} if message and not value else {})}
            for type_, value in states.items()
        ]
        if canaries:
            every = all(ready[c["predictor"]["name"]] for c in canaries)
            reason = "AllCanariesReady" if every else "CanariesNotReady"
            conditions.append({"type": "CanaryPredictorReady", "status": str(every), "reason": reason})
        statuses = [
            {"name": c["predictor"]["name"], "ready": ready[c["predictor"]["name"]],
             "trafficPercent": c.get("trafficPercent", 0)}
            for c in canaries
        ]  # fmt: skip
        self._write(
            {
                "observedGeneration": self._deployments[self._service(in_service)][1],
                "conditions": conditions,
                "modelStatus": model,
                "canaryStatuses": statuses,
            }
        )

    def _write(self, status: Object) -> None:
        self.hand.set_status(INFERENCE_SERVICE, "vthink", status)

    def _fail(self, message: str) -> None:
        self.hand.event("vthink", "InternalError", message, "InferenceService")

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._stack.close()
