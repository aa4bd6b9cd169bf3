"""KServe's controller for one InferenceService, and the gateway in front of its predictors, as a test plays them.

It starts our real server (with a played model) for every predictor that it sees, and writes the status. Compared with
the controllers of KServe 0.20 on a kube-apiserver 1.34, on 2026-12-01. Known to differ: ``observedGeneration`` is the
InferenceService's own (in Standard mode KServe copies its Deployment's, which may stay behind for ever); a canary's
condition is absent (KServe's is called ``CanaryPredictorReady``); no webhooks set defaults or refuse anything, so an
InvalidSpec is not seen; Services have no DNS names: the gateway answers at ``/<service>/``.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from vthink.components.common.launch.kubernetes.client import INFERENCE_SERVICE, ClusterError
from vthink.components.deployment.config import ServerConfig
from vthink.tests.cluster.controllers import Hand
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
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _running: dict[str, str] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
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

    def _reconcile(self, found: Object) -> None:
        spec = found["spec"]
        canaries = spec.get("canary", [])
        shares = {c["predictor"]["name"]: c.get("trafficPercent", 0) for c in canaries}
        stable = spec["predictor"].get("name", "")
        split = {stable: 100 - sum(shares.values()), **shares}
        if not self.traffic or self.traffic[-1] != split:
            self.traffic.append(split)
        ready = {}
        for predictor in [spec["predictor"], *(c["predictor"] for c in canaries)]:
            name, uri = predictor.get("name", ""), predictor["model"]["storageUri"]
            if uri in self.models and name not in self.broken:
                if uri not in self._running:
                    self._running[uri] = self._stack.enter_context(
                        running(self.models[uri], ServerConfig(model_name="vthink", decoders=1), self.api_key)
                    ).url
                service = "-".join(filter(None, ["vthink", name, "predictor"]))
                self.gateway.services[service] = self._running[uri]
            ready[name] = uri in self.models and name not in self.broken
        failure = {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "CUDA out of memory"},
        }
        loaded = {"transitionStatus": "UpToDate"}
        conditions = [
            {"type": "Ready", "status": "True" if all(ready.values()) else "False", "message": "see modelStatus"},
            {"type": "PredictorReady", "status": "True" if ready[stable] else "False"},
        ]
        self.hand.set_status(
            INFERENCE_SERVICE,
            "vthink",
            {
                "observedGeneration": found["metadata"]["generation"],
                "conditions": conditions,
                "modelStatus": loaded if ready[stable] else failure,
                "canaryStatuses": [
                    {"name": n, "ready": ready[n], "trafficPercent": p, "modelStatus": loaded if ready[n] else failure}
                    for n, p in shares.items()
                ],
            },
        )

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._stack.close()
