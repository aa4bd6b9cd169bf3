"""Kubeflow Pipelines as a test needs it: its API's definition, held to strictly, over HTTP, and runs that are played.

Every request is validated by KFP's v2beta1 definition (the Swagger 2 file named in ``$VTHINK_KFP_API``): path, method,
query, filter, body, with no field that the definition does not name; and so is every answer, so that the server cannot
tell the client what KFP never would. What is wrong is answered 400 and kept in ``violations``. Beyond the definition
it does what KFP's server does with these requests: unique names, namespaces, parameters checked against the pipeline.

Compared with: the definition of KFP 2.17.0 (every request and answer); never with a running server.
Known to differ: no Argo behind it (a test moves a run's tasks itself), no roles, no MLflow plugin, no expiring tokens.
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import yaml

API = "VTHINK_KFP_API"
"""Environment variable with the path of KFP's v2beta1 definition."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Answer = tuple[int, Any]


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@lru_cache
def definition() -> dict[str, Any]:
    """KFP's definition, in which an object with named fields allows no others."""
    api: dict[str, Any] = json.loads(Path(os.environ[API]).read_text())

    def close(schema: Any) -> None:
        if isinstance(schema, dict):
            if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
                schema["additionalProperties"] = False
            for below in schema.values():
                close(below)
        elif isinstance(schema, list):
            for below in schema:
                close(below)

    close(api["definitions"])
    close(api["paths"])
    return api


def validate(value: Any, schema: dict[str, Any], what: str) -> None:
    """Hold a value to a schema of the definition.

    Raises:
        ApiError: 400, with the place and the reason.
    """
    whole = {**schema, "definitions": definition()["definitions"]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft4Validator(whole).iter_errors(value))
    if error is not None:
        raise ApiError(400, f"{what}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}")


@lru_cache
def routes() -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
    """(method, pattern of the path, operation), those with fewer placeholders first."""
    found = []
    for path, operations in definition()["paths"].items():
        pattern = re.sub(r"\\\{([\w.]+)\\\}", lambda m: f"(?P<{m[1].replace('.', '_')}>[^/:]+)", re.escape(path))
        found += [(method.upper(), re.compile(pattern), operation) for method, operation in operations.items()]
    return sorted(found, key=lambda route: route[1].groups)


@dataclass
class Fault:
    """Something that goes wrong with requests."""

    method: str
    path: str
    """Regular expression of the path."""
    status: int
    """Answer; 0: the connection is closed without one."""
    times: int = 1
    done: bool = False
    """Whether the request is carried out all the same, so that only the answer is lost."""


@dataclass
class KfpServer:
    """The server and what it holds; tests look at it and change it."""

    multi_user: bool = True
    tokens: set[str] | None = None
    """Bearer tokens that are accepted; None: nobody is asked."""
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Uploaded pipeline by version id."""
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    pod_logs: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of everything that arrived."""
    violations: list[str] = field(default_factory=list)
    """What clients did against the definition."""
    issued: list[str] = field(default_factory=list)
    """Tokens handed out as an OpenID Connect issuer, at ``/issuer``."""
    token_lifetime_s: float = 300.0
    port: int = 0
    _connections: list[socket.socket] = field(default_factory=list)

    # --- running ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server._connections.append(self.connection)

            def handle_request(self) -> None:
                server._handle(self)

            do_GET = do_POST = do_DELETE = do_PATCH = handle_request  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Break off all connections, and refuse new ones from now on."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    @property
    def url(self) -> str:
        """Address of the API."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def away(self) -> Iterator[None]:
        """Out of reach inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    # --- playing ----------------------------------------------------------------------------------------------

    def play(self, run_id: str, state: str, **tasks: str | tuple[str, str]) -> None:
        """Set the state of a run and of tasks (``plan_data="SUCCEEDED"``, or with an error ``("FAILED", "why")``).

        A task becomes the nodes that Argo makes of it: a driver, the task, and below it the executor with its pod.
        """
        run = self.runs[run_id]
        details = run.setdefault("run_details", {}).setdefault("task_details", [])
        for name, told in tasks.items():
            task_state, message = told if isinstance(told, tuple) else (told, "")
            display = name.replace("_", "-")
            details[:] = [t for t in details if not t["pod_name"].startswith(f"{run_id[:8]}-{display}-")]
            times = {"create_time": _time(len(details)), "start_time": _time(len(details))}
            if task_state not in ("RUNNING", "PENDING"):
                times["end_time"] = _time(len(details) + 60)
            pods = {part: f"{run_id[:8]}-{display}-{part}" for part in ("driver", "dag", "executor")}
            common = {"run_id": run_id, "state": task_state, **times}
            error = {"error": {"code": 2, "message": message}} if message else {}
            details += [
                {**common, "display_name": f"{display}-driver", "pod_name": pods["driver"], "state": "SUCCEEDED",
                 "child_tasks": [{"pod_name": pods["dag"]}]},
                {**common, **error, "display_name": display, "pod_name": pods["dag"],
                 "child_tasks": [{"pod_name": pods["executor"]}]},
                {**common, "display_name": "executor", "pod_name": pods["executor"]},
            ]  # fmt: skip
        run["state"] = state
        if state in ("SUCCEEDED", "FAILED", "CANCELED"):
            run["finished_at"] = _time(3600)

    # --- requests ---------------------------------------------------------------------------------------------

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        url = urlsplit(request.path)
        self.requests.append((request.command, url.path))
        fault = next(
            (f for f in self.faults if f.times > 0 and f.method == request.command and re.search(f.path, url.path)),
            None,
        )
        if fault is not None:
            fault.times -= 1
        try:
            if fault is not None and not fault.done:
                raise ApiError(fault.status, "out of order")
            answer = self._answer(request, url.path, url.query, body)
            if fault is not None:
                raise ApiError(fault.status, "out of order")
        except ApiError as error:
            if error.status == 0:
                request.close_connection = True
                return
            if error.status == 400:
                self.violations.append(f"{request.command} {request.path}: {error}")
            answer = {"code": error.status, "message": str(error), "details": []}
            self._send(request, error.status, json.dumps(answer).encode(), "application/json")
            return
        if isinstance(answer, str):
            self._send(request, 200, answer.encode(), "text/plain")
        else:
            self._send(request, 200, json.dumps(answer).encode(), "application/json")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _answer(self, request: BaseHTTPRequestHandler, path: str, query: str, body: bytes) -> Any:
        given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
        if path.startswith("/issuer/"):
            return self._issue(request, path, body)
        if self.tokens is not None:
            token = (request.headers.get("authorization") or "").removeprefix("Bearer ")
            if token not in self.tokens:
                raise ApiError(401, "Unauthenticated: the token is not valid")
        if path == "/k8s/pod/logs":  # of KFP's page, not in the definition
            if given.get("podname") not in self.pod_logs or not given.get("podnamespace"):
                raise ApiError(404, "pod not found")
            return self.pod_logs[given["podname"]]
        found = [
            (op, m) for method, pattern, op in routes() if method == request.command and (m := pattern.fullmatch(path))
        ]
        if not found:
            raise ApiError(400, "no such path in the definition")
        operation, match = found[0]
        within = {name: unquote(value) for name, value in match.groupdict().items()}
        parameters = {(p["in"], p["name"]): p for p in operation.get("parameters", [])}
        for name, value in given.items():
            if ("query", name) not in parameters:
                raise ApiError(400, f"query: {name} is not in the definition")
            if parameters["query", name].get("type") == "integer" and not value.isdigit():
                raise ApiError(400, f"query: {name}={value} is not a number")
        condition = given.get("filter")
        if condition:
            validate(json.loads(condition), {"$ref": "#/definitions/v2beta1Filter"}, "filter")
        sent: Any = None
        for (where, name), parameter in parameters.items():
            if where == "body":
                sent = json.loads(body or b"null")
                validate(sent, parameter["schema"], name)
            elif where == "formData" and parameter.get("required"):
                sent = _form(request.headers["Content-Type"] or "", body, name)
        handler = getattr(self, "_" + operation["operationId"].rpartition("_")[2].lower(), None)
        if handler is None:
            raise ApiError(501, f"{operation['operationId']} is not played here")
        answer = handler({**given, **within}, sent)
        schema = operation["responses"]["200"]["schema"]
        try:
            validate(answer, schema, "answer")
        except ApiError as error:
            raise ApiError(500, str(error)) from error
        return answer

    def _issue(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> dict[str, Any]:
        if path == "/issuer/.well-known/openid-configuration":
            return {"issuer": f"{self.url}/issuer", "token_endpoint": f"{self.url}/issuer/token"}
        form = parse_qs(body.decode())
        known = request.headers.get("authorization") == "Basic dGVhbTpzZWNyZXQ="  # team:secret
        if not known or form.get("grant_type") != ["client_credentials"]:
            raise ApiError(401, "invalid_client")
        token = f"oidc-{len(self.issued)}"
        self.issued.append(token)
        self.tokens = {token}  # the earlier ones have expired
        return {"access_token": token, "token_type": "Bearer", "expires_in": self.token_lifetime_s}

    # --- the API ----------------------------------------------------------------------------------------------

    def _check_namespace(self, namespace: str | None) -> None:
        if bool(namespace) != self.multi_user:
            wanted = "a namespace is required" if self.multi_user else "a single-user KFP takes no namespace"
            raise ApiError(400, wanted)

    def _gethealthz(self, given: dict[str, str], sent: Any) -> Any:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def _getpipelinebyname(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(given.get("namespace"))
        return _one(self.pipelines, "name", given["name"])

    def _createpipeline(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(sent.get("namespace"))
        _unique(self.pipelines, "name", sent.get("name"))
        return _keep(self.pipelines, "pipeline_id", sent)

    def _uploadpipelineversion(self, given: dict[str, str], sent: Any) -> Any:
        if given.get("pipelineid") not in self.pipelines:
            raise ApiError(404, "no such pipeline")
        _unique(self.versions, "name", given.get("name"))
        jobs = _package(sent)
        version = {"pipeline_id": given["pipelineid"], "name": given["name"], "display_name": given["name"]}
        kept = _keep(self.versions, "pipeline_version_id", version)
        self.packages[kept["pipeline_version_id"]] = jobs
        return kept

    def _listpipelineversions(self, given: dict[str, str], sent: Any) -> Any:
        found = [v for v in self.versions.values() if v["pipeline_id"] == given["pipeline_id"]]
        return _page("pipeline_versions", found, given)

    def _listexperiments(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(given.get("namespace"))
        return _page("experiments", self.experiments.values(), given)

    def _createexperiment(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(sent.get("namespace"))
        _unique(self.experiments, "display_name", sent.get("display_name"))
        return _keep(self.experiments, "experiment_id", sent)

    def _check_run(self, sent: dict[str, Any]) -> None:
        if not sent.get("display_name"):
            raise ApiError(400, "display_name is required")
        if sent.get("experiment_id") not in self.experiments:
            raise ApiError(404, "no such experiment")
        package = self.packages.get(sent.get("pipeline_version_reference", {}).get("pipeline_version_id"))
        if package is None:
            raise ApiError(404, "no such pipeline version")
        wanted = package.get("pipeline_spec", package)["root"]["inputDefinitions"]["parameters"]
        told = sent["runtime_config"].get("parameters", {})
        required = {
            name for name, about in wanted.items() if not about.get("isOptional") and "defaultValue" not in about
        }
        if (lacking := required - set(told)) or (unknown := set(told) - set(wanted)):
            raise ApiError(400, f"parameters: {sorted(lacking or unknown)}")
        kinds = {"STRING": str, "BOOLEAN": bool, "NUMBER_INTEGER": int}
        for name, value in told.items():
            if type(value) is not kinds[wanted[name]["parameterType"]]:  # to Python True is an integer
                raise ApiError(400, f"parameter {name} is no {wanted[name]['parameterType']}")

    def _createrun(self, given: dict[str, str], sent: Any) -> Any:
        self._check_run(sent)
        return _keep(self.runs, "run_id", {**sent, "state": "PENDING"})

    def _getrun(self, given: dict[str, str], sent: Any) -> Any:
        run = _one(self.runs, "run_id", given["run_id"])
        answer = copy.deepcopy(run)
        if run["state"] == "CANCELING":
            run["state"] = "CANCELED"
        return answer

    def _listruns(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(given.get("namespace"))
        return _page("runs", self.runs.values(), given)

    def _terminaterun(self, given: dict[str, str], sent: Any) -> Any:
        _one(self.runs, "run_id", given["run_id"])["state"] = "CANCELING"
        return {}

    def _retryrun(self, given: dict[str, str], sent: Any) -> Any:
        run = _one(self.runs, "run_id", given["run_id"])
        if run["state"] not in ("FAILED", "CANCELED"):
            raise ApiError(400, "only a failed run can be retried")
        run["state"] = "RUNNING"
        return {}

    def _createrecurringrun(self, given: dict[str, str], sent: Any) -> Any:
        self._check_run(sent)
        if len(sent.get("trigger", {}).get("cron_schedule", {}).get("cron", "").split()) != 6:
            raise ApiError(400, "cron needs six fields")
        if not 1 <= int(sent.get("max_concurrency", 0)) <= 10 or sent.get("mode") not in ("ENABLE", "DISABLE"):
            raise ApiError(400, "max_concurrency and mode are required")
        return _keep(self.recurring, "recurring_run_id", sent)

    def _listrecurringruns(self, given: dict[str, str], sent: Any) -> Any:
        self._check_namespace(given.get("namespace"))
        return _page("recurringRuns", self.recurring.values(), given)

    def _deleterecurringrun(self, given: dict[str, str], sent: Any) -> Any:
        if self.recurring.pop(given["recurring_run_id"], None) is None:
            raise ApiError(404, "no such recurring run")
        return {}


@lru_cache
def _package(text: bytes) -> dict[str, Any]:
    """An upload as KFP keeps it."""
    package, *platform = yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"pipeline_spec": package, "platform_spec": platform[0]} if platform else dict(package)


def _time(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _keep(kept: dict[str, dict[str, Any]], key: str, entry: dict[str, Any]) -> dict[str, Any]:
    made = {**entry, key: str(uuid.uuid4()), "created_at": _time(len(kept))}
    kept[made[key]] = made
    return made


def _one(kept: dict[str, dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    for entry in kept.values():
        if entry[key] == value:
            return entry
    raise ApiError(404, f"{key} {value}: not found")


def _unique(kept: dict[str, dict[str, Any]], key: str, value: str | None) -> None:
    if not value:
        raise ApiError(400, f"{key} is required")
    if any(entry.get(key) == value for entry in kept.values()):
        raise ApiError(409, f"{key} {value}: already exists")


def _page(key: str, entries: Iterator[dict[str, Any]] | Sequence[dict[str, Any]] | Any, given: dict[str, str]) -> Any:
    found = list(entries)
    for predicate in json.loads(given.get("filter") or "{}").get("predicates", []):
        value, name = predicate["string_value"], predicate["key"]
        if predicate["operation"] == "EQUALS":
            found = [entry for entry in found if entry.get(name) == value]
        else:
            assert predicate["operation"] == "IS_SUBSTRING"
            found = [entry for entry in found if value in entry.get(name, "")]
    if given.get("sort_by") == "created_at desc":
        found = list(reversed(found))
    return {key: found[: int(given.get("page_size", 10))], "total_size": len(found)}


def _form(kind: str, body: bytes, name: str) -> bytes:
    """A file of a multipart form."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    for part in body.split(b"--" + boundary[1].encode()) if boundary else ():
        head, _, content = part.partition(b"\r\n\r\n")
        if f'name="{name}"'.encode() in head:
            return content.removesuffix(b"\r\n")
    raise ApiError(400, f"form: {name} is missing")
