"""A connection to Kubeflow Pipelines: requests whose mistakes are one line, and which make nothing twice.

A request that creates something may have arrived although its answer got lost, so it is looked up by its name before
it is sent again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ...components.common.compat.kfp import connect
from ...components.common.retry import Backoff, retry
from .credentials import credentials
from .errors import KfpError

T = TypeVar("T")
TIMEOUT_S = (5.0, 60.0)
"""To connect, and to read."""
_ATTEMPTS = 4
_BACKOFF = Backoff(first_s=1.0)


class KfpConnection:
    """Kubeflow Pipelines at one address, for one namespace."""

    def __init__(self, host: str, namespace: str, token: str | None = None):
        """Connect.

        Args:
            host: address of the API, as ``kfp.Client`` takes it; of a whole Kubeflow ``https://…/pipeline``.
            namespace: the team's; ignored by a KFP that serves only one.
            token: bearer token; None: see `credentials`.

        Raises:
            KfpError: it cannot be reached or refuses the token.
        """
        self.host, self.namespace = host.rstrip("/"), namespace
        if not self.host.startswith(("http://", "https://")):
            self.host = f"https://{self.host}"
        authority = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        self.apis = connect(self.host, namespace, authority, credentials(token), TIMEOUT_S, self._login_page)
        self.multi_user = bool(self.call("reach it", self.apis.health.healthz_service_get_healthz).multi_user)
        """Whether this KFP tells namespaces apart."""

    def _login_page(self) -> KfpError:
        text = (
            "answered with a web page: it wants a login (--token), or is not the address of the API (often …/pipeline)"
        )
        return KfpError(f"{self.host} {text}", 401)

    @property
    def scope(self) -> dict[str, str]:
        """The namespace, which a single-user KFP refuses to be told."""
        return {"namespace": self.namespace} if self.multi_user else {}

    def call(self, action: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function of the API; what goes wrong becomes one line, in which ``action`` names the purpose.

        Raises:
            KfpError: refused, or no answer.
        """
        import kfp_server_api
        import urllib3

        try:
            return function(*args, **kwargs)
        except kfp_server_api.ApiException as error:
            status, message = int(error.status or 0), _message(error)
            if status == 401:
                hint = "give another --token, token file or OIDC client (vthink submit --help)"
                raise KfpError(f"{self.host} does not know you (401 {message}): {hint}", 401) from error
            if status == 403:
                raise KfpError(f"you may not {action} in namespace {self.namespace} (403 {message})", 403) from error
            text = f"cannot {action}: {self.host} answered {status or 'nothing'} ({message})"
            raise KfpError(text, status or None) from error
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

        # 409: it arrived at an earlier attempt, or somebody else made the same.
        return self._retry(find_or_create, lambda error: error.is_temporary or error.status == 409)

    def repeat(self, action: str, function: Callable[..., T], *args: Any) -> T:
        """Call a function that does no harm twice, until it is answered."""
        return self._retry(lambda: self.call(action, function, *args), lambda error: error.is_temporary)

    def _retry(self, call: Callable[[], T], transient: Callable[[KfpError], bool]) -> T:
        return retry(
            call,
            transient=lambda error: isinstance(error, KfpError) and transient(error),
            attempts=_ATTEMPTS,
            backoff=_BACKOFF,
        )


def _message(error: Any) -> str:
    """What KFP says about an error, shortened to a line."""
    body = str(getattr(error, "body", "") or "")
    try:
        answer = json.loads(body)
        body = str(answer.get("message") or answer.get("error") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join(f"{error.reason or ''} {body}".split())[:200]
