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
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...common.launch.config import LaunchConfig
from ...common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster, ClusterError, Object
from ..client import AskError
from ..config import DeploymentConfig
from ..registry import ModelVersion
from .inference_service import inference_service, predictor, variant
from .standing import readiness
from .trained_model import RolloutError, TrainedModel

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
