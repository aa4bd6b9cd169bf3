"""What keeps a predictor's pods from starting, which KServe's status does not say of a canary."""

from dataclasses import dataclass, field

from ...common.launch.kubernetes.client import EVENT, POD, Cluster, ClusterError, Object, at, condition, one_line
from .inference_service import Readiness

_EVENTS = ("InternalError", "FailedCreate", "VirtualServiceCRDNotFound")
"""Reasons of KServe's events about an InferenceService that it cannot follow, and of refused pods."""


def service_of(name: str, predictor: str | None) -> str:
    """Name of a predictor's Service and Deployment (KServe's ``PredictorServiceName``)."""
    return "-".join(filter(None, [name, predictor, "predictor"]))


@dataclass
class Obstacles:
    """Of one InferenceService; what was reported before `remember` is not of interest."""

    cluster: Cluster
    name: str
    _known: set[tuple[str, str]] = field(default_factory=set)

    def remember(self) -> None:
        """Leave out the events that are there now."""
        self._known = {_identity(event) for event in self._events()}

    def of(self, predictor: str, state: Readiness) -> Readiness:
        """A predictor that is not ready, with the reason that its pods or KServe give, where they give one."""
        try:
            pods = self.cluster.find(POD, {"app": f"isvc.{service_of(self.name, predictor)}"})
            for pod in pods:
                if (obstacle := _of_pod(pod)) is not None:
                    return obstacle
            for event in self._events():
                if _identity(event) not in self._known and event.get("reason") in _EVENTS:
                    text = one_line(event.get("message"), 300)
                    # KServe tries again, but on the same object it comes to the same end.
                    return Readiness(False, text, hopeless="does not support specified" in text or "disabled" in text)
        except ClusterError:  # they only explain
            pass
        return state

    def _events(self) -> list[Object]:
        try:
            return self.cluster.find(EVENT, fields={"involvedObject.name": self.name})
        except ClusterError:
            return []


def _identity(event: Object) -> tuple[str, str]:
    """An event that happens again is the same object in another version."""
    return event["metadata"]["uid"], event["metadata"]["resourceVersion"]


def _of_pod(pod: Object) -> Readiness | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return Readiness(False, f"no machine for its pod: {one_line(scheduled.get('message'), 250)}")
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in at(pod, "status", kind) or []:
            waiting = at(container, "state", "waiting") or {}
            reason = waiting.get("reason")
            ended = at(container, "lastState", "terminated") or at(container, "state", "terminated") or {}
            if reason == "CrashLoopBackOff":  # which KServe, too, takes for failed
                text = one_line(ended.get("message") or ended.get("reason") or waiting.get("message"), 250)
                return Readiness(False, f"{container['name']} ends again and again: {text}", hopeless=True)
            if reason and reason not in ("ContainerCreating", "PodInitializing"):
                text = f"{reason}: {waiting.get('message') or 'no reason given'}"
                return Readiness(False, f"{container['name']}: {one_line(text, 250)}")
    return None
