"""Whether everything that a run leans on is there: ``vthink doctor``. Nothing is changed but a small S3 object."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..components.common.errors import UserError, first_line
from ..components.common.launch.config import POOL_LABEL
from ..components.common.launch.kubernetes.client import Cluster, ClusterError, condition, is_true
from ..components.common.storage.s3 import Storage
from ..components.common.tracking.client import registry_client, short_timeouts, tracking_uri
from .config import Config
from .kfp_client.connection import KfpConnection
from .kfp_client.runs import recent_runs

KINDS: tuple[tuple[str, str, str], ...] = (
    ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    ("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes"),
    ("kueue.x-k8s.io", "v1beta2", "localqueues"),
    ("serving.kserve.io", "v1beta1", "inferenceservices"),
    ("serving.kserve.io", "v1alpha1", "servingruntimes"),
)
"""Group, version and plural of the kinds that a run uses; an older version of the CRD lacks the version."""
Check = Callable[[], str]  # says what was seen, or raises a `UserError` that says what to do
Get = Callable[[str], Any]  # a GET of a path of the Kubernetes API, as JSON


class NotSeenError(UserError):
    """Something could not be looked at, which is no failure."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    verdict: Literal["ok", "bad", "unknown"]
    detail: str


def examine(config: Config, host: str | None, namespace: str, token: str | None = None) -> Iterator[Finding]:
    """Look at everything, in the order in which a run needs it; at Kubeflow Pipelines where ``host`` is its address."""
    yield _finding("Kubeflow Pipelines", partial(_check_pipelines, host, namespace, token))
    try:
        cluster = Cluster.connect(namespace)
    except ClusterError as error:
        yield Finding("cluster", "unknown", f"not looked at; {error}")
    else:
        cluster.patience_s = 0.0
        get = partial(cluster.request, "GET")
        reached = _finding("cluster", partial(_check_cluster, get, cluster.api_client.configuration.host))
        yield reached
        if reached.verdict == "ok":
            yield from (_finding(subject, check) for subject, check in _cluster_checks(get, config, namespace))
    yield _finding("S3", partial(_check_storage, config))
    yield _finding("MLflow", partial(_check_tracking, config))


def _finding(subject: str, check: Check) -> Finding:
    try:
        return Finding(subject, "ok", check())
    except NotSeenError as error:
        return Finding(subject, "unknown", str(error))
    except ClusterError as error:
        if error.status in (401, 403):
            return Finding(subject, "unknown", "you may not see it; ask an administrator")
        if error.status == 404:
            return Finding(subject, "bad", "the cluster does not know it; apply k8s/cluster (k8s/README.md)")
        return Finding(subject, "bad", f"the cluster answered {error.status}" if error.status else str(error))
    except UserError as error:
        return Finding(subject, "bad", str(error))


def _check_pipelines(host: str | None, namespace: str, token: str | None) -> str:
    if not host:
        raise NotSeenError("not looked at; give --host or KF_PIPELINES_ENDPOINT")
    kfp = KfpConnection(host, namespace, token)
    teams = f"namespace {namespace}" if kfp.multi_user else "single-user"
    return f"{host} answers, {teams}, {len(recent_runs(kfp))} recent runs of this pipeline"


# --- the cluster; the reader's own rights decide how much is seen of it


def _check_cluster(get: Get, host: str) -> str:
    try:
        return f"Kubernetes {get('/version')['gitVersion']} at {host}"
    except Exception as error:  # everything that a wrong address, certificate or key leads to
        raise UserError(f"{host} does not answer ({first_line(error, 200)}); check KUBECONFIG") from error


def _cluster_checks(get: Get, config: Config, namespace: str) -> Iterator[tuple[str, Check]]:
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


def _check_kind(get: Get, group: str, version: str, plural: str) -> str:
    served = {entry["version"] for entry in get(f"/apis/{group}")["versions"]}
    if version not in served:
        listed = ", ".join(sorted(served))
        raise UserError(f"serves {listed}, not {version}; install the release that k8s/README.md names")
    if plural not in {entry["name"] for entry in get(f"/apis/{group}/{version}")["resources"]}:
        raise UserError(f"{group}/{version} has no {plural}; install the release in k8s/README.md")
    return version


def _check_queue(get: Get, namespace: str, name: str) -> str:
    queues = get(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues")["items"]
    by_name = {queue["metadata"]["name"]: queue for queue in queues}
    if name not in by_name:
        names = ", ".join(by_name) or "none"
        raise UserError(f"no LocalQueue of that name in {namespace} (there: {names}); see launch.pool")
    active, status = condition(by_name[name], "Active"), by_name[name].get("status", {})
    if active.get("status") == "False":
        raise UserError(f"is stopped: {active.get('message', 'its ClusterQueue is not active')}")
    return f"{status.get('admittedWorkloads', 0)} admitted, {status.get('pendingWorkloads', 0)} waiting"


def _check_quota(get: Get, namespace: str) -> str:
    quotas = [item.get("status", {}) for item in get(f"/api/v1/namespaces/{namespace}/resourcequotas")["items"]]
    used_up = [
        f"{name} {hard} of {hard}"
        for status in quotas
        for name, hard in status.get("hard", {}).items()
        if hard != "0" and status.get("used", {}).get(name) == hard
    ]
    if used_up:
        raise UserError(f"used up in {namespace}: {', '.join(used_up)}; end something, or raise it")
    return f"room in {namespace}"


def _check_nodes(get: Get, pool: str, resource: str | None) -> str:
    nodes = get(f"/api/v1/nodes?labelSelector={POOL_LABEL}%3D{pool}")["items"]
    ready = [node["status"] for node in nodes if is_true(node, "Ready")]
    label = f"label {POOL_LABEL}={pool}"
    if not nodes:
        raise NotSeenError(f"none now with {label}; fine only if an autoscaler makes them")
    if not ready:
        raise UserError(f"{len(nodes)} with {label}, none of them ready")
    return (
        f"{len(ready)} ready, {sum(int(node.get('allocatable', {}).get(resource, 0)) for node in ready)} × {resource}"
    )


def _check_runtime(get: Get, name: str) -> str:
    runtimes = get("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes")["items"]
    names = [runtime["metadata"]["name"] for runtime in runtimes]
    if name not in names:
        listed = ", ".join(names) or "none"
        raise UserError(f"no ClusterTrainingRuntime {name} (there: {listed}); apply k8s/cluster")
    return name


def _check_serving(get: Get, namespace: str) -> str:
    services = get(f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices")["items"]
    states = [f"{item['metadata']['name']} {'' if is_true(item, 'Ready') else 'not '}ready" for item in services]
    return ", ".join(states) or f"no model served in {namespace} yet"


# --- what stages write to


def _check_storage(config: Config) -> str:
    Storage(config.storage.model_copy(update={"outage_s": 0.0})).check()
    return f"wrote, read and deleted an object below {config.storage.root_uri}"


def _check_tracking(config: Config) -> str:
    uri = tracking_uri(config.tracking)
    try:
        with short_timeouts():
            registry_client(config.tracking, config.storage).search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:  # MLflow passes on what its HTTP library raises
        text = f"does not answer ({first_line(error, 200)}); check tracking.uri, MLFLOW_TRACKING_URI"
        raise UserError(text) from error
    return uri.rpartition("@")[2]
