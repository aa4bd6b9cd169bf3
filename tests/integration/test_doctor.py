"""``vthink doctor``: Kubeflow Pipelines, a cluster, S3 and MLflow that are well, and each of them ill in turn."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.tracking.config import TrackingConfig
from vthink.pipelines.cli.main import app
from vthink.pipelines.config import Config, load, to_yaml
from vthink.pipelines.doctor import KINDS, RIGHTS, _finding, examine
from vthink.pipelines.preflight.finding import Finding
from vthink.pipelines.preflight.network import check_store
from vthink.tests.fakes.admission import manifests
from vthink.tests.fakes.kfp_server import API, KfpServer

SPACE = "/apis/{group}/{version}/namespaces/team/{plural}"
QUEUES = "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/localqueues"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
MODELS = "/apis/serving.kserve.io/v1beta1/namespaces/team/inferenceservices"
QUOTAS = "/api/v1/namespaces/team/resourcequotas"
NODES = "/api/v1/nodes?labelSelector=vthink.dev/pool=gpu"


PRIORITIES = "/apis/kueue.x-k8s.io/v1beta2/workloadpriorityclasses"
SERVING = "/apis/serving.kserve.io/v1alpha1/namespaces/team/servingruntimes"
DNS = "/api/v1/namespaces/kube-system/services/kube-dns"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies"
MESH = "/apis/security.istio.io/v1/namespaces/team/peerauthentications"
REFUSED = "verbs that nobody is granted"


def healthy() -> dict[str, Any]:
    """What the API server of a cluster with everything answers, by path; a number is an error's status."""
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.1"},
        QUEUES: {"items": [{"metadata": {"name": "gpu"}, "status": {
            "admittedWorkloads": 1, "pendingWorkloads": 2, "conditions": [{"type": "Active", "status": "True"}]}}]},
        RUNTIMES: {"items": [{"metadata": {"name": "vthink-torch"}}]},
        MODELS: {"items": [{"metadata": {"name": "vthink"}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}]}}]},
        QUOTAS: {"items": [{"status": {
            "hard": {"requests.nvidia.com/gpu": "16"}, "used": {"requests.nvidia.com/gpu": "8"}}}]},
        NODES: {"items": [{"status": {
            "conditions": [{"type": "Ready", "status": "True"}], "allocatable": {
                "cpu": "95500m", "memory": "943718400Ki", "ephemeral-storage": "3Ti", "nvidia.com/gpu": "8"}}}]},
    }  # fmt: skip
    answers |= {
        PRIORITIES: {"items": [{"metadata": {"name": "vthink-normal"}, "value": 500}]},
        "/api/v1/namespaces/team/configmaps": {"items": [{"metadata": {"name": "vthink-env"}}]},
        "/api/v1/namespaces/team/secrets/vthink-s3": {"metadata": {"name": "vthink-s3"}},
        SERVING: {"items": [{"metadata": {"name": "vthink-vllm"}, "spec": {
            "protocolVersions": ["v1", "v2"], "supportedModelFormats": [{"name": "vLLM"}]}}]},
        REFUSED: [],
        DNS: {"spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}},
        POLICIES: {"items": manifests("team/network-policies.yaml")},
        MESH: 404,
    }  # fmt: skip
    for group, version, plural in KINDS:
        versions = answers.setdefault(f"/apis/{group}", {"versions": []})["versions"]
        if {"version": version} not in versions:
            versions.append({"version": version})
        answers.setdefault(f"/apis/{group}/{version}", {"resources": []})["resources"].append({"name": plural})
    return answers


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Kubernetes API with the answers of the dictionary; only the holder of the right token gets them."""
    answers = healthy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("authorization") == "Bearer kube"
            found = answers.get(unquote(self.path), 404) if known else 401
            status, body = (found, {"message": "no"}) if isinstance(found, int) else (200, found)
            data = json.dumps(body).encode()
            self.answer(status, data)

        def do_POST(self) -> None:
            assert self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            what = f"{asked['verb']} {resource}"
            what = what if asked["namespace"] == "team" else f"{what} in {asked['namespace']}"
            allowed = what not in answers[REFUSED] and "*" not in answers[REFUSED]
            self.answer(201, json.dumps({"status": {"allowed": allowed}}).encode())

        def answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kubeconfig = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "kube"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }  # fmt: skip
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield answers
    server.shutdown()
    server.server_close()


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    if API not in os.environ:
        pytest.skip(f"{API} does not name KFP's v2beta1 definition")
    server = KfpServer()
    server.start()
    yield server
    server.stop()
    assert server.violations == []


@pytest.fixture
def config(s3: StorageConfig, tracking: TrackingConfig) -> Config:
    made = load("video_r1_7b", ["launch.pool={sft: gpu, grpo: gpu, evaluate: gpu}"])
    return made.model_copy(update={"storage": s3, "tracking": tracking})


def findings(config: Config, kfp: KfpServer | None = None) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(config, kfp.url if kfp else None, "team", "secret")}


def ill(found: dict[str, Finding]) -> dict[str, str]:
    return {subject: finding.detail for subject, finding in found.items() if finding.verdict == "bad"}


def test_where_everything_is_there_every_line_is_ok(config: Config, cluster: dict[str, Any], kfp: KfpServer):
    found = findings(config, kfp)
    # Which the cluster may reach, and this machine does not; and a store on this machine, which pods may not.
    of_pods = {"rows", "model", "way to S3"}
    assert {s: f.detail for s, f in found.items() if f.verdict != "ok" and s not in of_pods} == {}
    assert {found[subject].verdict for subject in of_pods} == {"unknown"}
    assert list(found) == [
        "Kubeflow Pipelines", "cluster", *(f"CRD {plural}.{group}" for group, _, plural in KINDS), "queue gpu", "quota",
        "nodes of pool gpu", "training runtime", "priority", "environment", "DNS",
        "way to S3", "mesh", "serving runtime", "KServe",
        "rights to train", "rights to serve", "S3", "MLflow", "rows", "model",
    ]  # fmt: skip
    assert found["queue gpu"].detail == "1 admitted, 2 waiting"
    assert found["nodes of pool gpu"].detail == "1 ready, 8 × nvidia.com/gpu"


@pytest.mark.parametrize(
    ("path", "answer", "subject", "said"),
    [
        ("/apis/trainer.kubeflow.org", 404, "CRD trainjobs.trainer.kubeflow.org", "apply k8s/cluster"),
        ("/apis/kueue.x-k8s.io", {"versions": [{"version": "v1beta1"}]}, "CRD localqueues.kueue.x-k8s.io",
         "serves v1beta1, not v1beta2"),
        ("/apis/serving.kserve.io/v1beta1", {"resources": []}, "CRD inferenceservices.serving.kserve.io",
         "has no inferenceservices"),
        (QUEUES, {"items": [{"metadata": {"name": "cpu"}}]}, "queue gpu", r"no LocalQueue .* \(there: cpu\)"),
        (QUEUES, {"items": [{"metadata": {"name": "gpu"}, "status": {"conditions": [
            {"type": "Active", "status": "False", "message": "ClusterQueue missing"}]}}]}, "queue gpu",
         "is stopped: ClusterQueue missing"),
        (QUOTAS, {"items": [{"status": {"hard": {"pods": "5"}, "used": {"pods": "5"}}}]}, "quota", "pods 5 of 5"),
        (NODES, {"items": [{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}]}, "nodes of pool gpu",
         "none of them ready"),
        (NODES, {"items": [{"status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {
            "cpu": "96", "memory": "128Gi", "ephemeral-storage": "3Ti", "nvidia.com/gpu": "8"}}}]},
         "nodes of pool gpu", r"room for a pod of sft, which asks for cpu 64, memory \d+Gi"),
        (RUNTIMES, {"items": []}, "training runtime", "no ClusterTrainingRuntime vthink-torch"),
        (MODELS, 500, "KServe", "answered 500"),
        (PRIORITIES, {"items": []}, "priority", "no WorkloadPriorityClass vthink-normal"),
        ("/api/v1/namespaces/team/configmaps", {"items": []}, "environment", "no ConfigMap vthink-env in team"),
        (SERVING, {"items": []}, "serving runtime", "no ServingRuntime vthink-vllm"),
        (SERVING, {"items": [{"metadata": {"name": "vthink-vllm"}, "spec": {"protocolVersions": ["v1"]}}]},
         "serving runtime", "lacks protocol v2"),
        (REFUSED, ["create trainjobs", "get pods"], "rights to train", "may not, in team: create trainjobs, get pods"),
        (REFUSED, ["update inferenceservices"], "rights to serve", "update inferenceservices; use the account"),
    ],
    ids=["no Trainer", "an old Kueue", "no KServe", "no queue", "a stopped queue", "no quota left", "no node ready",
         "a small node", "no runtime", "trouble", "no priority", "no environment", "no serving runtime",
         "an old serving runtime", "no right to train", "no right to serve"],
)  # fmt: skip
def test_what_the_cluster_lacks_is_named_with_what_to_do(
    config: Config, cluster: dict[str, Any], path: str, answer: Any, subject: str, said: str
):
    import re

    cluster[path] = copy.deepcopy(answer)
    found = ill(findings(config))
    assert re.search(said, found[subject]), found
    assert not any("\n" in detail for detail in found.values())


def test_what_one_may_not_see_is_no_failure(config: Config, cluster: dict[str, Any]):
    cluster[NODES] = cluster[QUOTAS] = 403
    found = findings(config)
    assert ill(found) == {}
    assert found["quota"].detail == "you may not see it; ask an administrator"
    cluster[NODES] = {"items": []}
    assert findings(config)["nodes of pool gpu"].verdict == "unknown"


def test_what_cannot_be_reached_is_named(
    config: Config, cluster: dict[str, Any], kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away = f"http://127.0.0.1:{free_port()}"
    broken = config.model_copy(
        update={
            "storage": config.storage.model_copy(update={"endpoint_url": away}),
            "tracking": config.tracking.model_copy(update={"uri": away}),
        }
    )
    kubeconfig = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] = away
    (tmp_path / "wrong").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "wrong"))
    kfp.tokens = set()
    found = ill(findings(broken, kfp))
    assert set(found) == {"Kubeflow Pipelines", "cluster", "S3", "MLflow"}
    assert "does not know you" in found["Kubeflow Pipelines"]
    assert "check KUBECONFIG" in found["cluster"]
    assert "cannot reach the S3 endpoint" in found["S3"]
    assert not any("\n" in detail for detail in found.values())


def test_without_a_kubeconfig_the_cluster_is_not_looked_at(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    found = findings(config)
    assert (found["cluster"].verdict, found["Kubeflow Pipelines"].verdict) == ("unknown", "unknown")
    assert ill(found) == {}


def test_the_exit_code_says_whether_all_is_well(
    config: Config, cluster: dict[str, Any], kfp: KfpServer, tmp_path: Path
):
    (tmp_path / "team.yaml").write_text(to_yaml(config))

    options = ["doctor", "--config", str(tmp_path / "team.yaml"), "--host", kfp.url, "--namespace", "team"]
    environment = {"NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "vthink.pipelines.cli.main", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith(("✓ ", "– rows", "– model", "– way to S3")) for line in done.stdout.splitlines())
    cluster[RUNTIMES] = {"items": []}
    here = CliRunner(env=environment).invoke(app, options)
    assert here.exit_code == 1
    assert [line for line in here.stdout.splitlines() if line.startswith("✗ ")] == [
        "✗ training runtime: no ClusterTrainingRuntime vthink-torch (there: none); apply k8s/cluster"
    ]


def test_what_is_asked_for_is_what_the_role_of_the_pipeline_grants():
    rules = next(obj for obj in manifests("team/rbac.yaml") if obj["kind"] == "Role")["rules"]
    granted = {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    assert {right for rights in RIGHTS.values() for right in rights} == granted


def test_an_account_that_may_do_nothing_is_no_success(config: Config, cluster: dict[str, Any]):
    for path, answer in list(cluster.items()):
        if "namespaces" in path and not isinstance(answer, int):
            cluster[path] = 403
    assert ill(findings(config)) == {}  # not seen, which alone is no failure
    cluster[REFUSED] = ["*"]
    assert set(ill(findings(config))) == {"rights to train", "rights to serve"}


def test_a_served_model_in_the_pool_of_training_is_pointed_out(config: Config, cluster: dict[str, Any]):
    pools = {"sft": "gpu", "deploy": "gpu"}
    for pool, verdict in (("gpu", "unknown"), ("serve", "ok")):
        launch = config.launch.model_copy(update={"pool": pools | {"deploy": pool}})
        found = findings(config.model_copy(update={"launch": launch}))
        assert found["serving pool"].verdict == verdict


@pytest.mark.parametrize(
    ("path", "answer", "subject", "said"),
    [
        (DNS, {"spec": {"clusterIP": "34.118.224.10"}}, "DNS", 
         "no policy of team lets every pod reach 34.118.224.10 on port 53"),
        (DNS, 404, "DNS", "no Service kube-dns"),
        (MESH, {"items": [{"metadata": {"name": "all"}, "spec": {"mtls": {"mode": "STRICT"}}}]}, "mesh",
         "PeerAuthentication all of team asks for mTLS.*exempt ports 5000 and 8080"),
    ],
    ids=["a cloud's range", "no kube-dns", "a strict mesh"],
)  # fmt: skip
def test_what_policies_and_a_mesh_keep_from_pods_is_pointed_out(
    config: Config, cluster: dict[str, Any], path: str, answer: Any, subject: str, said: str
):
    import re

    cluster[path] = answer
    found = findings(config)
    assert found[subject].verdict == "unknown"
    assert re.search(said, found[subject].detail)


def test_a_mesh_that_exempts_our_ports_is_well(config: Config, cluster: dict[str, Any]):
    exempt = {port: {"mode": "PERMISSIVE"} for port in ("5000", "8080")}
    spec = {"mtls": {"mode": "STRICT"}, "portLevelMtls": exempt}
    cluster[MESH] = {"items": [{"metadata": {"name": "all"}, "spec": spec}]}
    cluster[MESH.replace("team", "istio-system")] = {"items": []}
    assert findings(config)["mesh"].verdict == "ok"


def test_s3_at_a_private_address_needs_a_policy(
    config: Config, cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    resolve = socket.getaddrinfo

    def pretended(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("10.20.40.5" if host == "s3.example.org" else host, port, *args, **kwargs)

    monkeypatch.setattr("vthink.pipelines.preflight.network.socket.getaddrinfo", pretended)

    store = StorageConfig(endpoint_url="https://s3.example.org", bucket="b")

    def way() -> Finding:
        return _finding("way", lambda: check_store(get, "team", store))

    def get(path: str) -> Any:
        return cluster[path]

    assert way().verdict == "unknown"
    assert "s3.example.org is 10.20.40.5 here" in way().detail
    cluster[POLICIES]["items"] += manifests("team/private-endpoints/network-policy.yaml")
    assert way().detail == "s3.example.org (10.20.40.5) on port 443"
    cluster[POLICIES] = {"items": []}  # nothing is kept from anyone
    assert way().verdict == "ok"


def test_a_namespace_for_training_alone_is_looked_at_itself(config: Config, cluster: dict[str, Any]):
    elsewhere = config.launch.cluster.model_copy(update={"namespace": "rdma"})
    launch = config.launch.model_copy(update={"cluster": elsewhere})
    there = {path.replace("/team/", "/rdma/"): copy.deepcopy(answer) for path, answer in cluster.items()}
    cluster |= there
    # The launcher's own run is not there, and the Role of k8s/cluster/rdma does not let it look.
    cluster[REFUSED] = ["get workflows in rdma", "get pods in rdma"]
    changed = config.model_copy(update={"launch": launch})
    assert ill(findings(changed)) == {}
    cluster["/api/v1/namespaces/rdma/configmaps"] = {"items": []}
    cluster[REFUSED] = ["create trainjobs in rdma"]
    found = ill(findings(changed))
    assert "no ConfigMap vthink-env in rdma" in found["environment"]
    assert "may not, in rdma: create trainjobs" in found["rights to train"]
    assert set(found) == {"environment", "rights to train"}
    assert "DNS of rdma" in findings(changed)
