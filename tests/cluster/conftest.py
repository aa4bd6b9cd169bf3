"""A Kubernetes API for the tests: the one that ``KUBECONFIG`` names, or a small server that keeps its rules.

A real API needs the CRDs of Trainer, KServe, Kueue and Argo Workflows, and none of their controllers: the test plays
those. Tests that make trouble (429, 410, broken connections, logs) are skipped there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from vthink.components.common.launch.kubernetes.client import WORKFLOW, WORKLOAD, Cluster
from vthink.tests.fakes.controllers import Hand
from vthink.tests.fakes.kubernetes_api import ApiServer
from vthink.tests.fakes.kubernetes_store import Resource


@pytest.fixture(scope="session")
def crds() -> Path:
    """The folder of CRDs."""
    folder = os.environ.get("VTHINK_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VTHINK_CRDS names no folder of CRDs")
    return Path(folder)


@pytest.fixture
def server(crds: Path) -> Iterator[ApiServer]:
    """The small server."""
    with ApiServer(crds) as started:
        for kind in (WORKLOAD, WORKFLOW):  # read only, and written by the test: no CRD needed
            started.store.add(Resource(kind.group, kind.version, kind.plural, kind.name, None))
        yield started


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A namespace of this test's own on the API, as our code sees it."""
    namespace = f"vthink-test-{secrets.token_hex(4)}"
    if "KUBECONFIG" not in os.environ:
        server: ApiServer = request.getfixturevalue("server")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig", namespace)))
        made = Cluster.connect()
        made.patience_s = 30.0
        yield made
        return
    found = Cluster.connect(namespace)
    path = "/api/v1/namespaces"
    found.request("POST", path, body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    yield found
    found.request("DELETE", f"{path}/{namespace}", body={})


@pytest.fixture
def trouble(request: pytest.FixtureRequest, cluster: Cluster) -> ApiServer:
    """The small server, to make it fail; a real API cannot be asked to."""
    if not str(cluster.api_client.configuration.host).startswith("http://127.0.0.1:"):
        pytest.skip("a real API cannot be asked to fail")
    server: ApiServer = request.getfixturevalue("server")
    return server


@pytest.fixture
def hand(cluster: Cluster) -> Hand:
    return Hand(cluster)
