"""A small Kubernetes API over HTTP that keeps the API's rules, for the launcher's and the deployer's tests.

Stored objects live in memory. Custom resources are pruned, given defaults and checked by the CRDs in a folder. What
the real API does with a write, this one does: it refuses unknown names, stale resource versions, changes of immutable
fields and a status that comes with the object; it serves lists with selectors, watches that expire, deletion with
preconditions, and pods' logs. There are no controllers: a test plays them, over the same HTTP.

The methods of `ApiServer` that are not on a real API (`fail`, `expire`, `print_line`) exist to make trouble.

Compared with: kube-apiserver 1.34 with the CRDs and webhooks of Trainer 2.3.0, JobSet 0.12.0, Kueue 0.20-devel and
KServe 0.20, on 2026-12-01, by running tests/cluster against it (`KUBECONFIG`). The same as there: strict decoding
(400), a wrong type where a webhook decodes (400), a PUT without version (422), an unsupported field selector (400),
an expired watch (410), lengths of labels (422), another kind than the path's (taken), a namespace that is not there
(404), the role of `k8s/team` (403), webhooks, priorities and counted quota (`admission.py`), the collector that
deletes what nobody owns. Known to differ: no server-side apply, no CEL rules other than those in `crd_schemas.py`,
quota only of counts, and of a Workload only its conditions have a schema.
"""

from __future__ import annotations

import copy
import json
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from vthink.tests.fakes import admission
from vthink.tests.fakes.kubernetes_store import (
    Object,
    PodLog,
    Refusal,
    Resource,
    Store,
    check_selectors,
    matches,
    merge_patch,
    now,
)


@dataclass
class _Trouble:
    status: int | None
    times: int
    method: str | None
    path: str
    retry_after_s: int | None
    after: bool
    message: str


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
            self._user = api.user(self.headers.get("Authorization") or "")
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
        message = trouble.message or f"made to fail with {trouble.status}"
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
        if parts[:3] == ["api", "v1", "namespaces"] and len(parts) < 5:
            return self.api.namespace(self.command, parts[3:], body)
        core = parts[:1] == ["api"]
        head = 2 if core else 3
        if parts[0] not in ("api", "apis") or len(parts) < head + 3 or parts[head] != "namespaces":
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        group, version = ("", parts[1]) if core else (parts[1], parts[2])
        namespace, plural, *rest = parts[head + 1 :]
        resource = self.api.store.resources.get((group, version, plural))
        if resource is None or len(rest) > 2:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        below = rest[1] if len(rest) == 2 else None
        self.api.check_rights(
            self._user, namespace, admission.access(self.command, group, plural, (rest or [None])[0], below, query)
        )
        given = json.loads(body) if body else {}
        if not rest:
            if self.command == "GET":
                check_selectors(resource, query)
                if query.get("watch") in ("true", "1"):
                    self._watch(resource, namespace, query)
                    return None
                return self.api.listed(resource, namespace, query)
            if self.command == "POST":
                return self.api.created(resource, namespace, given, query)
            raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        name = rest[0]
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
                given = merge_patch(found, given)
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
                if ours and matches(resource, found, query):
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
            log = store.logs.setdefault((namespace, pod), PodLog())
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
        """Of the service account vthink-pipeline, which has the rights of `k8s/team`."""
        self.admin_token = secrets.token_hex(8)
        """Of whoever plays controllers and people: may do everything."""
        role = next(obj for obj in admission.manifests(admission.PIPELINE_ROLE) if obj["kind"] == "Role")
        self.rules: list[Object] = role["rules"]
        self.accesses: list[admission.Access] = []
        """What the service account asked for, in order."""
        self.namespaces: set[str] = set()
        self.quotas: dict[str, int] = {}
        """Most objects in a namespace, by ``<plural>.<group>``."""
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

    def kubeconfig(self, path: Path, token: str | None = None) -> Path:
        """Write a kubeconfig with which any client reaches this server; it names no namespace, as many do not."""
        name = "test"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url}}],
            "users": [{"name": name, "user": {"token": token or self.token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return path

    # --- who may do what ---

    def user(self, authorization: str) -> str | None:
        """The service account behind a token; None: the administrator."""
        if authorization == f"Bearer {self.admin_token}":
            return None
        if authorization != f"Bearer {self.token}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        return "system:serviceaccount:vthink:vthink-pipeline"

    def check_rights(self, user: str | None, namespace: str, wanted: admission.Access) -> None:
        if user is not None:
            self.accesses.append(wanted)
            if admission.grants(self.rules, wanted) is None:
                raise admission.forbidden(user, wanted, namespace)

    def namespace(self, method: str, names: list[str], body: bytes) -> Object:
        """Create or delete a namespace, with all that is in it."""
        name = names[0] if names else json.loads(body)["metadata"]["name"]
        with self.store.changed:
            if method == "POST":
                self.namespaces.add(name)
            elif method == "DELETE":
                self.namespaces.discard(name)
                for key in [key for key in self.store.objects if key[1] == name]:
                    self.store.objects[key]["metadata"].pop("finalizers", None)
                    self.store.record("DELETED", key, self.store.objects[key])
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}

    # --- trouble ---

    def fail(
        self,
        status: int | None,
        times: int = 1,
        method: str | None = None,
        path: str = "",
        retry_after_s: int | None = None,
        after: bool = False,
        message: str = "",
    ) -> None:
        """Let the next requests fail; ``status`` None: the connection breaks. ``after``: once they have had effect."""
        self._troubles.append(_Trouble(status, times, method, path, retry_after_s, after, message))

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
            log = self.store.logs.setdefault((namespace, pod), PodLog())
            for line in lines:
                count = len(log.lines)
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
                log.lines.append((f"{stamp}.{count:09d}Z", line))
            log.ended |= end
            self.store.changed.notify_all()

    def break_log(self, namespace: str, pod: str, after_lines: int) -> None:
        """Cut a follower's connection after so many lines, once."""
        with self.store.changed:
            self.store.logs.setdefault((namespace, pod), PodLog()).breaks.append(after_lines)

    # --- what requests do ---

    def listed(self, resource: Resource, namespace: str, query: Mapping[str, str]) -> Object:
        with self.store.changed:
            plural = f"{resource.group}/{resource.plural}"
            found = [
                copy.deepcopy(o)
                for key, o in sorted(self.store.objects.items())
                if key[:2] == (plural, namespace) and matches(resource, o, query)
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
        new |= {"apiVersion": resource.api_version, "kind": resource.kind}  # another kind is taken for this one
        metadata = new.setdefault("metadata", {})
        if metadata.setdefault("namespace", namespace) != namespace:
            raise Refusal(400, "BadRequest", "the namespace of the object does not match that of the request")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        if metadata.get("resourceVersion"):
            raise Refusal(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        with self.store.changed:
            if namespace not in self.namespaces:
                raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
            key = (f"{resource.group}/{resource.plural}", namespace, str(metadata.get("name")))
            if key in self.store.objects:
                raise Refusal(409, "AlreadyExists", f'{resource.title} "{key[2]}" already exists')
            if resource.has_status and resource.kind != "Pod":
                new.pop("status", None)
            self.store.check(resource, new, None, query.get("fieldValidation") == "Strict", self._admission)
            admission.check_webhooks(resource, new, None)
            admission.check_priority(resource, new)
            used = sum(k[:2] == key[:2] for k in self.store.objects)
            admission.check_quota(resource, new, used, self.quotas.get(resource.title))
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            if query.get("dryRun") != "All":
                self.store.record("ADDED", key, new)
                if metadata.get("ownerReferences"):  # the collector soon looks for the owners
                    threading.Timer(0.2, self.store.collect_orphan, [key]).start()
            return copy.deepcopy(new)

    @staticmethod
    def _admission(resource: Resource, new: Object, old: Object | None) -> None:
        if old is None or new.get("status") == old.get("status"):
            admission.set_webhook_defaults(resource, new, old)

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
        self.store.check(resource, new, old, query.get("fieldValidation") == "Strict", self._admission)
        if not status:
            admission.check_webhooks(resource, new, old)
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
