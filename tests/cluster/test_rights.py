"""What launcher and deployer ask of the API, held to the Role of ``k8s/team``: nothing lacks, nothing is unused.

In every test of this folder the played API refuses what the Role does not grant, so nothing can lack. Here all that
they do is done once, so that what is granted beyond it shows.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.kubernetes.backend import Attempts, KubernetesBackend, workflow_of_this_pod
from vthink.components.common.launch.kubernetes.client import INFERENCE_SERVICE, WORKFLOW, Cluster
from vthink.components.common.model.tiny import CHAT_TEMPLATE
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.config import DeploymentConfig
from vthink.components.deployment.registry import RegisteredVersion
from vthink.components.deployment.rollout.inference_service import TrainedModel
from vthink.components.deployment.rollout.rollout import Rollout, RolloutError
from vthink.components.deployment.smoke_test import Comparison, SmokeTestResult
from vthink.tests.cluster.jobs import KEY, context_of, job_of
from vthink.tests.fakes.admission import K8S, Access, grants, manifests
from vthink.tests.fakes.controllers import Hand, until
from vthink.tests.fakes.kserve_controller import Gateway, KServeController
from vthink.tests.fakes.kubernetes_api import ApiServer

Object = dict[str, Any]


def unused(rules: list[Object], asked: list[Access]) -> set[str]:
    """``verb resource`` of what rules grant and nobody asked for."""
    granted = {(v, g, r) for rule in rules for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]}
    return {f"{verb} {resource}" for verb, _, resource in granted - {access[:3] for access in asked}}


ITEM = Comparison(id="1", expected="a", answer="a", agrees=True, identical=True, correct=True)


class Passes:
    """A smoke test that every endpoint passes."""

    def run(self, url: str) -> SmokeTestResult:
        return SmokeTestResult(passed=True, why="passed", items=(ITEM,))


def train(cluster: Cluster, hand: Hand, server: ApiServer, storage: Storage) -> None:
    """A job that runs, and one that can never start."""
    job = job_of(context_of(storage))
    thread = threading.Thread(target=lambda: KubernetesBackend(cluster, tick_s=1.0).train(job, lambda line: None))
    thread.start()
    made = hand.job()
    pod = hand.pod(made)
    server.print_line(cluster.namespace, pod, "hello", end=True)
    until(lambda: any(path.endswith("/log") or "/log?" in path for _, path in server.requests))
    Manifest(stage="sft", fingerprint=KEY, uri=job.prefix).write(storage)
    hand.finish(made)
    thread.join(60)


def deploy(cluster: Cluster, hand: Hand) -> None:
    """A first version that cannot start and is deleted, one that can, and a second beside it that cannot."""
    gateway = Gateway()
    kserve = KServeController(hand, gateway, {}, "key")
    kserve._starts = lambda predictor: "bad" not in predictor["model"]["storageUri"]  # type: ignore[method-assign]
    section = DeploymentConfig.load(
        {"start_timeout_s": 1.5, "kserve": {"canary_s": 0.0, "url": gateway.url + "/{service}"}}
    )
    model = TrainedModel("compact/1", VideoConfig(num_frames=8), "qwen2_5_vl", CHAT_TEMPLATE)
    for number, source in enumerate(("bad", "good", "bad"), 1):
        version = RegisteredVersion(
            name="vthink", version=number, source=f"s3://b/{source}-{number}/", aliases=(), tags={}
        )
        rollout = Rollout(cluster, section, LaunchConfig(), version, model)
        if source == "bad":
            with pytest.raises(RolloutError):
                rollout.bring_into_service(Passes())  # type: ignore[arg-type]
        else:
            rollout.bring_into_service(Passes())  # type: ignore[arg-type]
    kserve.close()
    gateway.close()


def test_the_role_grants_what_is_asked_and_nothing_else(
    cluster: Cluster, hand: Hand, trouble: ApiServer, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.workflow("run-1")
    monkeypatch.setenv("KFP_POD_NAME", "run-1-launcher")
    monkeypatch.setenv("VTHINK_POD_NAMESPACE", cluster.namespace)
    train(cluster, hand, trouble, storage)
    owner = workflow_of_this_pod(cluster)
    assert owner is not None
    job = job_of(context_of(storage, cluster={"priority": "vthink-low"}), "grpo")
    cancelled = Attempts(cluster, job, lambda line: None)
    cancelled.owner = owner
    cancelled.find_or_create(lambda: False)
    hand.cluster.update(WORKFLOW, "run-1", lambda found: {**found, "spec": {"shutdown": "Stop"}})
    cancelled.leave()
    deploy(cluster, hand)
    assert hand.cluster.get(INFERENCE_SERVICE, "vthink") is not None
    lacking = [access for access in trouble.accesses if grants(trouble.rules, access) is None]
    assert lacking == []
    assert unused(trouble.rules, trouble.accesses) == set()
    # The controls: a right too many, and one too few.
    more = [*trouble.rules, {"apiGroups": ["keda.sh"], "resources": ["scaledobjects"], "verbs": ["patch"]}]
    assert unused(more, trouble.accesses) == {"patch scaledobjects"}
    fewer = [rule for rule in trouble.rules if "events" not in rule["resources"]]
    assert any(grants(fewer, access) is None for access in trouble.accesses)


def test_what_the_rdma_namespace_grants_is_what_the_launcher_has_in_its_own() -> None:
    """But for what concerns its own pod and its run, which are elsewhere."""
    own = next(o for o in manifests("team/rbac.yaml") if o["kind"] == "Role")["rules"]
    there = next(o for o in manifests(K8S / "cluster/rdma/access.yaml") if o["kind"] == "Role")["rules"]
    elsewhere = {"get workflows", "get pods"}

    def flat(rules: list[Object]) -> set[str]:
        return {f"{v} {r}" for rule in rules for v in rule["verbs"] for r in rule["resources"]}

    assert flat(there) == {e for e in flat(own) if "inferenceservices" not in e} - elsewhere
