"""Whether an `InferenceService` is ready, and what is in service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...common.launch.kubernetes.client import condition, is_true


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
