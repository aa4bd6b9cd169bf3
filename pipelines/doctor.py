"""Whether everything that a run leans on is there: ``vthink doctor``. Nothing is changed but a small S3 object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..components.common.errors import UserError
from ..components.common.launch.config import POOL_LABEL
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

Verdict = Literal["ok", "bad", "unknown"]
"""``unknown``: could not be looked at, which is no failure."""
Result = tuple[Verdict, str]
"""A verdict and what was seen; for ``bad`` with what to do."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Verdict
    detail: str


def examine(config: Config, host: str | None, namespace: str, token: str | None = None) -> Iterator[Finding]:
    """Look at everything, in the order in which a run needs it.

    Args:
        config: the run.
        host: address of Kubeflow Pipelines; None: not looked at.
        namespace: the team's.
        token: for Kubeflow Pipelines.
    """
    yield Finding("Kubeflow Pipelines", *_check_pipelines(host, namespace, token))
    yield from _cluster(config, namespace)
    yield Finding("S3", *_check_storage(config))
    yield Finding("MLflow", *_check_tracking(config))


def _check_pipelines(host: str | None, namespace: str, token: str | None) -> Result:
    from .kfp_client.connection import KfpConnection
    from .kfp_client.runs import recent_runs

    if not host:
        return "unknown", "not looked at; give --host or KF_PIPELINES_ENDPOINT"
    try:
        kfp = KfpConnection(host, namespace, token)
        runs = recent_runs(kfp)
    except UserError as error:
        return "bad", str(error)
    teams = f"namespace {namespace}" if kfp.multi_user else "single-user"
    return "ok", f"{host} answers, {teams}, {len(runs)} recent runs of this pipeline"


# --- the cluster --------------------------------------------------------------------------------------------------

Get = Callable[[str], Any]
"""A GET of a path of the Kubernetes API, as JSON."""


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
        yield Finding("cluster", "unknown", f"not looked at; no kubeconfig ({_first_line(error)})")
        return
    settings.retries = False
    get = partial(_get, client.ApiClient(settings))
    try:
        version = get("/version")["gitVersion"]
    except Exception as error:  # everything that a wrong address, certificate or key leads to
        yield Finding("cluster", "bad", f"{settings.host} does not answer ({_first_line(error)}); check KUBECONFIG")
        return
    yield Finding("cluster", "ok", f"Kubernetes {version} at {settings.host}")
    for subject, check in _cluster_checks(get, config, namespace):
        yield Finding(subject, *_permitted(check))


def _cluster_checks(get: Get, config: Config, namespace: str) -> Iterator[tuple[str, Callable[[], Result]]]:
    launch, pools = config.launch.cluster, sorted(set(config.launch.pool.values()))
    for group, version, plural in KINDS:
        yield f"CRD {plural}.{group}", partial(_check_kind, get, group, version, plural)
    for pool in pools if launch.queues else ():
        yield f"queue {pool}", partial(_check_queue, get, launch.namespace or namespace, pool)
    yield "quota", partial(_check_quota, get, namespace)
    for pool in pools:
        yield f"nodes of pool {pool}", partial(_check_nodes, get, pool, launch.accelerator)
    yield "training runtime", partial(_check_runtime, get, launch.runtime)
    yield "KServe", partial(_check_serving, get, namespace)


def _get(api: Any, path: str) -> Any:
    return api.call_api(
        path, "GET", response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True,
        _request_timeout=TIMEOUT_S,
    )  # fmt: skip


def _permitted(check: Callable[[], Result]) -> Result:
    """The result of a look at the cluster, which may be denied."""
    from kubernetes.client.exceptions import ApiException

    try:
        return check()
    except ApiException as error:
        if error.status in (401, 403):
            return "unknown", "you may not see it; ask an administrator"
        if error.status == 404:
            return "bad", "the cluster does not know it; apply k8s/cluster (k8s/README.md)"
        return "bad", f"the cluster answered {error.status} {error.reason}"
    except Exception as error:  # a connection that breaks off
        return "bad", f"the cluster does not answer ({_first_line(error)})"


def _check_kind(get: Get, group: str, version: str, plural: str) -> Result:
    served = {entry["version"] for entry in get(f"/apis/{group}")["versions"]}
    if version not in served:
        listed = ", ".join(sorted(served))
        return "bad", f"serves {listed}, not {version}; install the release that k8s/README.md names"
    if plural not in {entry["name"] for entry in get(f"/apis/{group}/{version}")["resources"]}:
        return "bad", f"{group}/{version} has no {plural}; install the release in k8s/README.md"
    return "ok", version


def _check_queue(get: Get, namespace: str, name: str) -> Result:
    queues = get(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues")["items"]
    by_name = {queue["metadata"]["name"]: queue.get("status", {}) for queue in queues}
    if name not in by_name:
        names = ", ".join(by_name) or "none"
        return "bad", f"no LocalQueue of that name in {namespace} (there: {names}); see launch.pool"
    status = by_name[name]
    active = {condition["type"]: condition for condition in status.get("conditions", [])}.get("Active", {})
    if active.get("status") == "False":
        return "bad", f"is stopped: {active.get('message', 'its ClusterQueue is not active')}"
    return "ok", f"{status.get('admittedWorkloads', 0)} admitted, {status.get('pendingWorkloads', 0)} waiting"


def _check_quota(get: Get, namespace: str) -> Result:
    used_up = []
    for quota in get(f"/api/v1/namespaces/{namespace}/resourcequotas")["items"]:
        status = quota.get("status", {})
        for name, hard in status.get("hard", {}).items():
            if hard != "0" and status.get("used", {}).get(name) == hard:
                used_up.append(f"{name} {hard} of {hard}")
    if used_up:
        return "bad", f"used up in {namespace}: {', '.join(used_up)}; end something, or raise it"
    return "ok", f"room in {namespace}"


def _check_nodes(get: Get, pool: str, resource: str | None) -> Result:
    nodes = [node["status"] for node in get(f"/api/v1/nodes?labelSelector={POOL_LABEL}%3D{pool}")["items"]]
    ready = [status for status in nodes if _condition(status, "Ready") == "True"]
    gpus = sum(int(status.get("allocatable", {}).get(resource, 0)) for status in ready)
    label = f"label {POOL_LABEL}={pool}"
    if not nodes:
        # An autoscaler may make them when something waits.
        return "unknown", f"none now with {label}; fine only if an autoscaler makes them"
    if not ready:
        return "bad", f"{len(nodes)} with {label}, none of them ready"
    return "ok", f"{len(ready)} ready, {gpus} × {resource}"


def _check_runtime(get: Get, name: str) -> Result:
    runtimes = get("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes")["items"]
    names = [runtime["metadata"]["name"] for runtime in runtimes]
    if name not in names:
        listed = ", ".join(names) or "none"
        return "bad", f"no ClusterTrainingRuntime {name} (there: {listed}); apply k8s/cluster"
    return "ok", name


def _check_serving(get: Get, namespace: str) -> Result:
    services = get(f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices")["items"]
    states = [
        f"{service['metadata']['name']} "
        + ("ready" if _condition(service.get("status", {}), "Ready") == "True" else "not ready")
        for service in services
    ]
    return "ok", ", ".join(states) or f"no model served in {namespace} yet"


def _condition(status: dict[str, Any], kind: str) -> str | None:
    return next((entry["status"] for entry in status.get("conditions", []) if entry["type"] == kind), None)


# --- what stages write to -----------------------------------------------------------------------------------------


def _check_storage(config: Config) -> Result:
    try:
        Storage(config.storage.model_copy(update={"outage_s": 0.0})).check()
    except UserError as error:
        return "bad", str(error)
    return "ok", f"wrote, read and deleted an object below {config.storage.root_uri}"


def _check_tracking(config: Config) -> Result:
    from ..components.common.tracking.client import registry_client, short_timeouts, tracking_uri

    try:
        uri = tracking_uri(config.tracking)
        with short_timeouts():
            registry_client(config.tracking, config.storage).search_experiments(max_results=1)
    except UserError as error:
        return "bad", str(error)
    except Exception as error:  # MLflow passes on what its HTTP library raises
        return "bad", f"does not answer ({_first_line(error)}); check tracking.uri, MLFLOW_TRACKING_URI"
    return "ok", uri.rpartition("@")[2]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
