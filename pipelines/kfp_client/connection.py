"""A connection to Kubeflow Pipelines: authentication, and requests whose mistakes are one line and make nothing twice.

A request that creates something may have arrived although its answer got lost, so it is looked up by its name before
it is sent again.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import kfp_server_api
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials

from ...components.common.compat.kfp import connect
from ...components.common.errors import UserError
from ...components.common.retry import Backoff, retry

T = TypeVar("T")
TIMEOUT_S = (5.0, 60.0)  # to connect, and to read
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"
"""Where Kubernetes puts a pod's own token for Kubeflow Pipelines, when the pod asks for one."""
_ATTEMPTS = 4
_BACKOFF = Backoff(first_s=1.0)


class KfpError(UserError):
    """Kubeflow Pipelines cannot be reached or refused something."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status; None: no answer."""

    @property
    def is_temporary(self) -> bool:
        """Whether it may go away by itself: no answer, too many requests, or a server in trouble."""
        return self.status in (None, 429, 500, 502, 503, 504)


class ClientCredentials:
    """Tokens from an OpenID Connect issuer by the client credentials grant (RFC 6749 §4.4), renewed in time."""

    def __init__(self, issuer: str, client_id: str, client_secret: str, scope: str = "openid"):
        self._issuer, self._client, self._scope = issuer.rstrip("/"), (client_id, client_secret), scope
        self._token, self._renew_at = "", 0.0

    def refresh_api_key_hook(self, config: Any) -> None:
        """Called by KFP's client before each request."""
        if time.monotonic() >= self._renew_at:
            self._token, lifetime_s = self._fetch()
            self._renew_at = time.monotonic() + max(0.0, lifetime_s - min(30.0, lifetime_s / 2))
        config.api_key["authorization"] = self._token

    def _fetch(self) -> tuple[str, float]:
        try:
            known = httpx.get(f"{self._issuer}/.well-known/openid-configuration", timeout=10).raise_for_status().json()
            form = {"grant_type": "client_credentials", "scope": self._scope}
            answer = httpx.post(known["token_endpoint"], data=form, auth=self._client, timeout=10).raise_for_status()
            grant = answer.json()
            return str(grant.get("id_token") or grant["access_token"]), float(grant.get("expires_in", 300))
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise KfpError(f"the OIDC issuer {self._issuer} answered {status}: check its client", status) from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise KfpError(f"no token from the OIDC issuer {self._issuer} ({type(error).__name__})") from error


def credentials(token: str | None) -> dict[str, Any]:
    """How `kfp.Client` shall authenticate, as its keyword arguments: the first of these that is there. ``token``; a
    file with a service account's token (``KF_PIPELINES_SA_TOKEN_PATH``, or where Kubernetes puts it), read again for
    each request; an OIDC client (``VTHINK_OIDC_ISSUER``, ``…_CLIENT_ID``, ``…_CLIENT_SECRET``)."""
    if token:
        return {"existing_token": token}
    path = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    if path and not Path(path).is_file():
        raise KfpError(f"KF_PIPELINES_SA_TOKEN_PATH={path}: no such file")
    if path or Path(TOKEN_FILE).is_file():
        return {"credentials": ServiceAccountTokenVolumeCredentials(path)}
    client = {name: os.environ.get(f"VTHINK_OIDC_{name.upper()}") for name in ("issuer", "client_id", "client_secret")}
    if not any(client.values()):
        return {}
    if lacking := [f"VTHINK_OIDC_{name.upper()}" for name, value in client.items() if not value]:
        raise KfpError(f"OIDC needs {' and '.join(lacking)} as well")
    scope = os.environ.get("VTHINK_OIDC_SCOPE", "openid")
    return {"credentials": ClientCredentials(**{k: v for k, v in client.items() if v}, scope=scope)}


class KfpConnection:
    """Kubeflow Pipelines at one address, for one namespace."""

    def __init__(self, host: str, namespace: str, token: str | None = None):
        """Connect, or raise a `KfpError`.

        Args:
            host: address of the API, as ``kfp.Client`` takes it; of a whole Kubeflow ``https://…/pipeline``.
            namespace: the team's; ignored by a KFP that serves only one.
            token: bearer token; None: see `credentials`."""
        self.host, self.namespace = host.rstrip("/"), namespace
        if not self.host.startswith(("http://", "https://")):
            self.host = f"https://{self.host}"
        authority = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        page = (
            "answered with a web page: it wants a login (--token), or is not the address of the API (often …/pipeline)"
        )
        login_page = partial(KfpError, f"{self.host} {page}", 401)
        self.apis = connect(self.host, namespace, authority, credentials(token), TIMEOUT_S, login_page)
        self.multi_user = bool(self.call("reach it", self.apis.health.healthz_service_get_healthz).multi_user)
        """Whether this KFP tells namespaces apart."""

    @property
    def scope(self) -> dict[str, str]:
        """The namespace, which a single-user KFP refuses to be told."""
        return {"namespace": self.namespace} if self.multi_user else {}

    def call(self, action: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function of the API; what goes wrong is a `KfpError` of one line, naming the ``action``."""
        try:
            return function(*args, **kwargs)
        except kfp_server_api.ApiException as error:
            status, message = int(error.status or 0) or None, _message(error)
            text = f"cannot {action}: {self.host} answered {status or 'nothing'} ({message})"
            if status == 401:
                hint = "give another --token, token file or OIDC client (vthink submit --help)"
                text = f"{self.host} does not know you (401 {message}): {hint}"
            elif status == 403:
                text = f"you may not {action} in namespace {self.namespace} (403 {message})"
            raise KfpError(text, status) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2][:200]
            text = f"cannot reach Kubeflow Pipelines at {self.host} ({reason}); is the address right?"
            raise KfpError(text) from error

    def create(self, action: str, create: Callable[[], T], find: Callable[[], T | None]) -> T:
        """Create something under a name of its own, once, although answers may get lost; ``find`` looks it up."""
        sent = False

        def find_or_create() -> T:
            nonlocal sent
            if sent and (existing := self.call(action, find)) is not None:
                return existing
            sent = True
            return self.call(action, create)

        return _retry(find_or_create, 409)  # it arrived at an earlier attempt, or somebody else made the same

    def ensure(self, what: str, create: Callable[[], T], find: Callable[[], T | None]) -> T:
        """What ``find`` finds, which is created where it finds none."""
        existing = self.call(f"look for {what}", find)
        return self.create(f"create {what}", create, find) if existing is None else existing

    def repeat(self, action: str, function: Callable[..., T], *args: Any) -> T:
        """Call a function that does no harm twice, until it is answered."""
        return _retry(lambda: self.call(action, function, *args))


def _retry(call: Callable[[], T], *statuses: int) -> T:
    def transient(error: Exception) -> bool:
        return isinstance(error, KfpError) and (error.is_temporary or error.status in statuses)

    return retry(call, transient=transient, attempts=_ATTEMPTS, backoff=_BACKOFF)


def _message(error: Any) -> str:
    """What KFP says about an error, shortened to a line."""
    body = str(getattr(error, "body", "") or "")
    try:
        answer = json.loads(body)
        body = str(answer.get("message") or answer.get("error") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join(f"{error.reason or ''} {body}".split())[:200]
