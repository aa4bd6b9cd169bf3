"""The objects of a played Kubernetes API (`kubernetes_api.py`): their versions, their history and its rules."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from vthink.tests.fakes.crd_schemas import json_schema, prune, quantity_errors, rule_errors, set_defaults

Object = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class Refusal(Exception):  # noqa: N818 (an answer, not a fault)
    """An answer other than success, as a Status object."""

    def __init__(self, code: int, reason: str, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": code, "reason": reason, "message": message,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Resource:
    """A kind that is served."""

    group: str
    version: str
    plural: str
    kind: str
    schema: Mapping[str, Any] | None
    """openAPIV3Schema; None: anything goes."""
    has_status: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def title(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass
class PodLog:
    lines: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    breaks: list[int] = field(default_factory=list)
    """Line counts after which a follower's connection is cut, once each."""


@functools.cache
def _resources(crds: Path) -> tuple[Resource, ...]:
    """The custom resources that our code writes, as their CRDs say."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for name in ("trainer.kubeflow.org_trainjobs", "serving.kserve.io_inferenceservices"):
        definition = yaml.load((crds / f"{name}.yaml").read_text(), Loader=loader)["spec"]
        names = definition["names"]
        for version in definition["versions"]:
            schema, subresources = version["schema"]["openAPIV3Schema"], version.get("subresources") or {}
            place = (definition["group"], version["name"], names["plural"], names["kind"])
            found.append(Resource(*place, schema, "status" in subresources))
    return tuple(found)


@functools.cache
def validator(resource: Resource) -> Any:
    return jsonschema.Draft202012Validator(json_schema(resource.schema))


class Store:
    """The objects, their versions and their history."""

    def __init__(self, crds: Path) -> None:
        self.changed = threading.Condition()
        self.resources: dict[tuple[str, str, str], Resource] = {}
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.history: list[tuple[int, str, tuple[str, str, str], Object]] = []
        self.version = 100
        self.oldest = 0
        self.logs: dict[tuple[str, str], PodLog] = {}
        for resource in _resources(crds):
            self.add(resource)
        for kind, plural in (("Pod", "pods"), ("Event", "events"), ("Service", "services"), ("Secret", "secrets")):
            self.add(Resource("", "v1", plural, kind, None, kind in ("Pod", "Service")))

    def add(self, resource: Resource) -> None:
        self.resources[resource.group, resource.version, resource.plural] = resource

    def check(
        self, resource: Resource, new: Object, old: Object | None, strict: bool, admit: Callable[..., None]
    ) -> None:
        """Prune, default and validate an object before it is written; ``admit`` are the mutating webhooks.

        Raises:
            Refusal: 400 for unknown fields where they are asked to be strict, 422 for what is invalid.
        """
        metadata, what = new["metadata"], f"{resource.kind} {new['metadata'].get('name')!r}"
        problems = []
        if not _NAME.fullmatch(str(metadata.get("name"))) or len(metadata["name"]) > 253:
            problems.append("metadata.name: Invalid value: must be a lowercase RFC 1123 subdomain")
        for key, value in (metadata.get("labels") or {}).items():
            if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
                problems.append(f"metadata.labels.{key}: Invalid value: {value!r}")
        for entry in metadata.get("ownerReferences") or []:
            problems += [
                f"metadata.ownerReferences: {k}: Required value"
                for k in ("apiVersion", "kind", "name", "uid")
                if not entry.get(k)
            ]
        if resource.schema is not None:
            dropped = prune(resource.schema, new)
            if strict and dropped:
                named = ", ".join(f'unknown field "{path}"' for path in dropped)
                raise Refusal(400, "BadRequest", f"strict decoding error: {named}")
            set_defaults(resource.schema, new)
            errors = list(validator(resource).iter_errors(new))
            if (
                any(error.validator == "type" for error in errors) and resource.kind == "TrainJob"
            ):  # its webhook decodes
                named = ", ".join(".".join(map(str, error.absolute_path)) for error in errors)
                raise Refusal(400, "BadRequest", f"json: cannot unmarshal into Go struct field {named}")
            if not errors:
                admit(resource, new, old)
            for error in errors:
                problems.append(f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}")
            if not problems:
                problems += rule_errors(resource.schema, new, old)
            problems += quantity_errors(new.get("spec"), "spec")
        if problems:
            raise Refusal(422, "Invalid", f"{what} is invalid: {'; '.join(problems[:5])}")

    def record(self, change: str, key: tuple[str, str, str], found: Object) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        kept = copy.deepcopy(found)
        if change == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = found
        self.history.append((self.version, change, key, kept))
        self.changed.notify_all()

    def collect(self, uid: str) -> None:
        """Delete what nothing owns any more."""
        for key, found in list(self.objects.items()):
            owners = found["metadata"].get("ownerReferences") or []
            uids = {o["metadata"]["uid"] for o in self.objects.values()}
            if any(o["uid"] == uid for o in owners) and not any(o["uid"] in uids for o in owners):
                self.remove(key)

    def collect_orphan(self, key: tuple[str, str, str]) -> None:
        """Delete an object none of whose owners is there: an owner in another namespace never is."""
        with self.changed:
            owners = self.objects.get(key, {}).get("metadata", {}).get("ownerReferences") or []
            uids = {o["metadata"]["uid"] for k, o in self.objects.items() if k[1] == key[1]}
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.remove(key)

    def remove(self, key: tuple[str, str, str]) -> None:
        found = self.objects[key]
        if found["metadata"].get("finalizers"):
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = now()
                self.record("MODIFIED", key, found)
            return
        self.record("DELETED", key, found)
        self.collect(found["metadata"]["uid"])


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def matches(resource: Resource, found: Object, query: Mapping[str, str]) -> bool:
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, negated, value = re.fullmatch(r"([^=!]+)(!?)={1,2}(.*)", term).groups()  # type: ignore[union-attr]
        if ((found["metadata"].get("labels") or {}).get(key) == value) == bool(negated):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        at: Any = found
        for part in path.split("."):
            at = (at or {}).get(part)
        if str(at) != value:
            return False
    return True


_FIELDS = {
    "Pod": {"status.phase", "spec.nodeName"},
    "Event": {"type", "reason", *(f"involvedObject.{name}" for name in ("name", "kind", "uid", "namespace"))},
}


def check_selectors(resource: Resource, query: Mapping[str, str]) -> None:
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path = term.partition("=")[0]
        if path not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource.kind, set()):
            raise Refusal(400, "BadRequest", f"field label not supported: {path}")


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target
