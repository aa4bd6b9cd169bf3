"""What a cluster would refuse or do otherwise than meant, found without one; each rule is seen to fail, too.

The rules come from running everything on real parts (Kubernetes 1.34, Kueue 0.20-devel, Trainer 2.3.0, KServe 0.20) on
2026-12-01; what the played API does of them by itself is in `test_kubernetes_api`, `test_launcher` and `test_deployer`.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.kubernetes.client import TRAIN_JOB, Cluster, ClusterError
from vthink.components.common.launch.kubernetes.trainjob import SHAPE
from vthink.components.common.model.tiny import CHAT_TEMPLATE
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.config import DeploymentConfig
from vthink.components.deployment.registry import RegisteredVersion
from vthink.components.deployment.rollout.inference_service import TrainedModel, predictor
from vthink.pipelines.config import load
from vthink.pipelines.pipeline import compile_to
from vthink.tests.cluster.jobs import built, context_of
from vthink.tests.cluster.test_manifests import K8S, OVERLAYS, needs_tools, objects, one, overlay, reaches
from vthink.tests.cluster.validation import parse_quantity, pod_security, pod_specs, validate, walk

Object = dict[str, Any]
pytestmark = needs_tools


# --- KServe's protocol ---------------------------------------------------------------------------------------


def test_a_runtime_of_format_vllm_lists_the_protocol_that_kserve_asks_for() -> None:
    runtime = one(overlay("gke"), "ServingRuntime", "vthink-vllm")
    assert validate(runtime) == []
    runtime["spec"]["protocolVersions"] = ["v1"]
    assert "protocol v2" in " ".join(validate(runtime))


# --- priorities ----------------------------------------------------------------------------------------------


def priority_errors(objects: list[Object], served: str | None) -> list[str]:
    """Jobs that name no class must come last, and a class that nobody uses is a mistake."""
    values = {(o["kind"], o["metadata"]["name"]): o["value"] for o in objects if "value" in o}
    lowest = min(value for (kind, _), value in values.items() if kind == "WorkloadPriorityClass")
    runtimes = [o for o in objects if o["kind"] == "ClusterTrainingRuntime"]
    named = {spec.get("priorityClassName", "") for o in runtimes for _, spec in pod_specs(o)}
    found = [f"{name}: not below every queue's" for name in named if values.get(("PriorityClass", name), 0) >= lowest]
    classes = {name for kind, name in values if kind == "PriorityClass"}
    found += [f"{name}: used by nobody" for name in sorted(classes - named - {served})]
    return found + ([] if served in classes else [f"{served}: is not there"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_default_job_never_preempts_and_every_class_is_used(name: str) -> None:
    served = DeploymentConfig().kserve.priority_class
    objects = overlay(name)
    assert priority_errors(objects, served) == []
    assert priority_errors(objects, None) == ["vthink-serving: used by nobody", "None: is not there"]
    one(objects, "PriorityClass", "vthink-train")["value"] = 10000
    assert priority_errors(objects, served) == ["vthink-train: not below every queue's"]


def test_queued_work_carries_a_priority_class_that_exists(storage: Storage) -> None:
    labels = built(context_of(storage))["metadata"]["labels"]
    name = labels["kueue.x-k8s.io/priority-class"]
    assert one(overlay("gke"), "WorkloadPriorityClass", name)["value"] > 0
    assert SHAPE not in labels


def test_a_served_model_has_the_priority_class_that_is_meant_for_it() -> None:
    model = TrainedModel("compact/1", VideoConfig(num_frames=8), "qwen2_5_vl", CHAT_TEMPLATE)
    version = RegisteredVersion(name="vthink", version=7, source="s3://b/models/7/", aliases=(), tags={})
    made = predictor(version, model, DeploymentConfig(), LaunchConfig())
    assert one(overlay("gke"), "PriorityClass", made["priorityClassName"])["value"] > 500


def serving_pools(pools: dict[str, str]) -> set[str]:
    """Pools that a served model and queued work have in common: Kueue counts what the model takes for free."""
    return {pools["deploy"]} & {pool for stage, pool in pools.items() if stage != "deploy"}


def test_the_readmes_own_run_does_not_serve_where_it_trains(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(# my-run.yaml\n.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    assert text is not None
    (tmp_path / "my-run.yaml").write_text(text[1])
    pools: Any = load(tmp_path / "my-run.yaml").launch.pool
    queues = {o["metadata"]["name"] for o in overlay("gke") if o["kind"] == "LocalQueue"}
    assert serving_pools(pools) == set()
    assert pools["deploy"] not in queues
    assert {pool for stage, pool in pools.items() if stage != "deploy"} <= queues
    assert serving_pools(pools | {"deploy": "gpu"}) == {"gpu"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_step_that_brings_weights_is_put_where_there_is_disk(name: str) -> None:
    """KFP's steps cannot state local disk."""
    stated = one(overlay(name), "LimitRange", "vthink")["spec"]["limits"][0]["defaultRequest"]["ephemeral-storage"]
    assert parse_quantity(stated) >= parse_quantity("256Mi" if name == "kind" else "10Gi")


# --- pods that others make -----------------------------------------------------------------------------------


def kfp_pod(settings: Object) -> Object:
    """A step's pod as KFP makes it, from 2.16 on: ``argocompiler/security_context.go`` (7b70c7b, read 2026-12-01).

    What the compiled pipeline says of its security context is the container's; the rest is KFP's own hardening.
    """
    stated = settings.get("securityContext", {})
    own = {k: int(v) if k in ("runAsUser", "runAsGroup") else v for k, v in stated.items()}
    hardened = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    volumes = [{"name": entry["volumeName"], "emptyDir": {}} for entry in settings.get("emptyDirMounts", [])]
    return {"containers": [{"name": "main", "securityContext": hardened | own}], "volumes": volumes}


def test_steps_of_the_compiled_pipeline_are_restricted_and_without_istio(tmp_path: Path) -> None:
    config = load("video_r1_7b", ["launch.pool={prepare: cpu, sft: gpu, grpo: gpu, evaluate: gpu, deploy: serve}"])
    _, platform = yaml.safe_load_all(compile_to(tmp_path / "v.yaml", config).read_text())
    kubernetes = platform["platforms"]["kubernetes"]
    steps = kubernetes["deploymentSpec"]["executors"]
    assert len(steps) == 15
    for name, settings in steps.items():
        assert pod_security(kfp_pod(settings), read_only_root=False) == [], name
        assert settings["podMetadata"]["labels"]["sidecar.istio.io/inject"] == "false", name
    # A failed TrainJob, which the run's Workflow owns, is there the next day.
    assert int(kubernetes["pipelineConfig"]["resourceTtlOnCompletion"]) >= 86400
    bare = {k: v for k, v in steps["exec-evaluate"].items() if k != "securityContext"}
    assert pod_security(kfp_pod(bare), read_only_root=False) == ["container 'main': runAsNonRoot is not true"]


STORAGE_INITIALIZER: Object = {"name": "storage-initializer", "image": "kserve/storage-initializer:v0.20.0"}
"""The container of KServe's ClusterStorageContainer ``default`` (0.20.0): without a security context."""


def test_the_container_that_downloads_models_is_restricted_once_the_readmes_patch_is_applied() -> None:
    assert pod_security({"containers": [STORAGE_INITIALIZER]}, read_only_root=False)
    readme = (K8S / "README.md").read_text()
    patch = re.search(r"kubectl patch clusterstoragecontainer default --type merge -p '(.*?)'", readme, re.DOTALL)
    assert patch is not None
    container = STORAGE_INITIALIZER | yaml.safe_load(patch[1])["spec"]["container"]
    assert pod_security({"containers": [container]}, read_only_root=False) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_of_ours_gets_istios_container(name: str) -> None:
    for obj in overlay(name):
        for path, value in walk(obj.get("spec", {}), "spec"):
            if "containers" in value and obj["kind"] != "ServingRuntime":
                *parents, _ = path.split(".")
                template: Any = obj
                for key in parents:
                    template = template[int(key) if isinstance(template, list) else key]
                labels = template.get("metadata", {}).get("labels", {})
                assert labels.get("sidecar.istio.io/inject") == "false", (obj["kind"], obj["metadata"]["name"])
    service = yaml.safe_load((K8S / "model" / "inferenceservice.yaml").read_text())
    assert service["spec"]["predictor"]["labels"]["sidecar.istio.io/inject"] == "false"


# --- what a namespace must have ------------------------------------------------------------------------------


def lacking(objects: list[Object], by_hand: tuple[str, ...] = ()) -> set[str]:
    """``namespace: Kind/name`` of what training runtimes name, also if they could do without, and is not there.

    A runtime may run wherever there is a LocalQueue of GPUs. Where the team has no Secret with S3 keys, pods have an
    identity, and need none.
    """
    there = {
        (o["metadata"].get("namespace"), f"{o['kind'].removeprefix('External')}/{o['metadata']['name']}")
        for o in objects
    }
    keyless = (("vthink", "Secret/vthink-s3") not in there) and "Secret/vthink-s3" not in by_hand
    named = {
        f"{kind}/{value[key]['name']}"
        for o in objects
        if o["kind"] == "ClusterTrainingRuntime"
        for _, value in walk(o["spec"])
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"), ("secretKeyRef", "Secret"))
        if isinstance(value.get(key), dict)
    }
    queues = [o for o in objects if o["kind"] == "LocalQueue" and o["metadata"]["name"].startswith("gpu")]
    wanted = {(o["metadata"]["namespace"], name) for o in queues for name in named}
    return {
        f"{namespace}: {name}"
        for namespace, name in wanted - there
        if not (name in by_hand or (keyless and name == "Secret/vthink-s3"))
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_runtime_names_exists_wherever_it_may_run(name: str) -> None:
    objects = overlay(name)
    by_hand = ("Secret/vthink-s3",) if name == "kind" else ()
    assert lacking(objects, by_hand) == set()
    fewer = [o for o in objects if not (o["kind"] == "ConfigMap" and o["metadata"]["name"] == "vthink-env")]
    expected = {"vthink: ConfigMap/vthink-env"}
    if name == "onprem":  # training over InfiniBand is in a namespace of its own
        expected |= {"vthink-rdma: ConfigMap/vthink-env"}
        secretless = [
            o for o in objects if o["metadata"].get("namespace") != "vthink-rdma" or "Secret" not in o["kind"]
        ]
        assert lacking(secretless) == {"vthink-rdma: Secret/vthink-s3"}
    assert lacking(fewer, by_hand) == expected


def test_names_of_services_resolve_from_the_namespace_that_is_told_them() -> None:
    for obj in overlay("onprem"):
        if obj["kind"] == "ConfigMap" and obj["metadata"]["name"] == "vthink-env":
            host = obj["data"]["MLFLOW_TRACKING_URI"].partition("//")[2].partition(":")[0]
            assert host == ("mlflow" if obj["metadata"]["namespace"] == "vthink" else "mlflow.vthink")


# --- who asks ------------------------------------------------------------------------------------------------


def test_a_kubeconfig_without_a_namespace_means_default_which_a_launcher_is_told_otherwise(cluster: Cluster) -> None:
    unnamed = Cluster.connect()
    assert unnamed.namespace == "default"
    body = {"apiVersion": TRAIN_JOB.api_version, "kind": "TrainJob", "metadata": {"name": "x"}, "spec": {
        "runtimeRef": {"name": "vthink-torch"}}}  # fmt: skip
    assert Cluster.connect(cluster.namespace).create(TRAIN_JOB, copy.deepcopy(body))
    with pytest.raises(ClusterError, match='namespaces "default" not found'):
        unnamed.create(TRAIN_JOB, body)


@pytest.mark.parametrize("name", OVERLAYS)
def test_dns_is_reached_wherever_a_cluster_has_it(name: str) -> None:
    addresses = ["169.254.20.10", "10.96.0.10", "172.20.0.10", "192.168.0.10", "fd00:10:96::a"]
    addresses += ["34.118.224.10", "169.254.169.254"] if name == "gke" else []
    for address in addresses:  # a cache on the node, or kube-dns's own address, in IPv4 and IPv6
        assert any(reaches(block, address) for block in dns_blocks(name)), address
    others = ["8.8.8.8"] + ([] if name == "gke" else ["34.118.224.10"])
    for address in others:
        assert not any(reaches(block, address) for block in dns_blocks(name)), address


def dns_blocks(name: str) -> list[Object]:
    """Ranges that every pod of the team reaches on port 53."""
    rules = [
        rule
        for o in overlay(name)
        if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == "vthink" and not o["spec"]["podSelector"]
        for rule in o["spec"].get("egress", [])
        if 53 in [port["port"] for port in rule.get("ports", [])]
    ]
    return [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]


@pytest.mark.parametrize("name", OVERLAYS)
def test_kfps_page_reaches_the_pods_that_show_artifacts(name: str) -> None:
    policies = [o for o in overlay(name) if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == "vthink"]
    from_kubeflow = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
    reached = {
        app
        for policy in policies
        for wanted in policy["spec"]["podSelector"].get("matchExpressions", [])
        if wanted["key"] == "app" and wanted["operator"] == "In"
        if any(from_kubeflow in rule["from"] and "ports" not in rule for rule in policy["spec"].get("ingress", []))
        for app in wanted["values"]
    }
    assert reached == {"ml-pipeline-ui-artifact", "ml-pipeline-visualizationserver"}


def test_private_endpoints_are_reached_by_every_pod_once_their_policy_is_applied() -> None:
    def reached(found: list[Object], address: str) -> bool:
        return any(
            reaches(peer["ipBlock"], address)
            for o in found
            if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == "vthink" and not o["spec"]["podSelector"]
            for rule in o["spec"].get("egress", [])
            if 443 in [port["port"] for port in rule.get("ports", [])]
            for peer in rule["to"]
            if "ipBlock" in peer
        )

    assert not reached(overlay("eks"), "10.20.40.1")
    assert reached([*overlay("eks"), *objects("team/private-endpoints")], "10.20.40.1")
