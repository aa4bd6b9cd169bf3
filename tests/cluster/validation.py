"""Strict validation of Kubernetes objects without a cluster.

`validate` checks one object in three layers:

1. its schema: core kinds with kubernetes-validate, custom resources against the CRDs in the folder ``$VTHINK_CRDS``
   (YAML files named ``<group>_<plural>.yaml``). A field that the API server would drop is an error, and so is a kind
   without a schema. CEL rules of CRDs are not evaluated; those that concern us are among the rules below;
2. what every object has: names, labels, quantities, pod specs whose parts fit together;
3. what a kind's controller refuses although its CRD accepts it.

`validate_all` also follows the names by which objects refer to each other. `pod_security` is the Pod Security
Standard *restricted*, and the read-only root that we add to it. `platform_errors` holds the Kubernetes part of a
compiled pipeline to KFP's own message types.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Object = Mapping[str, Any]

KUBERNETES = "1.34"
"""Version whose core schemas objects are held to: the oldest that k8s/README.md names."""
CRDS = "VTHINK_CRDS"
"""Environment variable with the folder of CRDs."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1035
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # RFC 1123
_NAME_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PATH_SEGMENT_KINDS = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
# Their names become those of Services, Pods or label values.
_RFC1035_KINDS = {"Service", "TrainJob", "JobSet", "InferenceService", "ClusterTrainingRuntime", "TrainingRuntime"}
_CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "PersistentVolume",
    "PriorityClass",
    "StorageClass",
}
_QUANTITY = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?")
_SCALE = {"": Decimal(1), "n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3}
_SCALE |= {unit: Decimal(1000) ** (index + 1) for index, unit in enumerate("kMGTPE")}
_SCALE |= {f"{unit}i": Decimal(1024) ** (index + 1) for index, unit in enumerate("KMGTPE")}
# Keys whose value is one quantity, or a mapping of names to quantities.
_QUANTITIES = {"limits", "requests", "hard", "capacity", "sizeLimit"}


class NoSchemaError(LookupError):
    """There is nothing to hold an object of this kind against."""


def validate(obj: Object) -> list[str]:
    """What is wrong with an object, a line each; empty when nothing is.

    Raises:
        OSError: the folder of CRDs is not there.
    """
    kind, metadata = obj.get("kind"), obj.get("metadata")
    if not isinstance(obj.get("apiVersion"), str) or not isinstance(kind, str) or not isinstance(metadata, Mapping):
        return ["an object needs apiVersion, kind and metadata"]
    try:
        found = list(_schema_errors(obj))
    except NoSchemaError as error:
        found = [str(error)]
    if not found:  # the rules rely on the shape that the schema promises
        found = [*_general_errors(obj), *_RULES.get(kind, _no_errors)(obj)]
    return [f"{_title(obj)}: {message}" for message in found]


def validate_all(objects: Sequence[Object], external: Iterable[str] = ()) -> list[str]:
    """What is wrong with each of the objects, and with the names by which they refer to each other.

    Args:
        objects: what is applied together.
        external: ``Kind/name`` of objects that exist without being among them.
    """
    found = [message for obj in objects for message in validate(obj)]
    found += [f"{key} is there {n} times" for key, n in Counter(map(_title, objects)).items() if n > 1]
    return found or reference_errors(objects, external)


def reference_errors(objects: Sequence[Object], external: Iterable[str] = ()) -> list[str]:
    """Which names lead nowhere, among objects that are valid one by one; arguments as for `validate_all`."""
    found: list[str] = []
    known: dict[str, set[str | None]] = {}
    for obj in objects:
        known.setdefault(f"{obj['kind']}/{obj['metadata']['name']}", set()).add(obj["metadata"].get("namespace"))
        if obj["kind"] == "ExternalSecret":  # the operator makes the Secret
            name = obj["spec"]["target"]["name"]
            known.setdefault(f"Secret/{name}", set()).add(obj["metadata"].get("namespace"))
    anywhere = set(external)
    for obj in objects:
        own = obj["metadata"].get("namespace")
        for reference, namespace in sorted(set(_references(obj)), key=str):
            places = known.get(reference, set())
            near = own if namespace is None else namespace
            if reference not in anywhere and not (places & {None, near} or (places and near is None)):
                found.append(f"{_title(obj)}: refers to {reference}, which does not exist in namespace {near}")
        if obj["kind"] in ("Service", "ServiceMonitor"):
            found += [f"{_title(obj)}: {message}" for message in _selection_errors(obj, objects)]
    return found


def platform_errors(pipeline: Object, platform: Object) -> list[str]:
    """What is wrong with the Kubernetes part of a compiled KFP pipeline (the second document of its YAML).

    Args:
        pipeline: the first document, which says which steps there are.
        platform: the second one.
    """
    from google.protobuf import json_format
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig

    steps = pipeline["deploymentSpec"]["executors"].keys()
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = [f"{name}: not a step of the pipeline" for name in settings.keys() - steps]
    for name in sorted(steps):
        try:
            step = json_format.ParseDict(settings.get(name, {}), KubernetesExecutorConfig())
        except json_format.ParseError as error:
            found.append(f"{name}: {error}")
            continue
        security = step.security_context
        if not security.run_as_non_root or not security.run_as_user:
            found.append(f"{name}: securityContext must set runAsNonRoot and a user other than 0")
        placed = (("labels", step.pod_metadata.labels), ("nodeSelector", step.node_selector.labels))
        found += [f"{name}: {message}" for path, labels in placed for message in _label_errors(path, dict(labels))]
        for toleration in step.tolerations:
            if toleration.operator == "Exists" and toleration.value:
                found.append(f"{name}: toleration of {toleration.key}: Exists takes no value")
            if toleration.effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
                found.append(f"{name}: toleration of {toleration.key}: effect '{toleration.effect}' is unknown")
    return found


def _title(obj: Object) -> str:
    metadata = obj["metadata"]
    name = metadata.get("name") or metadata.get("generateName")
    return f"{obj['kind']} {metadata['namespace']}/{name}" if "namespace" in metadata else f"{obj['kind']} {name}"


# --- schemas ------------------------------------------------------------------------------------------------


def crd_schema(api_version: str, kind: str) -> dict[str, Any] | None:
    """The openAPIV3Schema of a custom resource as its CRD gives it; None: there is no CRD for the kind.

    Raises:
        NoSchemaError: the CRD does not serve this version.
    """
    group, _, version = api_version.partition("/")
    definition = _definitions(str(_folder()), group).get(kind)
    if definition is None:
        return None
    served = {v["name"]: v for v in definition["versions"] if v["served"]}
    if version not in served:
        raise NoSchemaError(f"{kind} is not served as {api_version}; served: {', '.join(sorted(served))}")
    return served[version]["schema"]["openAPIV3Schema"]


def is_namespaced(api_version: str, kind: str) -> bool:
    """Whether objects of this kind live in a namespace."""
    definition = _definitions(str(_folder()), api_version.partition("/")[0]).get(kind)
    return kind not in _CLUSTER_SCOPED if definition is None else definition["scope"] == "Namespaced"


def _folder() -> Path:
    folder = os.environ.get(CRDS)
    if not folder or not os.path.isdir(folder):
        raise NotADirectoryError(f"{CRDS}={folder or ''} is not a folder of CRDs")
    return Path(folder)


@functools.cache
def _definitions(folder: str, group: str) -> dict[str, dict[str, Any]]:
    """The specs of a group's CRDs by kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(Path(folder).glob(f"{group}_*.yaml")):
        for definition in filter(None, yaml.load_all(path.read_text(), Loader=loader)):
            found[definition["spec"]["names"]["kind"]] = definition["spec"]
    return found


@functools.cache
def _validator(folder: str, api_version: str, kind: str) -> Any:
    schema = crd_schema(api_version, kind)
    return None if schema is None else _Validator(_closed(schema, root=True))


def _schema_errors(obj: Object) -> Iterator[str]:
    validator = _validator(str(_folder()), obj["apiVersion"], obj["kind"])
    if validator is None:
        yield from _core_errors(obj)
        return
    # The API server checks metadata by its own schema, whatever the CRD says.
    yield from _core_errors({"apiVersion": "v1", "kind": "ConfigMap", "metadata": obj["metadata"]})
    for error in validator.iter_errors(obj):
        yield _line(error)


def _core_errors(obj: Object) -> Iterator[str]:
    try:
        kubernetes_validate.validate(dict(obj), KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        raise NoSchemaError(f"no schema for {obj['apiVersion']} {obj['kind']}, neither core nor CRD") from None
    except kubernetes_validate.ValidationError as error:
        yield _line(error)


def _line(error: Any) -> str:
    path = ".".join(str(part) for part in error.absolute_path)
    return f"{path}: {error.message}" if path else error.message


def _closed(node: Any, root: bool = False) -> Any:
    """A structural schema as JSON Schema in which a field that would be pruned is an error."""
    if not isinstance(node, Mapping):
        return node
    out = {key: value for key, value in node.items() if key not in ("default", "description", "example", "nullable")}
    for key in ("properties", "patternProperties"):
        if key in node:
            out[key] = {name: _closed(child) for name, child in node[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in node:
            out[key] = _closed(node[key])
    # Below allOf, anyOf, oneOf and not, a structural schema repeats fields without listing all: left as it is.
    if root:
        out["properties"] = {**out.get("properties", {}), "metadata": {}}
        out["properties"].setdefault("apiVersion", {})
        out["properties"].setdefault("kind", {})
    keeps = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if node.get("type") == "object" and not keeps:
        out.setdefault("properties", {})
        out["additionalProperties"] = False
    if node.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if node.get("nullable") and "type" in out:
        out["type"] = [*([out["type"]] if isinstance(out["type"], str) else out["type"]), "null"]
    return out


def _list_map_keys(_: Any, keys: list[str], value: Any, schema: Object) -> Iterator[Any]:
    if isinstance(value, list):
        defaults = {k: p.get("default") for k, p in schema.get("items", {}).get("properties", {}).items()}
        seen = Counter(tuple(item.get(k, defaults.get(k)) for k in keys) for item in value if isinstance(item, dict))
        for entry, count in seen.items():
            if count > 1:
                yield jsonschema.ValidationError(f"{dict(zip(keys, entry, strict=True))} is listed {count} times")


def _list_type(_: Any, kind: str, value: Any, __: Object) -> Iterator[Any]:
    if kind == "set" and isinstance(value, list) and len({repr(item) for item in value}) < len(value):
        yield jsonschema.ValidationError(f"{value} must not repeat an item")


def _format(_: Any, name: str, value: Any, __: Object) -> Iterator[Any]:
    bits = {"int32": 31, "int64": 63}.get(name)
    if bits and isinstance(value, int) and not -(2**bits) <= value < 2**bits:
        yield jsonschema.ValidationError(f"{value} does not fit into {name}")


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"x-kubernetes-list-map-keys": _list_map_keys, "x-kubernetes-list-type": _list_type, "format": _format},
)


# --- rules for every object ---------------------------------------------------------------------------------


def parse_quantity(value: object) -> Decimal | None:
    """The number that a Kubernetes quantity (``500m``, ``64Gi``) stands for; None: it is not one."""
    match = None if isinstance(value, bool) else _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    unit = match[2] or ""
    if unit in _SCALE:
        return Decimal(str(value).removesuffix(unit)) * _SCALE[unit]
    return Decimal(str(value))


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a value with its dotted path, outermost first."""
    if isinstance(value, Mapping):
        yield path, value
        for key, child in value.items():
            yield from walk(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from walk(child, f"{path}.{index}")


def pod_specs(obj: Object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The complete pod specs in an object with their paths (patches of a TrainJob are none)."""
    if obj["kind"] == "TrainJob":
        return
    for path, value in walk(obj.get("spec", {}), "spec"):
        containers = value.get("containers")
        if isinstance(containers, list) and containers and all(isinstance(c, Mapping) for c in containers):
            yield path, value


def _general_errors(obj: Object) -> Iterator[str]:
    kind, metadata = obj["kind"], obj["metadata"]
    name = metadata.get("name")
    if not name and not metadata.get("generateName"):
        yield "metadata.name is missing"
    elif name and kind in _RFC1035_KINDS and not _LABEL.fullmatch(name):
        yield f"metadata.name '{name}' must be a DNS label (RFC 1035): at most 63 of a-z, 0-9, '-', first a letter"
    elif name and kind not in _PATH_SEGMENT_KINDS and (len(name) > 253 or not _SUBDOMAIN.fullmatch(name)):
        yield f"metadata.name '{name}' must be a DNS name (RFC 1123)"
    if "namespace" in metadata and not is_namespaced(obj["apiVersion"], kind):
        yield "metadata.namespace is set, but the kind is cluster-wide"
    for path, value in walk(obj):
        if path.split(".")[-1] in ("labels", "matchLabels", "nodeSelector", "nodeLabels"):
            yield from _label_errors(path, value)
        for key in _QUANTITIES & value.keys():
            quantities = value[key] if isinstance(value[key], Mapping) else {"": value[key]}
            for resource, quantity in quantities.items():
                if isinstance(quantity, (str, int, float)) and parse_quantity(quantity) is None:
                    yield f"{f'{path}.{key}.{resource}'.strip('.')}: '{quantity}' is not a quantity"
        if "limits" in value or "requests" in value:
            yield from _resource_errors(path, value)
        uri = value.get("storageUri")
        if isinstance(uri, str) and uri.startswith("s3://") and not uri.endswith("/"):
            yield f"{path}.storageUri: '{uri}' must end in '/', or it also matches longer names"
    claims = {claim["metadata"]["name"] for claim in obj.get("spec", {}).get("volumeClaimTemplates", [])}
    for path, spec in pod_specs(obj):
        yield from _pod_errors(path, spec, claims)


def _label_errors(path: str, labels: Mapping[str, Any]) -> Iterator[str]:
    for key, value in labels.items():
        prefix, _, name = key.rpartition("/")
        if not _NAME_PART.fullmatch(name) or (prefix and not _SUBDOMAIN.fullmatch(prefix)):
            yield f"{path}: '{key}' is not a label key"
        if isinstance(value, str) and value and not _NAME_PART.fullmatch(value):
            yield f"{path}.{key}: '{value}' is not a label value (at most 63 of A-Z, a-z, 0-9, '-', '_', '.')"


def _resource_errors(path: str, resources: Mapping[str, Any]) -> Iterator[str]:
    limits, requests = resources.get("limits"), resources.get("requests")
    if not isinstance(limits, Mapping) or not isinstance(requests, Mapping):
        limits, requests = limits if isinstance(limits, Mapping) else {}, {}
    for name in limits.keys() & requests.keys():
        limit, request = parse_quantity(limits[name]), parse_quantity(requests[name])
        if limit is not None and request is not None and request > limit:
            yield f"{path}: requests {requests[name]} of {name}, more than its limit {limits[name]}"


def _pod_errors(path: str, spec: Mapping[str, Any], claims: set[str]) -> Iterator[str]:
    containers = [*spec["containers"], *spec.get("initContainers", [])]
    names = Counter(container.get("name") for container in containers)
    for name in [name for name, count in names.items() if count > 1]:
        yield f"{path}: two containers are called '{name}'"
    volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims
    for container in containers:
        at = f"{path}: container '{container.get('name')}'"
        if not container.get("image"):
            yield f"{at} has no image"
        elif ":" not in container["image"].rpartition("/")[2] and "@" not in container["image"]:
            yield f"{at}: image '{container['image']}' has neither tag nor digest"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{at} mounts volume '{mount['name']}', which the pod does not have"
        for what, entries, key in (("variable", "env", "name"), ("mount path", "volumeMounts", "mountPath")):
            for value, count in Counter(entry[key] for entry in container.get(entries, [])).items():
                if count > 1:
                    yield f"{at} sets {what} {value} {count} times"
        ports = {port["name"] for port in container.get("ports", []) if "name" in port}
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{at}: {probe} asks port '{port}', which the container does not name"


def pod_security(spec: Mapping[str, Any], read_only_root: bool = True) -> list[str]:
    """What a pod spec lacks for the Pod Security Standard *restricted*, and for a read-only root file system."""
    pod = spec.get("securityContext", {})
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
    allowed |= {"secret", "name"}
    for volume in spec.get("volumes", []):
        found += [f"volume '{volume['name']}' is of kind {kind}" for kind in volume.keys() - allowed]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        checks = {
            "runAsNonRoot is not true": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
            "runAsUser is 0": own.get("runAsUser", pod.get("runAsUser")) != 0,
            "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
            "privileged is set": not own.get("privileged"),
            "capabilities do not drop ALL": "ALL" in capabilities.get("drop", []),
            f"adds capabilities {capabilities.get('add')}": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "seccompProfile is not RuntimeDefault": own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            in ("RuntimeDefault", "Localhost"),
            "readOnlyRootFilesystem is not true": not read_only_root or own.get("readOnlyRootFilesystem") is True,
            "has a host port": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"container '{container['name']}': {what}" for what, holds in checks.items() if not holds]
    return found


# --- rules of single kinds ----------------------------------------------------------------------------------


def _no_errors(_: Object) -> Iterator[str]:
    yield from ()


def _workload(obj: Object) -> Iterator[str]:
    spec = obj["spec"]
    selector, labels = spec["selector"].get("matchLabels", {}), spec["template"]["metadata"].get("labels", {})
    if not selector and not spec["selector"].get("matchExpressions"):
        yield "spec.selector selects nothing"
    if not selector.items() <= labels.items():
        yield f"spec.selector {dict(selector)} does not select its own pods {dict(labels)}"


def _network_policy(obj: Object) -> Iterator[str]:
    spec = obj["spec"]
    for field, kind in (("ingress", "Ingress"), ("egress", "Egress")):
        if field in spec and kind not in spec.get("policyTypes", []):
            yield f"spec.{field} is given, but policyTypes lacks {kind}"
    if not spec.get("policyTypes"):
        yield "spec.policyTypes is missing"


def _cluster_queue(obj: Object) -> Iterator[str]:
    covered: list[str] = []
    for index, group in enumerate(obj["spec"].get("resourceGroups", [])):
        covered += group["coveredResources"]
        for flavor in group["flavors"]:
            names = [resource["name"] for resource in flavor["resources"]]
            if names != group["coveredResources"]:
                yield (
                    f"spec.resourceGroups.{index}: flavor {flavor['name']} has quotas for {names}, "
                    f"coveredResources are {group['coveredResources']} (same names, same order)"
                )
            for resource in flavor["resources"]:
                if "borrowingLimit" in resource and not obj["spec"].get("cohortName"):
                    yield f"flavor {flavor['name']}: borrowingLimit without cohortName"
    for name, count in Counter(covered).items():
        if count > 1:
            yield f"{name} is covered by {count} resource groups"
    if not covered:
        yield "spec.resourceGroups is empty: nothing can be admitted"


def _resource_flavor(obj: Object) -> Iterator[str]:
    spec = obj.get("spec", {})
    if "topologyName" in spec and not spec.get("nodeLabels"):
        yield "spec.topologyName needs at least one nodeLabel"


def _training_runtime(obj: Object) -> Iterator[str]:
    if "trainer.kubeflow.org/framework" not in obj["metadata"].get("labels", {}):
        yield "the label trainer.kubeflow.org/framework is missing"
    trainers = []
    for job in obj["spec"]["template"]["spec"]["replicatedJobs"]:
        labels = job["template"].get("metadata", {}).get("labels", {})
        if labels.get("trainer.kubeflow.org/trainjob-ancestor-step") == "trainer":
            trainers.append(job)
    if len(trainers) != 1:
        yield f"{len(trainers)} replicated jobs are labelled trainjob-ancestor-step: trainer; one must be"
    for job in trainers:
        containers = [c["name"] for c in job["template"]["spec"]["template"]["spec"]["containers"]]
        if job["name"] != "node" or "node" not in containers:
            yield "the trainer's replicated job and its container must be called 'node'"


def _train_job(obj: Object) -> Iterator[str]:
    spec = obj["spec"]
    command = [*spec.get("trainer", {}).get("command", []), *spec.get("trainer", {}).get("args", [])]
    for name in ("accelerate", "trl"):
        if command and Path(command[0]).name == name:
            yield f"spec.trainer.command: {name} ignores PET_* and trains alone on every node; use torchrun"
    queue = obj["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if queue is not None and not _LABEL.fullmatch(queue):
        yield f"the queue '{queue}' is not the name of a LocalQueue"
    for name, count in Counter(e["name"] for e in spec.get("trainer", {}).get("env", [])).items():
        if count > 1:
            yield f"spec.trainer.env sets {name} {count} times"
    for index, patch in enumerate(spec.get("runtimePatches", [])):
        at = f"spec.runtimePatches.{index}"
        if not re.fullmatch(r"[a-z0-9.-]+\.[a-z]+/[A-Za-z0-9._/-]+", patch.get("manager", "")):
            yield f"{at}.manager must be <domain>/<owner>"
        for path, value in walk(patch, at):
            for container in value.get("containers", []) if isinstance(value.get("containers"), list) else []:
                if container.get("name") == "node" and "env" in container:
                    yield f"{path}: environment of container 'node' belongs into spec.trainer.env"
    if spec.get("managedBy") not in (None, "trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue"):
        yield f"spec.managedBy '{spec['managedBy']}' is no controller of TrainJobs"


_ANNOTATION = "serving.kserve.io/"


def _inference_service(obj: Object) -> Iterator[str]:
    """What KServe's webhook checks, too: pkg/apis/serving/v1beta1/inference_service_validation.go, v0.20.0."""
    spec, annotations = obj["spec"], obj["metadata"].get("annotations", {})
    mode = annotations.get(f"{_ANNOTATION}deploymentMode")
    scaler = annotations.get(f"{_ANNOTATION}autoscalerClass", "hpa")
    if mode not in (None, "Standard", "Knative"):
        yield f"deploymentMode '{mode}' is not Standard or Knative (RawDeployment and Serverless are old names)"
    if scaler not in ("hpa", "keda", "external", "none"):
        yield f"autoscalerClass '{scaler}' is not one of hpa, keda, external, none"
    canary = spec.get("canary", [])
    if canary and mode != "Standard":
        yield "spec.canary works only with the annotation deploymentMode: Standard"
    if mode == "Standard" and "canaryTrafficPercent" in spec["predictor"]:
        yield "spec.predictor.canaryTrafficPercent works only in mode Knative; use spec.canary"
    if sum(entry.get("trafficPercent", 0) for entry in canary) > 100:
        yield "spec.canary gets more than 100 % of the traffic"
    if scaler == "keda" and not spec["predictor"].get("autoScaling", {}).get("metrics"):
        yield "spec.predictor: autoscalerClass keda without autoScaling.metrics"
    variants = [("spec.predictor", spec["predictor"])]
    variants += [(f"spec.canary.{i}.predictor", entry["predictor"]) for i, entry in enumerate(canary)]
    names = Counter(predictor.get("name") for _, predictor in variants)
    if canary and (names[None] > ("name" not in spec["predictor"]) or max(names.values()) > 1):
        yield "every canary needs a name of its own"
    if spec["predictor"].get("model", {}).get("name"):
        yield "spec.predictor.model.name is not allowed (a canary's must be set)"
    for path, predictor in variants:
        yield from _predictor_errors(path, predictor, scaler)
    for path, predictor in variants[1:]:
        for key in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if predictor.get(key):
                yield f"{path}.{key}: a canary's replicas are fixed, by minReplicas alone"
        if predictor.get("minReplicas", 1) > spec["predictor"].get("minReplicas", 1):
            yield f"{path}.minReplicas exceeds that of the predictor in service"


def _predictor_errors(path: str, predictor: Mapping[str, Any], scaler: str) -> Iterator[str]:
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas")
    if high is not None and low > high:
        yield f"{path}: minReplicas {low} exceeds maxReplicas {high}"
    if low == 0 and scaler not in ("keda", "external"):
        yield f"{path}: minReplicas 0 with autoscalerClass {scaler} would stay at zero"
    if scaler == "none" and high is not None and low != high:
        yield f"{path}: autoscalerClass none with minReplicas {low} and maxReplicas {high}: nothing would scale"
    metrics = predictor.get("autoScaling", {}).get("metrics", [])
    external = [metric.get("external", {}) for metric in metrics if metric.get("type") == "External"]
    if any(metric.get("target", {}).get("value") is None for metric in external):
        yield f"{path}.autoScaling: an external metric needs target.value, which becomes KEDA's threshold"
    if external and scaler != "keda":
        yield f"{path}.autoScaling: external metrics need autoscalerClass keda"
    model = predictor.get("model")
    if model is not None:
        yield from _placeholder_errors(f"{path}.model", model)
        if not model.get("modelFormat", {}).get("name"):
            yield f"{path}.model.modelFormat.name is missing; KServe would find no runtime"
        if not (model.get("storageUri") or model.get("storage") or predictor.get("storageUris")):
            yield f"{path}.model has no storageUri"
    elif "containers" not in predictor:
        yield f"{path} has neither model nor containers"


_PLACEHOLDER = re.compile(r"\{\{-?\s*(?:\.(?:Name|Namespace|Labels|Annotations)\b[.\w]*|`[^`]*`)\s*-?\}\}")


def _placeholder_errors(path: str, container: Mapping[str, Any]) -> Iterator[str]:
    """KServe reads the container, arguments of the InferenceService included, as a Go template.

    Source: `ReplacePlaceholders` in pkg/controller/v1beta1/inferenceservice/utils, called from components/predictor.go.
    """
    for where, value in walk(container, path):
        for key, child in value.items():
            for text in child if isinstance(child, list) else [child]:
                if isinstance(text, str) and "{{" in _PLACEHOLDER.sub("", text):
                    yield f"{where}.{key}: KServe would read '{{{{' as a placeholder; write it as {{{{`{{{{`}}}}"


def _serving_runtime(obj: Object) -> Iterator[str]:
    for index, container in enumerate(obj["spec"]["containers"]):
        yield from _placeholder_errors(f"spec.containers.{index}", container)
    names = [container["name"] for container in obj["spec"]["containers"]]
    if "kserve-container" not in names:
        yield f"one container must be called kserve-container (found {names})"
    formats = {entry["name"] for entry in obj["spec"].get("supportedModelFormats", [])}
    if not formats:
        yield "spec.supportedModelFormats is missing"
    if formats & {"vLLM", "triton"} and "v2" not in obj["spec"].get("protocolVersions", []):
        yield "spec.protocolVersions lacks protocol v2, KServe's default for this format (0.20 and later): InvalidSpec"


def _binding(obj: Object) -> Iterator[str]:
    for index, subject in enumerate(obj.get("subjects", [])):
        if subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            yield f"subjects.{index}: a ServiceAccount needs its namespace"


def _scaled_object(obj: Object) -> Iterator[str]:
    spec = obj["spec"]
    if spec.get("minReplicaCount", 0) > spec.get("maxReplicaCount", 100):
        yield "minReplicaCount exceeds maxReplicaCount"
    for index, trigger in enumerate(spec["triggers"]):
        if trigger["type"] == "prometheus":
            for key in ("serverAddress", "query", "threshold"):
                if not trigger["metadata"].get(key):
                    yield f"spec.triggers.{index}: a prometheus trigger needs {key}"


def _prometheus_rule(obj: Object) -> Iterator[str]:
    for group in obj["spec"].get("groups", []):
        for rule in group.get("rules", []):
            name = rule.get("alert") or rule.get("record")
            if ("alert" in rule) == ("record" in rule):
                yield f"group {group['name']}: a rule is either an alert or a recording"
            if "alert" in rule and not {"summary", "runbook_url"} <= rule.get("annotations", {}).keys():
                yield f"alert {name}: annotations summary and runbook_url are missing"
            if "alert" in rule and "severity" not in rule.get("labels", {}):
                yield f"alert {name}: the label severity is missing"


_RULES: dict[str, Callable[[Object], Iterator[str]]] = {
    "ClusterQueue": _cluster_queue,
    "ClusterRoleBinding": _binding,
    "ClusterServingRuntime": _serving_runtime,
    "ClusterTrainingRuntime": _training_runtime,
    "DaemonSet": _workload,
    "Deployment": _workload,
    "InferenceService": _inference_service,
    "NetworkPolicy": _network_policy,
    "PrometheusRule": _prometheus_rule,
    "ResourceFlavor": _resource_flavor,
    "RoleBinding": _binding,
    "ScaledObject": _scaled_object,
    "ServingRuntime": _serving_runtime,
    "StatefulSet": _workload,
    "TrainJob": _train_job,
    "TrainingRuntime": _training_runtime,
}


# --- references ---------------------------------------------------------------------------------------------


def _references(obj: Object) -> Iterator[tuple[str, str | None]]:
    """``Kind/name`` of what an object cannot do without, and its namespace where it is not the object's own.

    Optional references are left out.
    """
    for subject in obj.get("subjects", []):
        if subject["kind"] == "ServiceAccount":
            yield f"ServiceAccount/{subject['name']}", subject["namespace"]
    for reference in _own_references(obj):
        yield reference, None
    for _, value in walk(obj.get("spec", {})):
        for reference in _pod_references(value):
            yield reference, None


def _own_references(obj: Object) -> Iterator[str]:
    kind, spec = obj["kind"], obj.get("spec", {})
    if kind == "LocalQueue":
        yield f"ClusterQueue/{spec['clusterQueue']}"
    elif kind == "ClusterQueue":
        for group in spec.get("resourceGroups", []):
            yield from (f"ResourceFlavor/{flavor['name']}" for flavor in group["flavors"])
    elif kind == "ResourceFlavor" and "topologyName" in spec:
        yield f"Topology/{spec['topologyName']}"
    elif kind in ("RoleBinding", "ClusterRoleBinding"):
        yield f"{obj['roleRef']['kind']}/{obj['roleRef']['name']}"
    elif kind == "TrainJob":
        yield f"{spec['runtimeRef'].get('kind', 'ClusterTrainingRuntime')}/{spec['runtimeRef']['name']}"
        labels = obj["metadata"].get("labels", {})
        for key, target in (("queue-name", "LocalQueue"), ("priority-class", "WorkloadPriorityClass")):
            if f"kueue.x-k8s.io/{key}" in labels:
                yield f"{target}/{labels[f'kueue.x-k8s.io/{key}']}"
    elif kind == "ExternalSecret":
        store = spec.get("secretStoreRef", {})
        yield f"{store.get('kind', 'SecretStore')}/{store.get('name')}"
    elif kind == "StatefulSet":
        yield f"Service/{spec['serviceName']}"


def _pod_references(value: Mapping[str, Any]) -> Iterator[str]:
    for key, target in (
        ("serviceAccountName", "ServiceAccount"),
        ("priorityClassName", "PriorityClass"),
        ("runtime", "ServingRuntime"),
    ):
        if isinstance(value.get(key), str):
            yield f"{target}/{value[key]}"
    for key, target, name in (
        ("secretKeyRef", "Secret", "name"),
        ("secretRef", "Secret", "name"),
        ("configMapKeyRef", "ConfigMap", "name"),
        ("configMapRef", "ConfigMap", "name"),
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "secretName"),
        ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ("serviceAccountRef", "ServiceAccount", "name"),
    ):
        reference = value.get(key)
        if isinstance(reference, Mapping) and name in reference and not reference.get("optional"):
            yield f"{target}/{reference[name]}"


def _selection_errors(obj: Object, objects: Sequence[Object]) -> Iterator[str]:
    """A Service must select pods and a ServiceMonitor a Service, and their ports must exist."""
    spec = obj["spec"]
    if obj["kind"] == "Service":
        pods = [o["spec"]["template"] for o in objects if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet")]
        selected = [p for p in pods if spec["selector"].items() <= p["metadata"].get("labels", {}).items()]
        ports = {q.get(k) for p in selected for c in p["spec"]["containers"] for q in c.get("ports", []) for k in _PORT}
        wanted = [port.get("targetPort", port["port"]) for port in spec["ports"]]
    else:
        labels = spec["selector"].get("matchLabels", {})
        services = [o for o in objects if o["kind"] == "Service"]
        selected = [s for s in services if labels.items() <= s["metadata"].get("labels", {}).items()]
        ports = {port.get("name") for service in selected for port in service["spec"]["ports"]}
        wanted = [endpoint["port"] for endpoint in spec["endpoints"]]
    if not selected:
        yield "spec.selector selects nothing of what is applied with it"
        return
    for port in wanted:
        if port not in ports:
            yield f"port {port} is not one of what it selects"


_PORT = ("name", "containerPort")
