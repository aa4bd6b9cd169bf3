"""Every manifest of every overlay is valid, safe, and means what k8s/README.md says."""

from __future__ import annotations

import copy
import functools
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kfp import compiler, dsl, kubernetes
from vthink import __version__
from vthink.components.common.launch.process import free_port, spawn, wait_until_ready
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage
from vthink.pipelines.pipeline import compile_to
from vthink.tests.cluster.validation import (
    CRDS,
    crd_schema,
    parse_quantity,
    platform_errors,
    pod_security,
    pod_specs,
    reference_errors,
    validate,
    validate_all,
    walk,
)

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("gke", "eks", "aks", "onprem", "kind")
OPTIONAL = ("cluster/rdma", "team/scale-to-zero", "team/private-endpoints")
BY_HAND = {"kind": ("Secret/vthink-s3", "Secret/vthink-mlflow-db")}
"""Secrets that k8s/README.md has a person make."""

needs_tools = pytest.mark.skipif(
    shutil.which("kubectl") is None or not os.path.isdir(os.environ.get(CRDS, "")),
    reason=f"needs kubectl, and a folder of CRDs in {CRDS}",
)
pytestmark = needs_tools


@functools.cache
def rendered(folder: str) -> str:
    result = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def objects(*folders: str) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send for each of the folders of k8s/."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [obj for folder in folders for obj in yaml.load_all(rendered(folder), Loader=loader) if obj]


def overlay(name: str) -> list[dict[str, Any]]:
    return objects(f"overlays/{name}/cluster", f"overlays/{name}/team")


def one(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(obj for obj in found if obj["kind"] == kind and obj["metadata"]["name"] == name)


# --- what is there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_of_an_overlay_is_valid_and_refers_to_what_exists(name: str) -> None:
    assert validate_all(overlay(name), external=BY_HAND.get(name, ())) == []


@pytest.mark.parametrize("folder", OPTIONAL)
def test_optional_parts_are_valid_on_top_of_an_overlay(folder: str) -> None:
    assert validate_all([*overlay("gke"), *objects(folder)]) == []


def test_the_models_own_manifests_fit_the_namespace() -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in (K8S / "model").glob("*.yaml"):
        found = list(yaml.load_all(path.read_text(), Loader=loader))
        assert validate_all(found, external=[reference(obj) for obj in overlay("gke")]) == [], path


def reference(obj: dict[str, Any]) -> str:
    """``Kind/name``; an ExternalSecret stands for the Secret that it becomes."""
    return f"{obj['kind'].removeprefix('External')}/{obj['metadata']['name']}"


def test_no_kustomization_is_left_untested() -> None:
    every = {path.parent.relative_to(K8S).as_posix() for path in K8S.rglob("kustomization.yaml")}
    tested = {f"overlays/{name}/{part}" for name in OVERLAYS for part in ("cluster", "team")} | set(OPTIONAL)
    reached: set[str] = set()
    while tested > reached:
        for folder in tested - reached:
            reached.add(folder)
            kustomization = yaml.safe_load((K8S / folder / "kustomization.yaml").read_text())
            below = [(K8S / folder / entry).resolve() for entry in kustomization.get("resources", [])]
            tested = tested | {path.relative_to(K8S).as_posix() for path in below if path.is_dir()}
    assert every - tested == set()


def test_a_team_can_have_another_namespace(tmp_path: Path) -> None:
    folder = tmp_path / "team-b"
    folder.mkdir()
    team = os.path.relpath(K8S / "overlays/gke/team", folder.resolve())
    (folder / "kustomization.yaml").write_text(f"namespace: team-b\nresources: [{team}]\n")
    found = list(yaml.safe_load_all(rendered(str(folder))))
    assert {obj["metadata"]["namespace"] for obj in found} == {"team-b"}
    assert validate_all([*objects("overlays/gke/cluster"), *found]) == []


def test_images_of_an_overlay_reach_every_kind_of_pod(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    bases = [os.path.relpath(K8S / "overlays/gke" / part, folder.resolve()) for part in ("cluster", "team")]
    ours = sorted({i for obj in overlay("gke") for _, s in pod_specs(obj) for i in images_of(s) if "vthink/" in i})
    assert {re.sub(r".*vthink-(\w+)-python.*", r"\1", image) for image in ours} == {"control", "serve", "train"}
    images = [{"name": image.partition(":")[0], "newName": "r.example.org/x", "newTag": "9"} for image in ours]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": bases, "images": images}))
    found = list(yaml.safe_load_all(rendered(str(folder))))
    changed = {obj["kind"] for obj in found for _, s in pod_specs(obj) if "r.example.org/x:9" in images_of(s)}
    assert changed == {"ClusterTrainingRuntime", "Deployment", "ServingRuntime"}
    assert not [obj for obj in found for _, s in pod_specs(obj) if set(images_of(s)) & set(ours)]


def test_only_overlays_name_a_cloud() -> None:
    cloud = re.compile(r"cloud\.google|\bgke|karpenter|\beks|amazonaws|azure|\baks\b", re.IGNORECASE)
    for path in [*(K8S / "cluster").rglob("*.yaml"), *(K8S / "team").rglob("*.yaml")]:
        assert not cloud.findall(path.read_text()), path
    for path in [*(ROOT / "components").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text())
        assert not re.search(r"cloud\.google|karpenter|eks\.amazonaws|kubernetes\.azure", code), path
    assert cloud.search(rendered("overlays/gke/cluster"))


def test_our_images_have_the_version_of_the_package() -> None:
    images = {i for name in OVERLAYS for obj in overlay(name) for _, s in pod_specs(obj) for i in images_of(s)}
    ours = {image for image in images if image.startswith("ghcr.io/vthink/")}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}
    assert {re.sub(r".*/vthink-(\w+)-python:.*", r"\1", image) for image in ours} <= {
        path.suffix.removeprefix(".") for path in (ROOT / "docker").glob("Dockerfile.*")
    }


def images_of(spec: dict[str, Any]) -> list[str]:
    return [container["image"] for container in [*spec["containers"], *spec.get("initContainers", [])]]


# --- safety --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_restricted_and_its_root_read_only(name: str) -> None:
    found = {
        (obj["kind"], obj["metadata"]["name"], message)
        for obj in overlay(name)
        for _, spec in pod_specs(obj)
        for message in pod_security(spec)
    }
    if name == "onprem":  # RDMA pins memory, in a namespace of its own
        allowed = ("ClusterTrainingRuntime", "vthink-torch-rdma", "container 'node': adds capabilities ['IPC_LOCK']")
        assert allowed in found
        found.discard(allowed)
    assert found == set()


@pytest.mark.parametrize(
    "change",
    [
        {"runAsNonRoot": False},
        {"runAsUser": 0},
        {"allowPrivilegeEscalation": True},
        {"privileged": True},
        {"readOnlyRootFilesystem": False},
        {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
        {"capabilities": {}},
        {"seccompProfile": {"type": "Unconfined"}},
    ],
    ids=str,
)
def test_a_pod_that_asks_for_more_is_noticed(change: dict[str, Any]) -> None:
    _, spec = next(pod_specs(one(overlay("gke"), "Deployment", "mlflow")))
    spec = copy.deepcopy(spec)
    assert pod_security(spec) == []
    spec["containers"][0]["securityContext"] |= change
    assert len(pod_security(spec)) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_namespace_denies_what_is_not_allowed_and_enforces_pod_security(name: str) -> None:
    found = overlay(name)
    used = {obj["metadata"]["namespace"] for obj in found if "namespace" in obj["metadata"]}
    for namespace in used:
        labels = one(found, "Namespace", namespace)["metadata"]["labels"]
        expected = "privileged" if namespace == "vthink-rdma" else "restricted"
        assert labels["pod-security.kubernetes.io/enforce"] == expected
        policies = [
            o["spec"] for o in found if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == namespace
        ]
        denied = {kind for p in policies if p["podSelector"] == {} for kind in p["policyTypes"]}
        assert denied == {"Ingress", "Egress"}
        assert [o for o in found if o["kind"] == "ResourceQuota" and o["metadata"]["namespace"] == namespace]


METADATA = {"gke": ["169.254.169.254"], "eks": ["169.254.169.254", "fd00:ec2::254"]}
"""Where a cloud tells a machine its keys: on port 80. GKE's address is a name server, too."""


def metadata_errors(found: list[dict[str, Any]], addresses: list[str]) -> list[str]:
    """Policies that let a pod reach the metadata service, on GKE on another port than that of DNS."""
    return [
        f"{policy['metadata']['name']} reaches {address}"
        for policy in found
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("egress", [])
        for address in addresses
        if any(reaches(peer["ipBlock"], address) for peer in rule.get("to", []) if "ipBlock" in peer)
        and not (policy["metadata"]["name"] == "dns-gke" and {port["port"] for port in rule.get("ports", [])} == {53})
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_reach_no_metadata_service_and_served_models_no_private_address(name: str) -> None:
    found = overlay(name)
    assert metadata_errors(found, METADATA.get(name, ["169.254.169.254"])) == []
    public = one(found, "NetworkPolicy", "public-tls")["spec"]["egress"][0]["to"][0]["ipBlock"]
    assert reaches(public, "8.8.8.8")
    assert not any(reaches(public, address) for address in ("10.0.0.1", "172.31.9.9", "192.168.1.1", "100.64.0.1"))


def test_a_policy_that_reaches_the_metadata_service_is_noticed() -> None:
    found = overlay("eks")
    del one(found, "NetworkPolicy", "dns")["spec"]["egress"][0]["to"][6]["ipBlock"]["except"]
    assert metadata_errors(found, METADATA["eks"]) == ["dns reaches fd00:ec2::254"]
    found = overlay("gke")
    one(found, "NetworkPolicy", "dns-gke")["spec"]["egress"][0]["ports"].append({"port": 80, "protocol": "TCP"})
    assert metadata_errors(found, METADATA["gke"]) == ["dns-gke reaches 169.254.169.254"]


ANYWHERE = {
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),  # private, and a provider's (RFC 1918, 6598)
    *("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/0"),
    "169.254.20.10/32",  # Kubernetes' cache of DNS on the node
    *("::1/128", "fc00::/7", "fe80::/10", "::/0"),  # RFC 4291, 4193
}
"""Address ranges that mean the same in every network."""


def owned_ranges(found: Iterable[dict[str, Any]]) -> set[str]:
    """Ranges of network policies that belong to one cloud or company."""
    blocks = [v["ipBlock"] for o in found if o["kind"] == "NetworkPolicy" for _, v in walk(o["spec"]) if "ipBlock" in v]
    return {cidr for block in blocks for cidr in (block["cidr"], *block.get("except", []))} - ANYWHERE


def test_only_overlays_have_a_clouds_address_ranges() -> None:
    shared = [
        obj
        for folder in ("cluster", "team")
        for path in (K8S / folder).rglob("*.yaml")
        for obj in yaml.safe_load_all(path.read_text())
        if isinstance(obj, dict) and "kind" in obj  # not a list of patches
    ]
    assert owned_ranges(shared) == {"10.20.40.0/28"}  # the placeholder of private-endpoints
    assert owned_ranges(overlay("gke")) == {"34.118.224.0/20", "169.254.169.254/32"}
    assert owned_ranges(overlay("eks")) == {"fd00:ec2::254/128"}
    assert owned_ranges(overlay("onprem")) == {"10.20.30.0/24"}
    assert owned_ranges([*overlay("aks"), *overlay("kind")]) == set()


def reaches(block: dict[str, Any], address: str) -> bool:
    ip = ipaddress.ip_address(address)
    inside = [ip in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
    return inside[0] and not any(inside[1:])


def test_rights_are_the_least() -> None:
    for name in OVERLAYS:
        for role in (o for o in overlay(name) if o["kind"] in ("Role", "ClusterRole")):
            assert role["kind"] == "Role"  # nobody gets rights over the whole cluster
            for rule in role["rules"]:
                assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
                assert "secrets" not in rule["resources"] or rule["resourceNames"]
                assert not {"pods/exec", "roles", "rolebindings"} & set(rule["resources"])
        for account in (o for o in overlay(name) if o["kind"] == "ServiceAccount"):
            wants_token = account["metadata"]["name"] == "vthink-pipeline"
            assert account.get("automountServiceAccountToken", True) == wants_token


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_is_in_a_manifest(name: str) -> None:
    assert not [obj for obj in overlay(name) if obj["kind"] == "Secret"]
    for obj in overlay(name):
        for path, value in walk(obj):
            if "name" in value and "value" in value:
                secret = re.search(r"SECRET|PASSWORD|TOKEN|API_KEY", value["name"])
                assert not secret, f"{obj['metadata']['name']}: {path}"


# --- pools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pool_leads_from_the_queue_to_nodes(name: str) -> None:
    found = overlay(name)
    pools = [
        o["metadata"]["name"] for o in found if o["kind"] == "LocalQueue" and o["metadata"]["namespace"] == "vthink"
    ]
    assert set(pools) == {"gpu", "cpu"} | ({"gpu-spot"} if name != "onprem" else set())
    labels = one(found, "Namespace", "vthink")["metadata"]["labels"]
    for pool in pools:
        queue = one(found, "ClusterQueue", one(found, "LocalQueue", pool)["spec"]["clusterQueue"])
        assert queue["spec"]["namespaceSelector"]["matchLabels"].items() <= labels.items()
        for group in queue["spec"]["resourceGroups"]:
            flavor = one(found, "ResourceFlavor", group["flavors"][0]["name"]).get("spec", {})
            if name != "kind" and pool != "cpu":
                assert flavor["nodeLabels"]["vthink.dev/pool"] == pool
                assert len(flavor["nodeLabels"]) > 1  # what the cloud itself puts on such nodes
                assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in flavor["tolerations"]


def test_what_a_training_pod_requests_is_covered_by_its_queue() -> None:
    """Kueue never admits a pod that requests a resource its ClusterQueue does not name."""
    for name in OVERLAYS:
        found = overlay(name)
        for runtime, queue in (("vthink-torch", "vthink-gpu"), ("vthink-torch-vllm", "vthink-gpu"), RDMA):
            if not any(obj["metadata"]["name"] == runtime for obj in found):
                continue
            covered = one(found, "ClusterQueue", queue)["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
            quota = {resource["name"]: resource["nominalQuota"] for resource in covered}
            for _, spec in pod_specs(one(found, "ClusterTrainingRuntime", runtime)):
                resources = spec["containers"][0]["resources"]
                wanted = resources.get("limits", {}) | resources["requests"]
                for resource, amount in wanted.items():
                    assert parse_quantity(amount) <= parse_quantity(quota[resource]), (name, runtime, resource)


RDMA = ("vthink-torch-rdma", "vthink-gpu-rdma")


def test_a_lost_node_restarts_training_without_counting() -> None:
    spec = one(overlay("gke"), "ClusterTrainingRuntime", "vthink-torch")["spec"]["template"]["spec"]
    rule = spec["failurePolicy"]["rules"][0]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy requires
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_the_runtime_with_vllm_differs_only_by_the_server() -> None:
    found = overlay("gke")
    plain = one(found, "ClusterTrainingRuntime", "vthink-torch")["spec"]
    both = copy.deepcopy(one(found, "ClusterTrainingRuntime", "vthink-torch-vllm")["spec"])
    server, node = both["template"]["spec"].pop("replicatedJobs")
    assert server["name"] == "vllm"
    assert node.pop("dependsOn") == [{"name": "vllm", "status": "Ready"}]
    # Training decides when the job is done; the server never ends by itself.
    assert both["template"]["spec"].pop("successPolicy")["targetReplicatedJobs"] == ["node"]
    both["template"]["spec"]["replicatedJobs"] = [node]
    assert both == plain


# --- the compiled pipeline -----------------------------------------------------------------------------------


@dsl.component(base_image="example.org/python:3.11", install_kfp_package=False)
def step():  # KFP reads annotations as objects, and here they are text
    pass


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A pipeline with one step that has what ours may have."""

    @dsl.pipeline(name="placed")
    def pipeline():
        task = step()
        kubernetes.set_security_context(task, run_as_user=1000, run_as_group=1000, run_as_non_root=True)
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", "gpu")
        kubernetes.add_node_selector(task, "vthink.dev/pool", "gpu")
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")

    path = tmp_path_factory.mktemp("kfp") / "placed.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return list(yaml.safe_load_all(path.read_text()))


def test_the_compiled_pipelines_platform_spec_is_what_kfp_knows(tmp_path: Path, placed: list[dict[str, Any]]) -> None:
    compiled = list(yaml.safe_load_all(compile_to(tmp_path / "vthink.yaml").read_text()))
    for documents in (placed, compiled):
        if len(documents) == 2:
            assert platform_errors(*documents) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("securityContext.runAsUsr", 1000, "runAsUsr"),
        ("securityContext.runAsUser", "0", "other than 0"),
        ("securityContext.runAsNonRoot", False, "runAsNonRoot"),
        ("podMetadata.labels[kueue.x-k8s.io/queue-name]", "g p u", "not a label value"),
        ("nodeSelector.labels", ["gpu"], "labels"),
        ("tolerations.0.value", "present", "takes no value"),
        ("tolerations.0.effect", "NoScheduling", "NoScheduling"),
    ],
)
def test_a_mutated_platform_spec_is_refused(placed: list[dict[str, Any]], path: str, value: Any, expected: str) -> None:
    pipeline, platform = copy.deepcopy(placed)
    put(path, value)(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-step"])
    assert expected in " ".join(platform_errors(pipeline, platform))


# --- monitoring ----------------------------------------------------------------------------------------------


def test_every_alert_leads_to_its_place_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (K8S / "RUNBOOK.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    groups = one(overlay("gke"), "PrometheusRule", "vthink")["spec"]["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    assert len(alerts) > 10
    for rule in alerts:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/k8s/RUNBOOK.md")
        assert anchor in anchors, rule["alert"]


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(one(overlay("gke"), "ConfigMap", "vthink-dashboard")["data"]["vthink.json"])
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} overlaps"
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
        for target in panel.get("targets", []):
            assert balanced(target["expr"]), target["expr"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables


def test_expressions_of_alerts_are_balanced() -> None:
    for group in one(overlay("gke"), "PrometheusRule", "vthink")["spec"]["groups"]:
        for rule in group["rules"]:
            assert balanced(rule["expr"]), rule["alert"]
    assert not balanced('sum(rate(x{a="b"}[5m])')


def balanced(expression: str) -> bool:
    """Whether the brackets outside of strings match. No parser of PromQL is at hand."""
    stack = []
    for character in re.sub(r'"(\\.|[^"\\])*"', '""', expression):
        if character in "([{":
            stack.append(character)
        elif character in ")]}" and (not stack or stack.pop() + character not in ("()", "[]", "{}")):
            return False
    return not stack


# --- MLflow --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflow_as_deployed_answers_to_its_names_only(
    s3: StorageConfig, empty_mlflow_database: Path, tmp_path: Path
) -> None:
    """The Deployment's own command, over SQLite and a real S3 server."""
    _, spec = next(pod_specs(one(overlay("gke"), "Deployment", "mlflow")))
    container, port = spec["containers"][0], free_port()
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    values = {"POD_NAMESPACE": "vthink", "POD_IP": "10.1.2.3", "PUBLIC_HOST": "mlflow.example.org"}
    values |= {"MLFLOW_ARTIFACTS_DESTINATION": f"s3://{s3.bucket}/mlflow/"}
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    endpoint = str(s3.endpoint_url).replace("127.0.0.1", "localhost")  # a name, as in a cluster
    environment = os.environ | values | given | {"HOME": str(tmp_path), "AWS_ENDPOINT_URL_S3": endpoint}
    changed = {"--host=0.0.0.0": "--host=127.0.0.1", "--workers=2": "--workers=1"}
    changed |= {"--expose-prometheus=/tmp/metrics": f"--expose-prometheus={tmp_path}/metrics"}
    command = [*container["command"]]
    for argument in container["args"]:
        if argument.startswith("--backend-store-uri="):
            argument = f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db"
        argument = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], changed.get(argument, argument))
        command.append(argument.replace("5000", str(port)))
    url = f"http://127.0.0.1:{port}"
    with spawn([sys.executable, "-m", *command], log=tmp_path / "log", env=environment) as process:
        wait_until_ready(process, "MLflow", lambda: answer(f"{url}/health") == 200, 120)
        search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
        assert answer(search, Host="evil.example.org") == 403
        for host in (f"mlflow:{port}", f"mlflow.vthink.svc.cluster.local:{port}", "mlflow.example.org"):
            assert answer(search, Host=host) == 200
        assert answer(f"{url}/health", Host="10.9.9.9:1") == 200  # how the kubelet asks
        # How Prometheus asks, and the metric that the dashboard draws.
        metrics = httpx.get(f"{url}/metrics", headers={"Host": f"10.1.2.3:{port}"}, trust_env=False).text
        assert "mlflow_http_request_total" in metrics
        create = f"{url}/api/2.0/mlflow/experiments/create"
        for origin, expected in (("https://evil.example.org", 403), ("https://mlflow.example.org", 200)):
            headers = {"Host": f"mlflow:{port}", "Origin": origin}
            assert httpx.post(create, json={"name": origin}, headers=headers, trust_env=False).status_code == expected
        sent = b"a"
        artifact = f"{url}/api/2.0/mlflow-artifacts/artifacts/0/a.txt"
        assert httpx.put(artifact, content=sent, headers={"Host": f"mlflow:{port}"}, trust_env=False).status_code == 200
        assert Storage(s3).read_bytes(f"s3://{s3.bucket}/mlflow/0/a.txt") == sent


def answer(url: str, **headers: str) -> int:
    """The HTTP status of a GET; 0 when nobody listens."""
    try:
        return httpx.get(url, headers=headers, trust_env=False, timeout=30).status_code
    except httpx.TransportError:
        return 0


# --- the check itself can fail -------------------------------------------------------------------------------

TRAIN_JOB = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: vthink-sft-0123abcd
  namespace: vthink
  labels: {kueue.x-k8s.io/queue-name: gpu, kueue.x-k8s.io/priority-class: vthink-normal}
spec:
  runtimeRef: {apiGroup: trainer.kubeflow.org, kind: ClusterTrainingRuntime, name: vthink-torch}
  trainer:
    image: ghcr.io/vthink/vthink-train-python:0.1.0
    numNodes: 2
    numProcPerNode: 8
    command: [torchrun, -m, vthink.components.sft]
    env: [{name: OMP_NUM_THREADS, value: "8"}]
    resourcesPerNode:
      requests: {cpu: "96", memory: 900Gi}
      limits: {nvidia.com/gpu: 8, memory: 900Gi}
  runtimePatches:
  - manager: vthink.dev/launcher
    trainingRuntimeSpec: {template: {spec: {replicatedJobs: [{name: node, template: {spec: {template: {spec:
      {terminationGracePeriodSeconds: 120, containers: [{name: node, volumeMounts: []}]}}}}}]}}}
"""
INFERENCE_SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: vthink
  namespace: vthink
  annotations: {serving.kserve.io/deploymentMode: Standard, serving.kserve.io/autoscalerClass: keda}
spec:
  predictor:
    name: v7
    serviceAccountName: vthink-serve
    minReplicas: 1
    maxReplicas: 4
    autoScaling:
      metrics:
      - type: External
        external:
          metric: {backend: prometheus, serverAddress: "http://prometheus:9090", query: "vllm:num_requests_waiting"}
          target: {type: Value, value: "4"}
    model:
      runtime: vthink-vllm
      modelFormat: {name: vLLM}
      storageUri: s3://vthink/models/7/
      args: [--max-model-len=32768]
      resources: {limits: {nvidia.com/gpu: "1"}}
  canary:
  - trafficPercent: 10
    predictor:
      name: v8
      minReplicas: 1
      model:
        name: kserve-container
        runtime: vthink-vllm
        modelFormat: {name: vLLM}
        storageUri: s3://vthink/models/8/
"""


def subject(kind: str, name: str) -> dict[str, Any]:
    if kind == "TrainJob":
        return yaml.safe_load(TRAIN_JOB)
    if kind == "InferenceService":
        return yaml.safe_load(INFERENCE_SERVICE)
    return copy.deepcopy(one([*overlay("gke"), *objects(*OPTIONAL)], kind, name))


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A mutation: set the value at a dotted path; None removes it."""

    def mutate(obj: dict[str, Any]) -> None:
        target: Any = obj
        *parents, last = re.findall(r"\[([^]]+)\]|([^.\[\]]+)", path)
        for key in ("".join(part) for part in parents):
            target = target[int(key)] if isinstance(target, list) else target[key]
        key = "".join(last)
        if value is None:
            del target[int(key) if isinstance(target, list) else key]
        elif isinstance(target, list):
            target[int(key)] = value
        else:
            target[key] = value

    return mutate


MUTATIONS = [
    # a misspelled field
    ("TrainJob", "", "spec.trainer.numNode", 2, "numNode"),
    ("TrainJob", "", "spec.podTemplateOverrides", [], "podTemplateOverrides"),
    ("InferenceService", "", "spec.predictor.minReplica", 1, "minReplica"),
    ("InferenceService", "", "metadata.labelz", {}, "labelz"),
    ("ClusterTrainingRuntime", "vthink-torch", "spec.template.spec.replicatedJob", [], "replicatedJob"),
    ("ServingRuntime", "vthink-vllm", "spec.containers.0.imagePullPolice", "Always", "imagePullPolice"),
    ("ClusterQueue", "vthink-gpu", "spec.cohort", "vthink", "cohort"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.envfrom", [], "envfrom"),
    ("NetworkPolicy", "default-deny", "spec.podSelectors", {}, "podSelectors"),
    ("ServiceMonitor", "mlflow", "spec.endpoint", [], "endpoint"),
    # a wrong type
    ("TrainJob", "", "spec.trainer.numNodes", "two", "numNodes"),
    ("TrainJob", "", "spec.trainer.numProcPerNode", 2**31, "int32"),
    ("InferenceService", "", "spec.canary.0.trafficPercent", "10 %", "trafficPercent"),
    ("Deployment", "mlflow", "spec.replicas", "1", "replicas"),
    ("ScaledObject", "vthink", "spec.minReplicaCount", True, "minReplicaCount"),
    ("ConfigMap", "vthink-env", "data.AWS_REGION", 1, "AWS_REGION"),
    # a value that is not allowed
    ("ClusterQueue", "vthink-gpu", "spec.preemption.withinClusterQueue", "Sometimes", "withinClusterQueue"),
    ("ClusterTrainingRuntime", "vthink-torch", "spec.template.spec.failurePolicy.rules.0.action", "Retry", "action"),
    # a bad quantity
    ("TrainJob", "", "spec.trainer.resourcesPerNode.limits.memory", "900GB", "900GB"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.resources.limits.memory", "4 GiB", "not a quantity"),
    ("ResourceQuota", "vthink", "spec.hard[requests.memory]", "4TiB", "not a quantity"),
    ("ClusterQueue", "vthink-gpu", "spec.resourceGroups.0.flavors.0.resources.0.nominalQuota", "many", "nominalQuota"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.resources.requests.memory", "5Gi", "more than its limit"),
    # something missing
    ("Deployment", "mlflow", "spec.selector", None, "selector"),
    ("TrainJob", "", "spec.runtimeRef.name", None, "name"),
    ("LocalQueue", "gpu", "metadata.name", None, "name"),
    ("InferenceService", "", "spec.canary.0.predictor.model.name", None, "name"),
    # parts that do not fit together
    ("Deployment", "mlflow", "spec.selector.matchLabels", {"app": "other"}, "does not select its own pods"),
    ("Deployment", "mlflow", "spec.template.spec.volumes", None, "mounts volume 'tmp'"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.image", "mlflow", "neither tag nor digest"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.readinessProbe.httpGet.port", "web", "port 'web'"),
    ("ClusterQueue", "vthink-gpu", "spec.resourceGroups.0.coveredResources", ["cpu"], "coveredResources"),
    ("ClusterQueue", "vthink-gpu", "metadata.namespace", "vthink", "cluster-wide"),
    ("ResourceFlavor", "vthink-gpu", "spec.nodeLabels", None, "topologyName"),
    ("NetworkPolicy", "train", "spec.policyTypes", ["Ingress"], "policyTypes lacks Egress"),
    ("RoleBinding", "vthink-pipeline", "subjects.0.namespace", None, "namespace"),
    ("ClusterTrainingRuntime", "vthink-torch", "metadata.labels", {}, "framework"),
    ("ServingRuntime", "vthink-vllm", "spec.containers.0.name", "vllm", "kserve-container"),
    ("ScaledObject", "vthink", "spec.triggers.0.metadata.query", None, "query"),
    ("PrometheusRule", "vthink", "spec.groups.0.rules.0.annotations.runbook_url", None, "runbook_url"),
    # names and labels
    ("TrainJob", "", "metadata.name", "a" * 64, "RFC 1035"),
    ("TrainJob", "", "metadata.name", "1-starts-with-a-digit", "RFC 1035"),
    ("InferenceService", "", "metadata.name", "Video_R1", "RFC 1035"),
    ("TrainJob", "", "metadata.labels[vthink.dev/run]", "x" * 64, "not a label value"),
    ("TrainJob", "", "metadata.labels[vthink.dev/run]", "a b", "not a label value"),
    # what a controller refuses or misunderstands
    ("TrainJob", "", "spec.trainer.command.0", "accelerate", "use torchrun"),
    ("TrainJob", "", "spec.runtimePatches.0.manager", "launcher", "<domain>/<owner>"),
    ("TrainJob", "", "spec.managedBy", "me", "no controller"),
    ("InferenceService", "", "spec.predictor.model.storageUri", "s3://vthink/models/7", "must end in '/'"),
    ("InferenceService", "", "spec.predictor.model.modelFormat", None, "modelFormat"),
    ("InferenceService", "", "metadata.annotations", {}, "deploymentMode: Standard"),
    (
        "InferenceService",
        "",
        f"metadata.annotations[{'serving.kserve.io/deploymentMode'}]",
        "RawDeployment",
        "old names",
    ),
    ("InferenceService", "", "spec.predictor.minReplicas", 9, "exceeds maxReplicas"),
    ("InferenceService", "", "spec.canary.0.predictor.maxReplicas", 2, "replicas are fixed"),
    ("InferenceService", "", "spec.canary.0.predictor.minReplicas", 2, "exceeds that of the predictor"),
    ("InferenceService", "", "spec.predictor.model.name", "kserve-container", "not allowed"),
    ("InferenceService", "", "spec.predictor.autoScaling.metrics.0.external.target.value", None, "target.value"),
    ("InferenceService", "", "spec.canary.0.predictor.name", "v7", "a name of its own"),
    ("InferenceService", "", "spec.predictor.canaryTrafficPercent", 10, "use spec.canary"),
    ("InferenceService", "", "spec.predictor.autoScaling", None, "without autoScaling"),
    ("InferenceService", "", "spec.predictor.model.args.0", "--chat-template={{ messages }}", "placeholder"),
    ("ServingRuntime", "vthink-vllm", "spec.containers.0.args.0", "--name={{.Nome}}", "placeholder"),
    # another version, another kind
    ("LocalQueue", "gpu", "apiVersion", "kueue.x-k8s.io/v1alpha1", "not served"),
    ("LocalQueue", "gpu", "kind", "GlobalQueue", "no schema"),
    ("Deployment", "mlflow", "apiVersion", "extensions/v1beta1", "no schema"),
]


@pytest.mark.parametrize(("kind", "name", "path", "value", "expected"), MUTATIONS, ids=lambda v: str(v)[:40])
def test_a_mutated_manifest_is_refused(kind: str, name: str, path: str, value: Any, expected: str) -> None:
    obj = subject(kind, name)
    assert validate(obj) == []
    put(path, value)(obj)
    errors = validate(obj)
    assert errors
    assert expected in " ".join(errors)


@pytest.mark.parametrize("text", ["{{.Name}}", "{{ .Labels.team }}", "{{`{{`}} messages }}", "{% if x %}"])
def test_placeholders_and_quoted_braces_are_let_through(text: str) -> None:
    obj = subject("InferenceService", "")
    put("spec.predictor.model.args.0", text)(obj)
    assert validate(obj) == []


BROKEN_REFERENCES = [
    ("LocalQueue", "gpu", "spec.clusterQueue", "vthink-tpu", "ClusterQueue/vthink-tpu"),
    ("ClusterQueue", "vthink-gpu", "spec.resourceGroups.0.flavors.0.name", "vthink-tpu", "ResourceFlavor/vthink-tpu"),
    ("ResourceFlavor", "vthink-gpu", "spec.topologyName", "racks", "Topology/racks"),
    ("RoleBinding", "vthink-pipeline", "subjects.0.namespace", "default", "ServiceAccount/vthink-pipeline"),
    ("RoleBinding", "vthink-pipeline", "roleRef.name", "admin", "Role/admin"),
    ("Deployment", "mlflow", "spec.template.spec.serviceAccountName", "mlflow", "ServiceAccount/mlflow"),
    ("Deployment", "mlflow", "spec.template.spec.containers.0.envFrom.0.configMapRef.name", "x", "ConfigMap/x"),
    ("Service", "mlflow", "spec.selector", {"app": "x"}, "selects nothing"),
    ("Service", "mlflow", "spec.ports.0.targetPort", "web", "port web"),
    ("ServiceMonitor", "mlflow", "spec.endpoints.0.port", "metrics", "port metrics"),
    ("ServiceMonitor", "mlflow", "spec.selector.matchLabels", {"app": "x"}, "selects nothing"),
    ("StatefulSet", "mlflow-postgres", "spec.serviceName", "db", "Service/db"),
    ("ExternalSecret", "vthink-mlflow-db", "spec.target.name", "other", "Secret/vthink-mlflow-db"),
    ("ExternalSecret", "vthink-s3", "spec.secretStoreRef.name", "other", "SecretStore/other"),
]


@pytest.mark.parametrize(("kind", "name", "path", "value", "expected"), BROKEN_REFERENCES, ids=lambda v: str(v)[:40])
def test_a_name_that_leads_nowhere_is_refused(kind: str, name: str, path: str, value: Any, expected: str) -> None:
    found = overlay("gke")
    put(path, value)(one(found, kind, name))
    assert expected in " ".join(reference_errors(found))


FREE = {"annotations", "data", "default", "defaultRequest", "hard", "labels", "limits", "matchLabels", "nodeLabels"}
FREE |= {"requests", "metadata.selector", "nodeSelector"}


def fields(obj: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The mappings of an object that have fields, and not names of the user's choice."""
    for path, value in walk(obj):
        last = path.split(".")[-1]
        free = last in FREE or (obj["kind"] in ("Service", "ScaledObject") and last in ("selector", "metadata"))
        if not (free and path != "metadata"):
            yield value


def test_a_misspelled_field_is_refused_wherever_it_stands() -> None:
    by_kind = {obj["kind"]: obj for obj in [*overlay("gke"), *objects(*OPTIONAL), *map(yaml.safe_load, EXAMPLES)]}
    assert len(by_kind) > 20
    for kind, found in by_kind.items():
        for index, _ in enumerate(list(fields(found))):
            obj = copy.deepcopy(found)
            list(fields(obj))[index]["misspelt"] = "x"
            assert "misspelt" in " ".join(validate(obj)), (kind, index)


EXAMPLES = (TRAIN_JOB, INFERENCE_SERVICE)


def test_a_crd_is_read_for_every_kind_that_is_not_core() -> None:
    custom = {(o["apiVersion"], o["kind"]) for o in overlay("onprem") if crd_schema(o["apiVersion"], o["kind"])}
    assert len(custom) >= 11
