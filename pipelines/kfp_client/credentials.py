"""How to authenticate to Kubeflow Pipelines."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .errors import KfpError

TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"
"""Where Kubernetes puts a pod's own token for Kubeflow Pipelines, when the pod asks for one."""


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
        import httpx

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
    """How `kfp.Client` shall authenticate, as its keyword arguments: the first of these that is there.

    ``token``; a file with a service account's token (``KF_PIPELINES_SA_TOKEN_PATH``, or where Kubernetes puts it),
    read again for each request; an OIDC client (``VTHINK_OIDC_ISSUER``, ``…_CLIENT_ID``, ``…_CLIENT_SECRET``).
    """
    if token:
        return {"existing_token": token}
    path = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    if path and not Path(path).is_file():
        raise KfpError(f"KF_PIPELINES_SA_TOKEN_PATH={path}: no such file")
    if path or Path(TOKEN_FILE).is_file():
        from kfp.client import ServiceAccountTokenVolumeCredentials

        return {"credentials": ServiceAccountTokenVolumeCredentials(path)}
    client = {name: os.environ.get(f"VTHINK_OIDC_{name.upper()}") for name in ("issuer", "client_id", "client_secret")}
    if any(client.values()):
        if lacking := [f"VTHINK_OIDC_{name.upper()}" for name, value in client.items() if not value]:
            raise KfpError(f"OIDC needs {' and '.join(lacking)} as well")
        scope = os.environ.get("VTHINK_OIDC_SCOPE", "openid")
        return {"credentials": ClientCredentials(**{k: v for k, v in client.items() if v}, scope=scope)}
    return {}
