"""How a server of OpenAI chat completions is reached, and how patiently."""

import ipaddress
import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ..config import Section

_CLUSTER_SUFFIXES = (".svc", ".local", ".internal", ".localhost")


class ChatEndpointConfig(Section):
    """A server of OpenAI chat completions, and how patiently it is asked."""

    url: str | None = None
    """Base URL, such as ``http://127.0.0.1:8000`` or ``https://host/api/v1``; where its path names no version, ``/v1``
    is added."""
    model: str = ""
    """Name of the model, as the server knows it."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the API key; null: none is sent."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Calls under way at once."""
    timeout_s: float = Field(default=300.0, gt=0)
    """A call that takes longer is given up and repeated; of a streamed reply, the longest silence."""
    retries: int = Field(default=6, ge=0, le=100)
    """How often a call is repeated when the server fails, is busy (HTTP 429) or cannot be reached."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Longest wait before the first repetition; it doubles each time, and the actual wait is random below it."""
    max_backoff_s: float = Field(default=60.0, gt=0)
    """Longest such wait. A server that asks for a longer one (Retry-After) gets it, up to ten times this."""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if self.url is not None:
            parts = urlsplit(self.url)
            _ = parts.port  # raises where it is none
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(f"url must look like http://127.0.0.1:8000/v1 (got {self.url!r})")
            if parts.username or parts.password:
                raise ValueError("url must not hold a name or password; keys come from api_key_env")
        return self

    @property
    def base_url(self) -> str:
        """The URL with the version of the API in its path, without a slash at the end; empty without ``url``."""
        url = (self.url or "").rstrip("/")
        return url if not url or re.search(r"/v\d", urlsplit(url).path) else f"{url}/v1"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_carry_key(url: str) -> bool:
    """Whether a key may be sent to a URL: encrypted, or within this machine, a private network or a cluster."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme == "https" or is_loopback(url):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        service = host.split(".")[2:3] == ["svc"]  # in another namespace of the cluster
        return "." not in host or host.endswith(_CLUSTER_SUFFIXES) or service
