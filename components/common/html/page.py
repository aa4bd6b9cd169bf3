"""A whole HTML page."""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup

Tone = Literal["plain", "good", "bad", "warn", "accent"]
_COMPONENTS = Path(__file__).resolve().parents[2]


@cache
def _environment() -> jinja2.Environment:
    loader, strict = jinja2.FileSystemLoader(_COMPONENTS), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = data_uri
    environment.globals["number"] = number
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render ``<stage>/<name>.jinja`` with every value escaped unless it is `Markup`."""
    return Markup(_environment().get_template(template).render(**values))


def template_block(name: str, **values: Any) -> Markup:
    """Render a macro of ``blocks.jinja``."""
    blocks: Any = _environment().get_template("common/html/blocks.jinja").module
    return Markup(getattr(blocks, name)(**values))


def number(value: Any) -> str:
    """A number for a person: at most four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"


def page(
    title: str,
    sections: Iterable[tuple[str, Markup | str]],
    subtitle: Markup | str = "",
    script: str | None = None,
    style: str | None = None,
) -> str:
    """A whole HTML document: title and one line below it; sections, each a heading (or "") with its contents.
    ``script`` and ``style`` are files, ``<stage>/<name>.js`` and ``.css``, that the page needs besides its own."""
    style = _source("common/html/page.css") + (_source(style) if style else "")
    script = _source("common/html/page.js") + (_source(script) if script else "")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = {"sections": list(sections), "style": Markup(style), "script": Markup(script), "policy": policy}
    return render("common/html/page.jinja", title=title, subtitle=subtitle, **parts)


@cache
def _source(name: str) -> str:
    return (_COMPONENTS / name).read_text()


def paragraph(text: Markup | str, tone: Tone = "plain") -> Markup:
    """A paragraph."""
    return Markup('<p class="{}">{}</p>').format(tone, text)


def chip(text: str, tone: Tone = "plain") -> Markup:
    """A small label."""
    return Markup('<span class="chip {}">{}</span>').format(tone, text)


def joined(blocks: Iterable[Markup]) -> Markup:
    """Blocks one after the other."""
    return Markup("\n").join(blocks)


def data_uri(picture: bytes) -> str:
    """A JPEG or PNG as a ``data:`` URI."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def embedded_json(identifier: str, value: Any) -> Markup:
    """Data for the page's script, gzip in base64, so that pages stay small and no text in it can leave."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    packed = base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
    return Markup('<script type="application/octet-stream" id="{}">{}</script>').format(identifier, Markup(packed))
