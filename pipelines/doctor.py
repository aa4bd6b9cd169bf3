"""Whether everything that a run leans on is there: ``vthink doctor``. Nothing is changed but a small S3 object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..components.common.context import RunContext
from ..components.common.launch.config import POOL_LABEL
from ..components.common.storage.names import StorageError
from ..components.common.storage.s3 import Storage
from .config import Config

TIMEOUT_S = 10
KINDS: tuple[tuple[str, str, str], ...] = (
    ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    ("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes"),
    ("kueue.x-k8s.io", "v1beta2", "localqueues"),
    ("serving.kserve.io", "v1beta1", "inferenceservices"),
    ("serving.kserve.io", "v1alpha1", "servingruntimes"),
)
"""Group, version and plural of the kinds that a run uses; an older version of the CRD lacks the version."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Literal["ok", "bad", "unknown"]
    """``unknown``: could not be looked at, which is no failure."""
    detail: str
    """What was found; for ``bad`` with what to do."""


def examine(config: Config, host: str | None, namespace: str, token: str | None = None) -> Iterator[Finding]:
    """Look at everything, in the order in which a run needs it.

    Args:
        config: the run.
        host: address of Kubeflow Pipelines; None: not looked at.
        namespace: the team's.
        token: for Kubeflow Pipelines.
    """
    yield from _pipelines(host, namespace, token)
    yield from _cluster(config, namespace)
    yield _storage(config)
    yield _tracking(config)


def _pipelines(host: str | None, namespace: str, token: str | None) -> Iterator[Finding]:
    from .kfp_client.client import Pipelines
    from .kfp_client.errors import SubmitError

    subject = "Kubeflow Pipelines"
    if not host:
        yield Finding(subject, "unknown", "not looked at; give --host or KF_PIPELINES_ENDPOINT")
        return
    try:
        found = Pipelines(host, namespace, token)
        runs = found.recent()
    except SubmitError as error:
        yield Finding(subject, "bad", str(error))
        return
    teams = f"namespace {namespace}" if found.multi_user else "single-user"
    yield Finding(subject, "ok", f"{host} answers, {teams}, {len(runs)} recent runs of this pipeline")


# --- the cluster --------------------------------------------------------------------------------------------------


def _cluster(config: Config, namespace: str) -> Iterator[Finding]:
    """What the Kubernetes API tells; the reader's own rights decide how much that is."""
    try:
        from kubernetes import client
        from kubernetes import config as access
        from kubernetes.config.config_exception import ConfigException
    except ImportError:
        yield Finding("cluster", "unknown", "not looked at; pip install 'vthink[cluster]'")
        return
    settings = client.Configuration()
    try:
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            access.load_incluster_config(client_configuration=settings)
        else:
            access.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=settings)
    except ConfigException as error:
        yield Finding("cluster", "unknown", f"not looked at; no kubeconfig ({_line(error)})")
        return
    settings.retries = False
    api = client.ApiClient(settings)
    try:
        version = _get(api, "/version")["gitVersion"]
    except Exception as error:  # everything that a wrong address, certificate or key leads to
        yield Finding("cluster", "bad", f"{settings.host} does not answer ({_line(error)}); check KUBECONFIG")
        return
    yield Finding("cluster", "ok", f"Kubernetes {version} at {settings.host}")
    yield from _kinds(api)
    yield from _queues(api, config, namespace)
    yield _quota(api, namespace)
    yield from _pools(api, config)
    yield _runtime(api, config)
    yield _serving(api, namespace)


def _get(api: Any, path: str) -> Any:
    """A GET of the Kubernetes API, as JSON."""
    return api.call_api(
        path, "GET", response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True,
        _request_timeout=TIMEOUT_S,
    )  # fmt: skip


def _look(subject: str, look: Callable[[], Finding]) -> Finding:
    """A look at the cluster, which may be denied."""
    from kubernetes.client.exceptions import ApiException

    try:
        return look()
    except ApiException as error:
        if error.status in (401, 403):
            return Finding(subject, "unknown", "you may not see it; ask an administrator")
        if error.status == 404:
            return Finding(subject, "bad", "the cluster does not know it; apply k8s/cluster (k8s/README.md)")
        return Finding(subject, "bad", f"the cluster answered {error.status} {error.reason}")
    except Exception as error:  # a connection that breaks off
        return Finding(subject, "bad", f"the cluster does not answer ({_line(error)})")


def _kinds(api: Any) -> Iterator[Finding]:
    for group, version, plural in KINDS:

        def look(group: str = group, version: str = version, plural: str = plural) -> Finding:
            subject = f"CRD {plural}.{group}"
            served = {entry["version"] for entry in _get(api, f"/apis/{group}")["versions"]}
            if version not in served:
                found = ", ".join(sorted(served))
                return Finding(
                    subject, "bad", f"serves {found}, not {version}; install the release that k8s/README.md names"
                )
            names = {entry["name"] for entry in _get(api, f"/apis/{group}/{version}")["resources"]}
            if plural not in names:
                return Finding(
                    subject, "bad", f"{group}/{version} has no {plural}; install the release in k8s/README.md"
                )
            return Finding(subject, "ok", version)

        yield _look(f"CRD {plural}.{group}", look)


def _queues(api: Any, config: Config, namespace: str) -> Iterator[Finding]:
    if not config.launch.cluster.queues:
        return
    space = config.launch.cluster.namespace or namespace
    for pool in sorted(set(config.launch.pool.values())):

        def look(pool: str = pool) -> Finding:
            subject = f"queue {pool}"
            listed = _get(api, f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{space}/localqueues")["items"]
            found = next((queue for queue in listed if queue["metadata"]["name"] == pool), None)
            if found is None:
                names = ", ".join(queue["metadata"]["name"] for queue in listed) or "none"
                return Finding(
                    subject, "bad", f"no LocalQueue of that name in {space} (there: {names}); see launch.pool"
                )
            conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
            active = conditions.get("Active", {})
            if active.get("status") == "False":
                return Finding(subject, "bad", f"is stopped: {active.get('message', 'its ClusterQueue is not active')}")
            status = found.get("status", {})
            waiting, admitted = status.get("pendingWorkloads", 0), status.get("admittedWorkloads", 0)
            return Finding(subject, "ok", f"{admitted} admitted, {waiting} waiting")

        yield _look(f"queue {pool}", look)


def _quota(api: Any, namespace: str) -> Finding:
    def look() -> Finding:
        tight = []
        for quota in _get(api, f"/api/v1/namespaces/{namespace}/resourcequotas")["items"]:
            status = quota.get("status", {})
            for name, hard in status.get("hard", {}).items():
                if hard != "0" and status.get("used", {}).get(name) == hard:
                    tight.append(f"{name} {hard} of {hard}")
        if tight:
            return Finding("quota", "bad", f"used up in {namespace}: {', '.join(tight)}; end something, or raise it")
        return Finding("quota", "ok", f"room in {namespace}")

    return _look("quota", look)


def _pools(api: Any, config: Config) -> Iterator[Finding]:
    resource = config.launch.cluster.accelerator
    for pool in sorted(set(config.launch.pool.values())):

        def look(pool: str = pool) -> Finding:
            subject = f"nodes of pool {pool}"
            nodes = _get(api, f"/api/v1/nodes?labelSelector={POOL_LABEL}%3D{pool}")["items"]
            ready = [
                node for node in nodes
                if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
            ]  # fmt: skip
            gpus = sum(int(node["status"].get("allocatable", {}).get(resource, 0)) for node in ready) if resource else 0
            label = f"label {POOL_LABEL}={pool}"
            if not nodes:
                # An autoscaler may make them when something waits.
                return Finding(subject, "unknown", f"none now with {label}; fine only if an autoscaler makes them")
            if not ready:
                return Finding(subject, "bad", f"{len(nodes)} with {label}, none of them ready")
            return Finding(subject, "ok", f"{len(ready)} ready, {gpus} × {resource}")

        yield _look(f"nodes of pool {pool}", look)


def _runtime(api: Any, config: Config) -> Finding:
    name = config.launch.cluster.runtime

    def look() -> Finding:
        listed = _get(api, "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes")["items"]
        names = [entry["metadata"]["name"] for entry in listed]
        if name not in names:
            there = ", ".join(names) or "none"
            return Finding(
                "training runtime", "bad", f"no ClusterTrainingRuntime {name} (there: {there}); apply k8s/cluster"
            )
        return Finding("training runtime", "ok", name)

    return _look("training runtime", look)


def _serving(api: Any, namespace: str) -> Finding:
    def look() -> Finding:
        listed = _get(api, f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices")["items"]
        states = []
        for entry in listed:
            conditions = {c["type"]: c["status"] for c in entry.get("status", {}).get("conditions", [])}
            states.append(
                f"{entry['metadata']['name']} {'ready' if conditions.get('Ready') == 'True' else 'not ready'}"
            )
        return Finding("KServe", "ok", ", ".join(states) or f"no model served in {namespace} yet")

    return _look("KServe", look)


# --- what stages write to -----------------------------------------------------------------------------------------


def _storage(config: Config) -> Finding:
    storage = Storage(config.storage.model_copy(update={"outage_s": 0.0}))
    try:
        storage.check()
    except StorageError as error:
        return Finding("S3", "bad", str(error))
    return Finding("S3", "ok", f"wrote, read and deleted an object below {config.storage.root_uri}")


def _tracking(config: Config) -> Finding:
    from ..components.common.tracking.client import TrackingError, registry_client, short_timeouts, tracking_uri

    context = RunContext(run_id="doctor", storage=config.storage, tracking=config.tracking)
    try:
        uri = tracking_uri(context.tracking)
        with short_timeouts():
            registry_client(context.tracking, context.storage).search_experiments(max_results=1)
    except TrackingError as error:
        return Finding("MLflow", "bad", str(error))
    except Exception as error:  # MLflow passes on what its HTTP library raises
        return Finding("MLflow", "bad", f"does not answer ({_line(error)}); check tracking.uri, MLFLOW_TRACKING_URI")
    return Finding("MLflow", "ok", uri.rpartition("@")[2])


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
