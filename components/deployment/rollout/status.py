"""What an `InferenceService` says of itself: whether it is ready, and what is in service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...common.launch.kubernetes.client import Object, condition, is_true

_HOPELESS = ("BlockedByFailedLoad", "InvalidSpec")


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
        status = service.get("status") or {}
        if int(status.get("observedGeneration") or 0) < int(service["metadata"]["generation"]):
            return cls(False, "the controller has not seen the change yet")
        part: Mapping[str, Any] = status
        ready, why = is_true(service, "Ready"), condition(service, "Ready")
        if canary is not None:
            part = next((c for c in status.get("canaryStatuses") or [] if c.get("name") == canary), {})
            ready = bool(part.get("ready")) and is_true(service, "PredictorReady")
            why = condition(service, "CanaryReady") or why
        model = part.get("modelStatus") or {}
        failure = model.get("lastFailureInfo") or {}
        text = failure.get("message") or why.get("message") or why.get("reason") or "nothing was reported"
        hopeless = model.get("transitionStatus") in _HOPELESS
        return cls(ready and not hopeless, " ".join(str(text).split())[:300], hopeless)


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
