"""How a new version takes the place of the one in service on a cluster.

A candidate, a predictor named ``v<version>``, starts beside the one in service, without traffic; held-out items are
asked of both; then it gets a share of the traffic, then all of it. Whatever goes wrong before, it is taken away and
what is in service stays as it was. KServe renames a predictor without restarting it (0.20 and later, mode
``Standard``; the controllers' side is UNVERIFIED here).
"""

import dataclasses
import functools
import logging
import time
from dataclasses import dataclass

from ...common.chat_endpoint.endpoint import EndpointError
from ...common.errors import UserError
from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster, ClusterError, Object
from ..config import DeploymentConfig
from ..registry import RegisteredVersion
from ..smoke_test import SmokeTest, SmokeTestResult, StableResult
from .inference_service import Readiness, TrainedModel, canaries, inference_service, predictor, service_annotations

_TICK_S = 5.0  # how often an object that does not change is looked at
_report = functools.partial(logging.getLogger(__name__).warning, "deploy: %s")


class RolloutError(UserError):
    """A version that does not become ready, in one line; what was in service still is."""


class SmokeTestFailedError(RolloutError):
    """A version that starts and says something else than it should."""

    def __init__(self, result: SmokeTestResult) -> None:
        super().__init__(result.why)
        self.result = result


@dataclass(frozen=True, slots=True)
class Rollout:
    """One version's way into service."""

    cluster: Cluster
    section: DeploymentConfig
    launch: LaunchConfig
    version: RegisteredVersion
    model: TrainedModel

    @property
    def name(self) -> str:
        """Name of the InferenceService."""
        return self.section.kserve.name

    def url(self, predictor: str | None) -> str:
        """Where a predictor's Service is; KServe names it after the InferenceService and the predictor."""
        service = "-".join(filter(None, [self.name, predictor, "predictor"]))
        return self.section.kserve.url.format(service=service, namespace=self.cluster.namespace)

    def bring_into_service(self, test: SmokeTest, hold: bool = False) -> tuple[SmokeTestResult, bool]:
        """Bring the version into service, with ``hold`` only to its share of the traffic; a call without goes on then.

        Returns the smoke test's result, with ``stable`` where something was in service before, and whether the version
        has all of the traffic. RolloutError: it did not pass or did not become ready; what was in service still is."""
        service = self.cluster.get(INFERENCE_SERVICE, self.name)
        if service is None:
            return self._create(test), True
        in_service = service["spec"]["predictor"]
        if in_service.get("name") == self.version.predictor:
            # Already there: a deployer was killed before the alias moved, or the version is deployed again.
            self._order()
            self._wait_until_ready("it")
            return self._passed(test), True
        percent, candidate = self.section.kserve.canary_percent, f"the candidate {self.version.predictor}"
        try:
            if self.version.predictor not in canaries(service):
                self._order(in_service)
            self._wait_until_ready(candidate, self.version.predictor)
            result = self._compared(test, in_service)
            if percent:
                self._order(in_service, percent)
                self._wait_until_ready(candidate, self.version.predictor)
            if hold:
                return result, False
            if percent:
                self._require_lasting_readiness()
            self._order()
            self._wait_until_ready(f"version {self.version.version} in service")
            _report(f"version {self.version.version} has all of the traffic")
            return result, True
        except BaseException as error:
            try:
                withdraw(self.cluster, self.name, service)
            except ClusterError as left:
                later = f"the candidate could not be taken away ({left}): `vthink rollback` does it later"
                raise RolloutError(f"{error}; {later}") from error
            _report("took the candidate away; in service is what was")
            raise

    def _create(self, test: SmokeTest) -> SmokeTestResult:
        """Nothing is in service yet; what fails is deleted."""
        body = inference_service(self.version, self.model, self.section, self.launch, self.cluster.namespace)
        made = self.cluster.create(INFERENCE_SERVICE, body)
        _report(f"created the InferenceService {self.name} with version {self.version.version}")
        try:
            self._wait_until_ready("it")
            return self._passed(test)
        except (RolloutError, EndpointError):
            self.cluster.delete(INFERENCE_SERVICE, self.name, made["metadata"]["uid"])
            raise

    def _order(self, in_service: Object | None = None, percent: int = 0) -> None:
        """Order the version into service; with ``in_service``, beside that, with ``percent`` of the traffic."""
        where = (self.launch, self.cluster.namespace)
        own = predictor(self.version, self.model, self.section, *where, canary=in_service is not None)
        # A canary needs names on both sides; the one in service may have been applied by hand without.
        stable = None if in_service is None else in_service | {"name": in_service.get("name") or "stable"}

        def changed(service: Object) -> Object:
            service["metadata"].setdefault("annotations", {}).update(service_annotations(self.section))
            service["spec"]["predictor"] = stable or own
            service["spec"].pop("canary", None)
            if stable is not None:
                service["spec"]["canary"] = [{"trafficPercent": percent, "predictor": own}]
            return service

        self.cluster.update(INFERENCE_SERVICE, self.name, changed)
        if stable is not None:
            _report(f"candidate {own['name']} beside {stable['name']}, with {percent} % of the traffic")

    def _wait_until_ready(self, what: str, canary: str | None = None) -> None:
        """Wait until the controllers have followed: the service, or one of its canaries, is ready."""
        limit_s, started = self.section.start_timeout_s, time.monotonic()
        for service in self.cluster.follow(INFERENCE_SERVICE, self.name, _TICK_S, _report):
            state = Readiness.read(service, canary)
            if state.ready:
                return
            if state.hopeless or time.monotonic() - started > limit_s:
                after = "" if state.hopeless else f" after {limit_s:.0f} s"
                raise RolloutError(f"{what} is not ready{after}: {state.why}")

    def _require_lasting_readiness(self) -> None:
        """Watch the candidate under its share of the traffic for ``canary_s``."""
        canary_s, candidate = self.section.kserve.canary_s, self.version.predictor
        until, tick_s = time.monotonic() + canary_s, min(_TICK_S, canary_s)
        for service in self.cluster.follow(INFERENCE_SERVICE, self.name, tick_s, _report):
            state = Readiness.read(service, candidate)
            if not state.ready:
                raise RolloutError(f"the candidate {candidate} did not stay ready under traffic: {state.why}")
            if time.monotonic() >= until:
                return

    def _passed(self, test: SmokeTest) -> SmokeTestResult:
        result = test.run(self.url(self.version.predictor))
        _report(f"smoke test: {result.why}")
        if not result.passed:
            raise SmokeTestFailedError(result)
        return result

    def _compared(self, test: SmokeTest, in_service: Object) -> SmokeTestResult:
        """The smoke test of the candidate, which must answer as many items rightly as the model in service."""
        result, name = self._passed(test), in_service.get("name")
        # It was trained on something else: that it agrees with the candidate's evaluation is not expected of it.
        try:
            other = test.run(self.url(name))
        except EndpointError as error:  # what is broken must not keep its repair out
            _report(f"the model in service cannot be asked ({error}); the candidate is not compared with it")
            return dataclasses.replace(result, stable=StableResult(name=name, correct=None, why=str(error)))
        ours, theirs = result.shares["correct"], other.shares["correct"]
        result = dataclasses.replace(result, stable=StableResult(name=name, correct=theirs, why=other.why))
        max_loss = self.section.kserve.max_loss
        if ours < theirs - max_loss - 1e-9:
            why = f"right answers to {len(result.items)} replayed items: candidate {ours:.0%}, in service {theirs:.0%}"
            why += f"; at most {max_loss:.0%} less is allowed (deployment.kserve.max_loss)"
            raise SmokeTestFailedError(dataclasses.replace(result, passed=False, why=why))
        return result


def withdraw(cluster: Cluster, name: str, before: Object | None = None) -> bool:
    """Take the candidate of an InferenceService away; whether there was one. ``before`` is the object as it must be
    again; None: what is in service stays as it is."""
    removed = False

    def changed(service: Object) -> Object:
        nonlocal removed
        removed = bool(service["spec"].pop("canary", None))
        if before is not None:
            service["spec"]["predictor"] = before["spec"]["predictor"]
            service["metadata"]["annotations"] = dict(before["metadata"].get("annotations") or {})
        return service

    cluster.update(INFERENCE_SERVICE, name, changed)
    return removed
