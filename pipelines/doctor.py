"""Whether everything that a run leans on is there: ``vthink doctor``. Nothing is changed but a small S3 object."""

from collections.abc import Iterator
from functools import partial

from ..components.common.config import ConfigError
from ..components.common.errors import UserError, first_line
from ..components.common.launch.config import POOL_LABEL
from ..components.common.launch.kubernetes.client import Cluster, ClusterError, condition, is_true
from ..components.common.launch.kubernetes.trainjob import node_requests
from ..components.common.model.shapes import shape_of
from .config import Config
from .kfp_client.connection import KfpConnection
from .kfp_client.runs import recent_runs
from .pipeline import for_cluster
from .plan.stage import TRAINING_STAGES, TrainingStage, node_of
from .preflight.examine import examine_submission
from .preflight.finding import Check, Finding, NotSeenError, finding
from .preflight.machine import check_storage, check_tracking
from .preflight.network import Get, check_dns, check_mesh, check_store

KINDS: tuple[tuple[str, str, str], ...] = (
    ("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    ("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes"),
    ("kueue.x-k8s.io", "v1beta2", "localqueues"),
    ("serving.kserve.io", "v1beta1", "inferenceservices"),
    ("serving.kserve.io", "v1alpha1", "servingruntimes"),
)
"""Group, version and plural of the kinds that a run uses; an older version of the CRD lacks the version."""
RIGHTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "train": (
        *(("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "list", "watch", "delete")),
        ("argoproj.io", "workflows", "get"),
        ("kueue.x-k8s.io", "workloads", "list"),
        ("", "pods", "get"),
        ("", "pods", "list"),
        ("", "pods/log", "get"),
        ("", "events", "list"),
    ),
    "serve": tuple(
        ("serving.kserve.io", "inferenceservices", verb)
        for verb in ("create", "get", "list", "watch", "update", "delete")
    ),
}
"""Group, resource and verb of what launcher and deployer do: the Role ``vthink-pipeline`` of `k8s/team`."""
AT_HOME = {("argoproj.io", "workflows", "get"), ("", "pods", "get")}
"""What a launcher asks of its own run and pod; of a namespace for training alone (``launch.cluster.namespace``) it does
not."""


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
            training = Cluster.connect(config.launch.cluster.namespace or namespace)
            training.patience_s = 0.0
            for subject, rights in RIGHTS.items():
                where = training if subject == "train" else cluster
                if where.namespace != namespace:  # which has no Workflows: k8s/cluster/rdma grants less
                    rights = tuple(right for right in rights if right not in AT_HOME)
                yield _finding(f"rights to {subject}", partial(_check_rights, where, rights))
    yield finding("S3", partial(check_storage, config.storage))
    yield finding("MLflow", partial(check_tracking, config.tracking, config.storage))
    yield from examine_submission(for_cluster(config))


def knows_cluster(namespace: str) -> bool:
    """Whether this machine is told of a cluster: by a kubeconfig, or by running in a pod."""
    try:
        Cluster.connect(namespace)
    except ClusterError:
        return False
    return True


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
    queued = {pool for stage, pool in config.launch.pool.items() if stage != "deploy"}  # a served model never waits
    for pool in sorted(queued) if launch.queues else ():
        yield f"queue {pool}", partial(_check_queue, get, launch.namespace or namespace, pool)
    yield "quota", partial(_check_quota, get, namespace)
    for pool in pools:
        yield f"nodes of pool {pool}", partial(_check_nodes, get, pool, config)
    yield "training runtime", partial(_check_runtime, get, launch.runtime)
    if launch.queues and launch.priority is not None:
        yield "priority", partial(_check_priority, get, launch.priority)
    yield "environment", partial(_check_environment, get, launch.namespace or namespace, launch.s3_secret)
    for place in dict.fromkeys((namespace, launch.namespace or namespace)):
        which = "" if place == namespace else f" of {place}"
        yield f"DNS{which}", partial(check_dns, get, place)
        yield f"way to S3{which}", partial(check_store, get, place, config.storage)
    yield "mesh", partial(check_mesh, get, namespace)
    yield "serving runtime", partial(_check_serving_runtime, get, namespace, config)
    if (serving := config.launch.pool.get("deploy")) is not None and launch.queues:
        others = {name for stage, name in config.launch.pool.items() if stage != "deploy"}
        yield "serving pool", partial(_check_serving_pool, serving, others)
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


def _check_nodes(get: Get, pool: str, config: Config) -> str:
    from kubernetes.utils.quantity import parse_quantity

    resource = config.launch.cluster.accelerator
    nodes = get(f"/api/v1/nodes?labelSelector={POOL_LABEL}%3D{pool}")["items"]
    ready = [node["status"] for node in nodes if is_true(node, "Ready")]
    label = f"label {POOL_LABEL}={pool}"
    if not nodes:
        raise NotSeenError(f"none now with {label}; fine only if an autoscaler makes them")
    if not ready:
        raise UserError(f"{len(nodes)} with {label}, none of them ready")
    for stage in (stage for stage in TRAINING_STAGES if config.launch.pool.get(stage) == pool):
        wanted = pod_requests(config, stage)
        rooms = [node.get("allocatable", {}) for node in ready]
        fits = [
            all(parse_quantity(room.get(name, 0)) >= parse_quantity(wanted[name]) for name in wanted) for room in rooms
        ]
        if not any(fits):
            text = ", ".join(f"{name} {amount}" for name, amount in wanted.items())
            raise UserError(f"no node has room for a pod of {stage}, which asks for {text}, the prepared data besides; "
                            "fewer launch.processes, or larger nodes")  # fmt: skip
    return (
        f"{len(ready)} ready, {sum(int(node.get('allocatable', {}).get(resource, 0)) for node in ready)} × {resource}"
    )


def pod_requests(config: Config, stage: TrainingStage) -> dict[str, str]:
    """What a training pod of a stage will ask for: as the TrainJob, of which it is made, the prepared data left out."""
    section, launch = getattr(config, stage), config.launch
    try:
        resources = node_of(config, stage, shape_of(config.model, config.storage, config.video.size_multiple))
    except ConfigError:  # a hub's model that is not known here
        resources = None
    return node_requests(launch, resources) if section.enabled else {}


def _check_runtime(get: Get, name: str) -> str:
    runtimes = get("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes")["items"]
    names = [runtime["metadata"]["name"] for runtime in runtimes]
    if name not in names:
        listed = ", ".join(names) or "none"
        raise UserError(f"no ClusterTrainingRuntime {name} (there: {listed}); apply k8s/cluster")
    return name


def _check_rights(cluster: Cluster, rights: tuple[tuple[str, str, str], ...]) -> str:
    lacking = [f"{verb} {resource}" for group, resource, verb in rights if not cluster.may(verb, group, resource)]
    if lacking:
        text = f"this account may not, in {cluster.namespace}: {', '.join(lacking)}"
        raise UserError(f"{text}; use the account vthink-pipeline, or bind its Role (k8s/team/rbac.yaml)")
    return f"all {len(rights)} in {cluster.namespace}"


def _check_priority(get: Get, name: str) -> str:
    classes = get("/apis/kueue.x-k8s.io/v1beta2/workloadpriorityclasses")["items"]
    values = {item["metadata"]["name"]: item["value"] for item in classes}
    if name not in values:
        listed = ", ".join(sorted(values)) or "none"
        raise UserError(f"no WorkloadPriorityClass {name} (there: {listed}); see launch.cluster.priority")
    return f"{name} ({values[name]})"


def _check_environment(get: Get, namespace: str, secret: str | None) -> str:
    """What training pods take their stores' addresses and keys from; the names of Secrets are all that is read."""
    names = {item["metadata"]["name"] for item in get(f"/api/v1/namespaces/{namespace}/configmaps")["items"]}
    if "vthink-env" not in names:
        raise UserError(f"no ConfigMap vthink-env in {namespace}: training pods would not find S3; apply k8s/team")
    if secret is None:
        return f"vthink-env in {namespace}"
    try:
        get(f"/api/v1/namespaces/{namespace}/secrets/{secret}")
    except ClusterError as error:
        if error.status == 404:
            raise NotSeenError(f"no Secret {secret} in {namespace}: fine only with workload identity") from error
        raise
    return f"vthink-env and {secret} in {namespace}"


def _check_serving_runtime(get: Get, namespace: str, config: Config) -> str:
    settings = config.deployment.kserve
    runtimes = get(f"/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes")["items"]
    by_name = {item["metadata"]["name"]: item["spec"] for item in runtimes}
    if settings.runtime not in by_name:
        listed = ", ".join(by_name) or "none"
        raise UserError(f"no ServingRuntime {settings.runtime} in {namespace} (there: {listed}); apply k8s/team")
    spec = by_name[settings.runtime]
    if settings.model_format == "vLLM" and "v2" not in spec.get("protocolVersions", []):
        raise UserError(f"{settings.runtime} lacks protocol v2, which KServe asks for with vLLM; apply k8s/team anew")
    if settings.model_format not in {entry["name"] for entry in spec.get("supportedModelFormats", [])}:
        raise UserError(f"{settings.runtime} does not take models of format {settings.model_format}")
    return settings.runtime


def _check_serving_pool(pool: str, others: set[str]) -> str:
    if pool in others:
        text = f"a served model takes machines of the pool {pool} for good, which Kueue counts for training"
        raise NotSeenError(f"{text}; give it one of its own (launch.pool.deploy: serve)")
    return pool


def _check_serving(get: Get, namespace: str) -> str:
    services = get(f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices")["items"]
    states = [f"{item['metadata']['name']} {'' if is_true(item, 'Ready') else 'not '}ready" for item in services]
    return ", ".join(states) or f"no model served in {namespace} yet"
