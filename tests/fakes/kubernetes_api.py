"""A small Kubernetes API over HTTP that keeps the API's rules, for the launcher's and the deployer's tests.

Stored objects live in memory. Custom resources are pruned, given defaults and checked by the CRDs in a folder. What
the real API does with a write, this one does: it refuses unknown names, stale resource versions, changes of immutable
fields and a status that comes with the object; it serves lists with selectors, watches that expire, deletion with
preconditions, and pods' logs. There are no controllers: a test plays them, over the same HTTP.

The methods of `ApiServer` that are not on a real API (`fail`, `expire`, `print_line`) exist to make trouble.

Compared with: kube-apiserver 1.34 with the CRDs and webhooks of Trainer 2.3.0, JobSet 0.12.0, Kueue 0.20-devel and
KServe 0.20, on 2026-12-01, by running tests/cluster against it (`KUBECONFIG`): 79 passed, 8 failed, 18 skipped.
The same as there: strict decoding (400), a PUT without version (422), an unsupported field selector (400), an expired
watch (410), lengths of labels (422).
Known to differ:

- no roles, no admission webhooks (so no defaults of theirs), no quotas and their 403s, no priorities;
- no server-side apply, and no CEL rules other than those in `_CEL`;
- an object of another kind than the path's is refused with 400; a real API accepts it;
- a namespace need not exist; a real API answers 404 to a creation in none;
- Workloads and Workflows have no schema: what Kueue requires of a condition (``lastTransitionTime``) is not checked;
- an owner whose uid nobody has is kept; the real garbage collector deletes such an object within seconds;
- a number given as text (``numNodes: "two"``) is 422; with Trainer's webhook it is 400.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import yaml

Object = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?")


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
class _Trouble:
    status: int | None
    times: int
    method: str | None
    path: str
    retry_after_s: int | None
    after: bool


@dataclass
class _Log:
    lines: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    breaks: list[int] = field(default_factory=list)
    """Line counts after which a follower's connection is cut, once each."""


# --- structural schemas -------------------------------------------------------------------------------------


def prune(schema: Mapping[str, Any], value: Any, path: str = "", root: bool = True) -> list[str]:
    """Drop the fields that a structural schema does not have, in place; their paths."""
    dropped: list[str] = []
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        properties, more = schema.get("properties"), schema.get("additionalProperties")
        if properties is None and more is None and schema.get("type") != "object":
            return []
        for key in list(value):
            below = f"{path}.{key}".lstrip(".")
            if root and key in ("apiVersion", "kind", "metadata"):
                continue
            if properties is not None and key in properties:
                dropped += prune(properties[key], value[key], below, False)
            elif isinstance(more, Mapping):
                dropped += prune(more, value[key], below, False)
            elif more is not True:
                del value[key]
                dropped.append(below)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, item in enumerate(value):
            dropped += prune(schema["items"], item, f"{path}[{index}]", False)
    return dropped


def set_defaults(schema: Mapping[str, Any], value: Any) -> None:
    """Give absent fields their defaults, in place."""
    if isinstance(value, dict):
        for key, below in schema.get("properties", {}).items():
            if key not in value and "default" in below:
                value[key] = copy.deepcopy(below["default"])
            if key in value:
                set_defaults(below, value[key])
        if isinstance(schema.get("additionalProperties"), Mapping):
            for item in value.values():
                set_defaults(schema["additionalProperties"], item)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for item in value:
            set_defaults(schema["items"], item)


def _json_schema(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    out = {key: value for key, value in node.items() if key not in ("default", "format")}
    for key in ("properties", "patternProperties"):
        if key in node:
            out[key] = {name: _json_schema(below) for name, below in node[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in node:
            out[key] = _json_schema(node[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in node:
            out[key] = [_json_schema(below) for below in node[key]]
    if node.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if node.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def _in_list(rule: str) -> Callable[[Any, Any], bool] | None:
    match = re.fullmatch(r"self in (\[.*\])", rule)
    if match is None:
        return None
    allowed = json.loads(match[1].replace("'", '"'))
    return lambda new, old: new in allowed


_CEL: dict[str, Callable[[Any, Any], bool]] = {
    "self == oldSelf": lambda new, old: new == old,
    "self >= 1": lambda new, old: new >= 1,
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')": lambda new, old: bool(
        re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", new["metadata"]["name"])
    ),
    "size(self.metadata.name) <= 63": lambda new, old: len(new["metadata"]["name"]) <= 63,
    "has(self.lastUpdatedTime)": lambda new, old: "lastUpdatedTime" in new,
}
"""The rules of CRDs that matter here, by their text."""


def rule_errors(schema: Mapping[str, Any], new: Any, old: Any, path: str = "") -> Iterator[str]:
    """The CEL rules that a value breaks; rules about ``oldSelf`` hold only where there was a value before."""
    for entry in schema.get("x-kubernetes-validations", []):
        rule = entry["rule"]
        check = _CEL.get(rule) or _in_list(rule)
        if check is None or ("oldSelf" in rule and old is None):
            continue
        if not check(new, old):
            yield f"{path or '<root>'}: Invalid value: {entry.get('message', rule)}"
    if isinstance(new, dict):
        before = old if isinstance(old, dict) else {}
        for key, below in schema.get("properties", {}).items():
            if key in new and isinstance(below, Mapping):
                yield from rule_errors(below, new[key], before.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(new, list) and isinstance(schema.get("items"), Mapping):
        keys = schema.get("x-kubernetes-list-map-keys")
        for index, item in enumerate(new):
            match = None
            if keys and isinstance(old, list):
                match = next((o for o in old if all(o.get(k) == item.get(k) for k in keys)), None)
            yield from rule_errors(schema["items"], item, match, f"{path}[{index}]")
        if keys:
            seen = [tuple(item.get(k) for k in keys) for item in new]
            yield from (f"{path}: Duplicate value: {key}" for key in {k for k in seen if seen.count(k) > 1})


def _quantity_errors(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            at = f"{path}.{key}".lstrip(".")
            if key in ("limits", "requests") and isinstance(below, dict):
                for name, quantity in below.items():
                    if not isinstance(quantity, dict) and not _QUANTITY.fullmatch(str(quantity)):
                        yield f"{at}.{name}: quantities must match the regular expression (got {quantity!r})"
            else:
                yield from _quantity_errors(below, at)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _quantity_errors(below, f"{path}[{index}]")


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
def _validator(resource: Resource) -> Any:
    return jsonschema.Draft202012Validator(_json_schema(resource.schema))


# --- the store ----------------------------------------------------------------------------------------------


class Store:
    """The objects, their versions and their history."""

    def __init__(self, crds: Path) -> None:
        self.changed = threading.Condition()
        self.resources: dict[tuple[str, str, str], Resource] = {}
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.history: list[tuple[int, str, tuple[str, str, str], Object]] = []
        self.version = 100
        self.oldest = 0
        self.logs: dict[tuple[str, str], _Log] = {}
        for resource in _resources(crds):
            self.add(resource)
        for kind, plural in (("Pod", "pods"), ("Event", "events"), ("Service", "services"), ("Secret", "secrets")):
            self.add(Resource("", "v1", plural, kind, None, kind in ("Pod", "Service")))

    def add(self, resource: Resource) -> None:
        self.resources[resource.group, resource.version, resource.plural] = resource

    def check(self, resource: Resource, new: Object, old: Object | None, strict: bool) -> None:
        """Prune, default and validate an object before it is written.

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
            for error in _validator(resource).iter_errors(new):
                problems.append(f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}")
            if not problems:
                problems += rule_errors(resource.schema, new, old)
            problems += _quantity_errors(new.get("spec"), "spec")
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

    def remove(self, key: tuple[str, str, str]) -> None:
        found = self.objects[key]
        if found["metadata"].get("finalizers"):
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = _now()
                self.record("MODIFIED", key, found)
            return
        self.record("DELETED", key, found)
        self.collect(found["metadata"]["uid"])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _matches(resource: Resource, found: Object, query: Mapping[str, str]) -> bool:
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


def _check_selectors(resource: Resource, query: Mapping[str, str]) -> None:
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path = term.partition("=")[0]
        if path not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource.kind, set()):
            raise Refusal(400, "BadRequest", f"field label not supported: {path}")


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = _merge(target.get(key), value)
    return target


# --- HTTP ---------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client has gone; everything else is a bug of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api = self.api
        api.requests.append((self.command, self.path))
        trouble = api._trouble(self.command, self.path)
        try:
            if trouble is not None and not trouble.after:
                self._make(trouble)
            if self.headers.get("Authorization") != f"Bearer {api.token}":
                raise Refusal(401, "Unauthorized", "Unauthorized")
            answer = self._route(split.path, query, body)
            if trouble is not None:
                self._make(trouble)  # the write has happened; its answer gets lost
            if answer is not None:
                self._send(201 if self.command == "POST" else 200, answer)
        except Refusal as refusal:
            self._send(refusal.code, refusal.status, refusal.retry_after_s)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _make(self, trouble: _Trouble) -> None:
        if trouble.status is None:
            self.close_connection = True
            self.connection.close()
            raise BrokenPipeError
        reasons = {429: "TooManyRequests", 409: "Conflict", 500: "InternalError", 403: "Forbidden"}
        message = f"made to fail with {trouble.status}"
        raise Refusal(trouble.status, reasons.get(trouble.status, "ServiceUnavailable"), message, trouble.retry_after_s)

    def _send(self, code: int, answer: Object, retry_after_s: int | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(data)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _begin_stream(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _route(self, path: str, query: Mapping[str, str], body: bytes) -> Object | None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        core = parts[:1] == ["api"]
        head = 2 if core else 3
        if parts[0] not in ("api", "apis") or len(parts) < head + 3 or parts[head] != "namespaces":
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        group, version = ("", parts[1]) if core else (parts[1], parts[2])
        namespace, plural, *rest = parts[head + 1 :]
        resource = self.api.store.resources.get((group, version, plural))
        if resource is None or len(rest) > 2:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        given = json.loads(body) if body else {}
        if not rest:
            if self.command == "GET":
                _check_selectors(resource, query)
                if query.get("watch") in ("true", "1"):
                    self._watch(resource, namespace, query)
                    return None
                return self.api.listed(resource, namespace, query)
            if self.command == "POST":
                return self.api.created(resource, namespace, given, query)
            raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        name, below = rest[0], rest[1] if len(rest) == 2 else None
        key = (f"{group}/{plural}", namespace, name)
        if below == "log" and plural == "pods" and self.command == "GET":
            self._log(namespace, name, query)
            return None
        if below is not None and not (below == "status" and resource.has_status):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        with self.api.store.changed:
            found = self.api.store.objects.get(key)
            if found is None:
                raise Refusal(404, "NotFound", f'{resource.title} "{name}" not found')
            if self.command == "GET":
                return copy.deepcopy(found)
            if self.command == "DELETE":
                return self.api.deleted(resource, key, given)
            if self.command == "PATCH":
                kind = (self.headers.get("Content-Type") or "").partition(";")[0]
                if kind != "application/merge-patch+json":
                    raise Refusal(
                        415, "UnsupportedMediaType", f"{kind}: only application/merge-patch+json is taken here"
                    )
                given = _merge(found, given)
                given["metadata"].setdefault("resourceVersion", found["metadata"]["resourceVersion"])
            return self.api.updated(resource, key, given, below == "status", query)

    def _watch(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> None:
        store = self.api.store
        since = int(query.get("resourceVersion") or 0)
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        self._begin_stream("application/json;stream=watch")

        def send(change: str, found: Object) -> None:
            self._chunk(json.dumps({"type": change, "object": found}).encode() + b"\n")

        while time.monotonic() < deadline and not self.api.closing:
            with store.changed:
                if since < store.oldest:
                    gone = Refusal(410, "Expired", f"too old resource version: {since} ({store.oldest})")
                    send("ERROR", gone.status)
                    break
                new = [entry for entry in store.history if entry[0] > since]
                if not new:
                    store.changed.wait(min(0.2, max(0.0, deadline - time.monotonic())))
            for version, change, key, found in new:
                since = version
                ours = key[:2] == (f"{resource.group}/{resource.plural}", namespace)
                if ours and _matches(resource, found, query):
                    send(change, found)
        else:
            if query.get("allowWatchBookmarks") == "true":
                empty = {"metadata": {"resourceVersion": str(since)}}
                send("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, **empty})
        self._chunk(b"")

    def _log(self, namespace: str, pod: str, query: Mapping[str, str]) -> None:
        store = self.api.store
        with store.changed:
            if ("/pods", namespace, pod) not in store.objects:
                raise Refusal(404, "NotFound", f'pods "{pod}" not found')
            log = store.logs.setdefault((namespace, pod), _Log())
        self._begin_stream("text/plain")
        sent, since = 0, query.get("sinceTime", "")[:19]
        while not self.api.closing:
            with store.changed:
                phase = store.objects.get(("/pods", namespace, pod), {}).get("status", {}).get("phase")
                lines, ended = log.lines[sent:], log.ended or phase in (None, "Succeeded", "Failed")
                if not lines and not ended and query.get("follow") == "true":
                    store.changed.wait(0.2)
            for stamp, text in lines:
                sent += 1
                if stamp[:19] >= since:
                    prefix = f"{stamp} " if query.get("timestamps") == "true" else ""
                    self._chunk(f"{prefix}{text}\n".encode())
                if sent in log.breaks:
                    log.breaks.remove(sent)
                    self.close_connection = True
                    self.connection.close()
                    raise BrokenPipeError
            if (ended and sent == len(log.lines)) or query.get("follow") != "true":
                break
        self._chunk(b"")


class ApiServer:
    """The server; a context manager."""

    def __init__(self, crds: Path) -> None:
        self.store = Store(crds)
        self.token = secrets.token_hex(8)
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.closing = False
        self._troubles: list[_Trouble] = []
        handler = type("Handler", (_Handler,), {"api": self})
        self._http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, path: Path, namespace: str) -> Path:
        """Write a kubeconfig with which any client reaches this server."""
        name = "test"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url}}],
            "users": [{"name": name, "user": {"token": self.token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    # --- trouble ---

    def fail(
        self,
        status: int | None,
        times: int = 1,
        method: str | None = None,
        path: str = "",
        retry_after_s: int | None = None,
        after: bool = False,
    ) -> None:
        """Let the next requests fail; ``status`` None: the connection breaks. ``after``: once they have had effect."""
        self._troubles.append(_Trouble(status, times, method, path, retry_after_s, after))

    def _trouble(self, method: str, path: str) -> _Trouble | None:
        for trouble in self._troubles:
            if trouble.times > 0 and trouble.method in (None, method) and trouble.path in path:
                trouble.times -= 1
                return trouble
        return None

    def expire(self) -> None:
        """Forget the history: watches that are behind get 410."""
        with self.store.changed:
            self.store.version += 1
            self.store.oldest = self.store.version
            self.store.history.clear()
            self.store.changed.notify_all()

    def print_line(self, namespace: str, pod: str, *lines: str, end: bool = False) -> None:
        """Let a pod's container print; as fast as real ones do, many lines within a second."""
        with self.store.changed:
            log = self.store.logs.setdefault((namespace, pod), _Log())
            for line in lines:
                count = len(log.lines)
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
                log.lines.append((f"{stamp}.{count:09d}Z", line))
            log.ended |= end
            self.store.changed.notify_all()

    def break_log(self, namespace: str, pod: str, after_lines: int) -> None:
        """Cut a follower's connection after so many lines, once."""
        with self.store.changed:
            self.store.logs.setdefault((namespace, pod), _Log()).breaks.append(after_lines)

    # --- what requests do ---

    def listed(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> Object:
        with self.store.changed:
            plural = f"{resource.group}/{resource.plural}"
            found = [
                copy.deepcopy(o)
                for key, o in sorted(self.store.objects.items())
                if key[:2] == (plural, namespace) and _matches(resource, o, query)
            ]
            start, limit = int(query.get("continue") or 0), int(query.get("limit") or 0) or len(found)
            metadata = {"resourceVersion": str(self.store.version)}
            if start + limit < len(found):
                metadata["continue"] = str(start + limit)
            page = found[start : start + limit]
            return {
                "kind": f"{resource.kind}List",
                "apiVersion": resource.api_version,
                "metadata": metadata,
                "items": page,
            }

    def created(self, resource: Resource, namespace: str, new: Object, query: Mapping[str, str]) -> Object:
        if new.get("apiVersion") != resource.api_version or new.get("kind") != resource.kind:
            raise Refusal(400, "BadRequest", f"the object is a {new.get('kind')} of {new.get('apiVersion')}")
        metadata = new.setdefault("metadata", {})
        if metadata.setdefault("namespace", namespace) != namespace:
            raise Refusal(400, "BadRequest", "the namespace of the object does not match that of the request")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        if metadata.get("resourceVersion"):
            raise Refusal(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        with self.store.changed:
            key = (f"{resource.group}/{resource.plural}", namespace, str(metadata.get("name")))
            if key in self.store.objects:
                raise Refusal(409, "AlreadyExists", f'{resource.title} "{key[2]}" already exists')
            if resource.has_status and resource.kind != "Pod":
                new.pop("status", None)
            self.store.check(resource, new, None, query.get("fieldValidation") == "Strict")
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
            if query.get("dryRun") != "All":
                self.store.record("ADDED", key, new)
            return copy.deepcopy(new)

    def updated(
        self, resource: Resource, key: tuple[str, str, str], new: Object, status: bool, query: Mapping[str, str]
    ) -> Object:
        old = self.store.objects[key]
        metadata = new.get("metadata") or {}
        if metadata.get("name") != key[2]:
            raise Refusal(400, "BadRequest", "the name of the object does not match that of the request")
        version = metadata.get("resourceVersion")
        if not version:
            raise Refusal(422, "Invalid", "metadata.resourceVersion: Invalid value: must be specified for an update")
        if version != old["metadata"]["resourceVersion"]:
            raise Refusal(
                409, "Conflict", f"the object {key[2]!r} has been modified; apply your changes to the latest version"
            )
        if metadata.get("uid") not in (None, old["metadata"]["uid"]):
            raise Refusal(409, "Conflict", "the UID in the object is not the UID of the stored object")
        fixed = {k: old["metadata"][k] for k in ("uid", "creationTimestamp", "generation", "namespace")}
        if "deletionTimestamp" in old["metadata"]:
            fixed["deletionTimestamp"] = old["metadata"]["deletionTimestamp"]
        if status:
            new = {**copy.deepcopy(old), "status": new.get("status", {})}
        elif resource.has_status:
            new = (
                {**new, "status": old["status"]} if "status" in old else {k: v for k, v in new.items() if k != "status"}
            )
        new["metadata"] = {**new["metadata"], **fixed}
        self.store.check(resource, new, old, query.get("fieldValidation") == "Strict")
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        if new != old:
            self.store.record("MODIFIED", key, new)
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            self.store.remove(key)
        return copy.deepcopy(new)

    def deleted(self, resource: Resource, key: tuple[str, str, str], options: Object) -> Object:
        found = self.store.objects[key]
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in (None, found["metadata"]["uid"]):
            raise Refusal(409, "Conflict", f"Precondition failed: UID in precondition: {wanted}")
        self.store.remove(key)
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Success",
            "details": {"name": key[2], "kind": resource.plural},
        }
