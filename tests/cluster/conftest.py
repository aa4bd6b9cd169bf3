"""A Kubernetes API for the tests: the one that ``KUBECONFIG`` names, or a small server that keeps its rules.

README.md, beside this file, says what a real one must have, how to run against it, and what differs there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from vthink.components.common.launch.kubernetes.client import WORKFLOW, WORKLOAD, Cluster
from vthink.tests.fakes.admission import WORKLOAD_SCHEMA
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
        # Read only, and written by the test: no CRD needed.
        for kind, schema in ((WORKLOAD, WORKLOAD_SCHEMA), (WORKFLOW, None)):
            started.store.add(Resource(kind.group, kind.version, kind.plural, kind.name, schema))
        yield started


@pytest.fixture
def admin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A namespace of this test's own on the API, as somebody sees it who may do everything."""
    namespace = f"vthink-test-{secrets.token_hex(4)}"
    server: ApiServer | None = None
    if "KUBECONFIG" not in os.environ:
        server = request.getfixturevalue("server")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "admin", server.admin_token)))
    made = Cluster.connect(namespace)
    made.patience_s = 30.0
    path = "/api/v1/namespaces"
    made.request("POST", path, body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    if server is not None:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        server.requests.clear()
    yield made
    if server is None:
        made.request("DELETE", f"{path}/{namespace}", body={})


@pytest.fixture
def cluster(admin: Cluster) -> Cluster:
    """The same namespace as our code sees it: on the small server with the rights of ``vthink-pipeline``."""
    made = Cluster.connect(admin.namespace)
    made.patience_s = admin.patience_s
    return made


@pytest.fixture
def trouble(request: pytest.FixtureRequest, cluster: Cluster) -> ApiServer:
    """The small server, to make it fail; a real API cannot be asked to."""
    if not str(cluster.api_client.configuration.host).startswith("http://127.0.0.1:"):
        pytest.skip("a real API cannot be asked to fail")
    server: ApiServer = request.getfixturevalue("server")
    return server


@pytest.fixture
def hand(admin: Cluster) -> Hand:
    return Hand(admin)
