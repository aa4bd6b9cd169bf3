"""The Kubernetes API, as the training launcher and the deployer use it: calls that are repeated, watches that resume.

Objects are plain dictionaries, as in YAML. Authentication, TLS and transport are the official client's, which is
imported only when a cluster is asked for.
"""

import contextlib
import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from ...retry import Backoff, retry
from ..process import LaunchError

Object = dict[str, Any]  # a Kubernetes object or list, as JSON
Selector = Mapping[str, str] | None  # labels or fields that objects must have
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HINTS = {
    401: "; the token is not accepted (expired?)",
    403: "; the service account lacks the right (k8s/team grants it)",
}


class ClusterError(LaunchError):
    """The Kubernetes API refused, or cannot be reached."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status; None when there was no answer."""
        self.retry_after_s = retry_after_s
        """When the server wants to be asked again, where it says so."""


class Kind(NamedTuple):
    """A kind of object, and where the API keeps it."""

    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """As in an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str | None = None, below: str | None = None) -> str:
        """Path of a namespaced collection, object or subresource."""
        root = f"/{'apis' if self.group else 'api'}/{self.api_version}"
        return "/".join(filter(None, [root, "namespaces", namespace, self.plural, name, below]))


TRAIN_JOB = Kind("TrainJob", "trainer.kubeflow.org", "v1alpha1", "trainjobs")
INFERENCE_SERVICE = Kind("InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices")
WORKLOAD = Kind("Workload", "kueue.x-k8s.io", "v1beta2", "workloads")
WORKFLOW = Kind("Workflow", "argoproj.io", "v1alpha1", "workflows")
POD = Kind("Pod", "", "v1", "pods")
EVENT = Kind("Event", "", "v1", "events")


def at(obj: Any, *path: str) -> Any:
    """What is at a path in an object; None where something of it is missing or null."""
    for key in path:
        obj = (obj or {}).get(key)
    return obj


def condition(obj: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """An object's condition; ``{}`` where it has none of this type."""
    return next((entry for entry in at(obj, "status", "conditions") or [] if entry.get("type") == kind), {})


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether a condition is there and true."""
    return condition(obj, kind).get("status") == "True"


def phase(pod: Mapping[str, Any]) -> str | None:
    """A pod's phase; None before it has one."""
    return at(pod, "status", "phase")


def one_line(text: object, limit: int = 1000) -> str:
    """A message of the API on one line; None is empty."""
    return " ".join(str(text or "").split())[:limit]


def own_namespace() -> str | None:
    """Namespace of the pod this runs in; None outside of a cluster."""
    with contextlib.suppress(OSError):
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip() or None
    return None


class Cluster:
    """One namespace of a cluster. A call that fails for a reason that may pass (no answer, 429, 5xx) is repeated for
    ``patience_s``; as names are fixed beforehand, a repeated creation is at worst answered 409."""

    def __init__(self, client: Any, namespace: str, patience_s: float = 120.0) -> None:
        """Args: ``client``: an ``ApiClient`` of the official package."""
        self.api_client, self.namespace, self.patience_s = client, namespace, patience_s

    @classmethod
    def connect(cls, namespace: str | None = None) -> Self:
        """The cluster that ``KUBECONFIG`` names, or this pod's, or the kubeconfig's current one; else ClusterError."""
        try:
            from kubernetes import client, config
        except ImportError:
            raise ClusterError("a cluster needs the Kubernetes client: pip install 'vthink[cluster]'") from None
        configuration = client.Configuration()
        try:
            if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(configuration)
                default = own_namespace()
            else:
                file = os.environ.get("KUBECONFIG")  # the client would remember what it was when it was imported
                config.load_kube_config(file, client_configuration=configuration)
                default = config.list_kube_config_contexts(file)[1]["context"].get("namespace")
        except (config.ConfigException, OSError, KeyError, TypeError) as error:
            reason = one_line(error, 200)
            raise ClusterError(f"no Kubernetes cluster: {reason}; set KUBECONFIG, or run in a pod") from error
        configuration.retries = False  # repeated here, where the reason is known
        return cls(client.ApiClient(configuration), namespace or default or "default")

    # --- calls ---

    @contextlib.contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        """What the client raises becomes a `ClusterError`, with the status if there was an answer."""
        import urllib3
        from kubernetes.client.rest import ApiException

        try:
            yield
        except ApiException as error:
            try:
                message = json.loads(error.body)["message"]
            except (TypeError, ValueError, KeyError):
                message = error.body
            try:
                retry_after_s = min(float(error.headers["Retry-After"]), 60.0)
            except (TypeError, KeyError, ValueError):
                retry_after_s = None
            text = f"{error.status} {one_line(message, 400) or error.reason}{_HINTS.get(error.status, '')}"
            raise ClusterError(f"{what}: {text}", error.status or None, retry_after_s) from error
        except (urllib3.exceptions.HTTPError, OSError, json.JSONDecodeError) as error:
            reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2][:200]
            host = self.api_client.configuration.host
            raise ClusterError(f"the Kubernetes API at {host} does not answer ({reason})") from error

    def _once(self, method: str, path: str, query: Mapping[str, Any], body: Any = None, timeout_s: float = 30.0) -> Any:
        """One request; the response, not yet read."""
        with self._errors(f"{method} {path}"):
            return self.api_client.call_api(
                path,
                method,
                query_params=[(key, value) for key, value in query.items() if value is not None],
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(10.0, timeout_s),
            )

    def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Object:
        """A request, repeated while its failure may pass; the answer's JSON."""

        def call() -> Object:
            response = self._once(method, path, query or {}, body)
            try:
                with self._errors():
                    answer: Object = json.loads(response.read())
                    return answer
            finally:
                response.release_conn()

        return retry(
            call,
            transient=_may_pass,
            limit_s=self.patience_s,
            backoff=Backoff(first_s=0.25, longest_s=10.0),
            retry_after_s=lambda error: getattr(error, "retry_after_s", None),
        )

    def get(self, kind: Kind, name: str) -> Object | None:
        """An object; None when there is none."""
        try:
            return self.request("GET", kind.path(self.namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: Kind, labels: Selector = None, fields: Selector = None) -> list[Object]:
        """The objects whose labels and fields are these."""
        return self._listed(kind, labels, fields)[0]

    def _listed(self, kind: Kind, labels: Selector = None, fields: Selector = None) -> tuple[list[Object], str]:
        query: Object = {"labelSelector": labels, "fieldSelector": fields, "limit": 500}
        for name in ("labelSelector", "fieldSelector"):
            query[name] = ",".join(f"{key}={value}" for key, value in (query[name] or {}).items()) or None
        objects: list[Object] = []
        while True:
            page = self.request("GET", kind.path(self.namespace), query)
            objects += page["items"]
            query["continue"] = page["metadata"].get("continue") or None
            if query["continue"] is None:
                return objects, page["metadata"]["resourceVersion"]

    def create(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """Create an object; status 409 when there is one of this name. An unknown field is an error, not dropped."""
        return self.request("POST", kind.path(self.namespace), {"fieldValidation": "Strict"}, body)

    def update(self, kind: Kind, name: str, change: Callable[[Object], Object]) -> Object:
        """Read, change and write back an object, again when somebody else wrote in between; status 404: it is gone."""
        path = kind.path(self.namespace, name)
        while True:
            current = self.request("GET", path)
            changed = change(copy.deepcopy(current))
            if changed == current:
                return current
            try:
                return self.request("PUT", path, {"fieldValidation": "Strict"}, changed)
            except ClusterError as error:
                if error.status != 409:
                    raise

    def delete(self, kind: Kind, name: str, uid: str | None = None) -> None:
        """Delete an object and what it owns, with ``uid`` only if it is this one; one that is gone is no error."""
        options: Object = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", kind.path(self.namespace, name), body=options)
        except ClusterError as error:
            if error.status not in (404, 409):
                raise

    # --- watching ---

    def follow(
        self, kind: Kind, name: str, tick_s: float = 10.0, say: Callable[[str], None] = lambda line: None
    ) -> Iterator[Object | None]:
        """An object's states: at once, on every change, and unchanged after every ``tick_s``; None when it is gone. An
        expired watch (410) begins anew with a list, an API that does not answer is waited for without limit (``say``
        gets a line when it stops and when it answers again); one that refuses for good is a ClusterError."""
        version: str | None = None
        current: Object | None = None
        silent_since: float | None = None
        while True:
            try:
                if version is None:
                    objects, version = self._listed(kind, fields={"metadata.name": name})
                    current = objects[0] if objects else None
                    yield current
                for change in self._watch(kind, name, version, tick_s):
                    if change["type"] == "ERROR":
                        code = change["object"].get("code")
                        raise ClusterError(f"watching {kind.name} {name}: {change['object'].get('message')}", code)
                    version = change["object"]["metadata"]["resourceVersion"]
                    if change["type"] != "BOOKMARK":
                        current = None if change["type"] == "DELETED" else change["object"]
                        yield current
                if silent_since is not None:
                    say(f"the Kubernetes API answers again, after {time.monotonic() - silent_since:.0f} s")
                    silent_since = None
                yield current
            except ClusterError as error:
                if error.status == 410:
                    version = None
                elif _may_pass(error):
                    if silent_since is None:
                        silent_since = time.monotonic()
                        say(f"{error}; still trying")
                    time.sleep(min(tick_s, 5.0) * random.uniform(0.5, 1.0))
                else:
                    raise

    def _watch(self, kind: Kind, name: str, version: str, timeout_s: float) -> Iterator[Object]:
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": max(1, round(timeout_s)),
        }
        for line in self._lines(kind.path(self.namespace), query, timeout_s + 15):
            with self._errors():  # cut off in the middle
                change = json.loads(line)
            yield change

    def _lines(self, path: str, query: Mapping[str, Any], timeout_s: float) -> Iterator[str]:
        """The lines of an answer as they come; a connection that breaks is a `ClusterError` without status."""
        response = self._once("GET", path, query, timeout_s=timeout_s)
        with self._errors(), contextlib.closing(response):
            for line in response:
                if text := line.decode(errors="replace").removesuffix("\n"):
                    yield text

    def logs(
        self, pod: str, container: str, since: str | None = None, follow: bool = True
    ) -> Iterator[tuple[str, str]]:
        """The lines that a container prints ``since`` that second, each with its time (RFC 3339). With ``follow`` until
        it ends or the connection breaks."""
        query = {"container": container, "follow": "true" if follow else None, "timestamps": "true"}
        query["sinceTime"] = since[:19] + "Z" if since else None
        for line in self._lines(POD.path(self.namespace, pod, "log"), query, 3600.0):
            stamp, _, text = line.partition(" ")
            yield stamp, text


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: no answer, too many requests, a fault of the server."""
    return isinstance(error, ClusterError) and error.status in (None, 429, 500, 502, 503, 504)
