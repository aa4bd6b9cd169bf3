"""The page at the server's root."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re


@functools.cache
def page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which admits its own script and style and no others."""
    html = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def source(tag: str) -> str:
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inner)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "media-src blob:; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy
