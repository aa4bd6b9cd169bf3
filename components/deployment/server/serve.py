"""The server of one model: KServe's `ModelServer` with the OpenAI chat route and a page, and a guard around all.

KServe brings health, metrics and graceful stop; its own OpenAI routes need vLLM and drop media parts. Run it with
``python -m vthink.components.deployment.server.serve --model FOLDER|s3://…/ --port 8080``.
"""

import argparse
import base64
import hashlib
import hmac
import html
import importlib.resources
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ...common.compat.kserve import log_like_kserve, serve_routes
from ...common.errors import UserError
from ...common.launch.process import end_with_owner
from ...common.storage.config import StorageConfig
from ...common.storage.s3 import Storage
from ..ask import API_KEY
from ..config import ServerConfig
from .chat import ChatCompletions
from .connections import limited
from .engine import ServedModel
from .exchange import ApiError, HttpExchange, Json

log = logging.getLogger(f"{__package__}.serve")  # __name__ is __main__ when run as a program

CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")
"""OpenAI's and vLLM's path, and that of KServe's Hugging Face runtime."""

OPEN_PATHS = re.compile(r"/|/metrics|/v2/health/(live|ready)|/v2/models/[^/]+/ready")
"""What a server with a key shows without it: the page, which asks for the key, probes, and what Prometheus reads."""


def page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which admits its own script and style and no others."""
    text = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")

    def source(tag: str) -> str:
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inner)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "media-src blob:; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def api_description(config: ServerConfig, host: str) -> str:
    """The page at ``/docs``: what can be asked, with examples for this server. ``host``: as the caller named it."""
    text = importlib.resources.files(__package__).joinpath("docs.html").read_text("utf-8")
    return text.replace("MODEL", html.escape(config.model_name)).replace("URL/", f"http://{html.escape(host)}/")


def build_routes(chat: ChatCompletions, config: ServerConfig, about: Json) -> list[BaseRoute]:
    """All routes. ``about`` is what `GET /v1/models` says about the model beyond its name."""
    card = {"id": config.model_name, "object": "model", "created": int(time.time()), "owned_by": "vthink", **about}
    listed = {"object": "list", "data": [card], "models": [config.model_name]}  # `models` is KServe's own answer
    models, (text, policy) = JSONResponse(listed), page()
    model = JSONResponse({**card, "name": config.model_name, "ready": True})  # the last two are KServe's

    async def other_model(request: Request) -> Response:
        name = str(request.path_params["name"])[:80]
        words = f"the model '{name}' is not served here; this server has '{config.model_name}'"
        return JSONResponse(ApiError(404, words, "model", "model_not_found").body, 404)

    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}

    async def docs(request: Request) -> Response:
        shown = api_description(config, request.headers.get("host", "127.0.0.1"))
        plain = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
        return HTMLResponse(shown, headers=headers | {"content-security-policy": plain})

    index = HTMLResponse(text, headers=headers | {"referrer-policy": "no-referrer", "cache-control": "no-cache"})
    answers: dict[str, Response] = {"/": index}
    for base in ("/v1/models", "/openai/v1/models"):
        answers |= {base: models, f"{base}/{config.model_name}": model}
    return [
        *(Route(path, chat, methods=["POST"]) for path in CHAT_PATHS),
        *(Route(path, answer, methods=["GET"]) for path, answer in answers.items()),
        Route("/docs", docs, methods=["GET"]),
        *(Route(f"{base}/v1/models/{{name}}", other_model, methods=["GET"]) for base in ("", "/openai")),
    ]


class Guard:
    """Middleware for every route: only what is meant to be asked from outside gets through. KServe also has routes that
    load and unload models and take inputs without a limit. On the loopback address the ``Host`` must be a name of this
    machine: a web page whose name server points to it (DNS rebinding) is refused."""

    def __init__(self, app: ASGIApp, config: ServerConfig, api_key: str | None = None) -> None:
        """Args: ``api_key``: bearer token asked for everywhere but at `OPEN_PATHS`; None: none."""
        self._app = app
        self._key = api_key.encode("latin-1", "replace") if api_key else None
        self._hosts = {"localhost", "127.0.0.1", "[::1]", config.host} if config.loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await HttpExchange(scope, receive, send).fail(refusal)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers, method, path = dict(scope["headers"]), scope["method"], scope["path"]
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            return ApiError(400, "the request has more than one Host header")
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1").lower())
        if self._hosts is not None and host not in self._hosts:
            return ApiError(403, f"this server answers to localhost only, not to '{host[:80]}'")
        if method not in ("GET", "HEAD", "POST"):
            return ApiError(405, f"method {method[:16]} is not allowed", headers={"allow": "GET, HEAD, POST"})
        if method == "POST" and path not in CHAT_PATHS:
            return ApiError(404, f"nothing is answered there; ask at POST {CHAT_PATHS[0]}")
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        right = self._key is None or (scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key))
        if not right and not OPEN_PATHS.fullmatch(path):
            words = "this server asks for a key: send the header Authorization: Bearer KEY"
            return ApiError(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return None


def _check_address(config: ServerConfig) -> None:
    """See that the address can be listened on, before a model is loaded for minutes."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            where = f"{config.host} port {config.port}"
            raise UserError(f"cannot listen on {where}: {error.strerror}; choose another with --port") from error


def _serve(model: ServedModel, config: ServerConfig) -> None:
    log_like_kserve(__package__ or "")
    chat = ChatCompletions(model, config)
    own = config.model_dump(include={"max_video_bytes", "max_duration_s", "max_new_tokens"})
    card = model.loaded.card
    own |= {"prompt": card.model_dump(mode="json")["prompt"], "lineage": card.lineage.known()}
    shown = f"[{config.host}]" if ":" in config.host else config.host
    log.info("serving %s at http://%s:%d", model.loaded.folder, shown, config.port)
    try:
        serve_routes(
            config.model_name,
            build_routes(chat, config, {"max_model_len": model.max_model_len, "vthink": own}),
            [Middleware(Guard, config=config, api_key=os.environ.get(API_KEY))],
            host=config.host, port=config.port, grace_period_s=config.grace_period_s,
            predict_hint=f"ask at POST {CHAT_PATHS[0]}", protocol=limited(config),
        )  # fmt: skip
    finally:
        chat.close()
        model.close()


def run_server(
    model: str, config: ServerConfig, storage: StorageConfig | None = None, cache_dir: Path | None = None
) -> None:
    """Fetch, load and serve a model until the process is told to stop (SIGTERM, SIGINT).

    Must be called in the main thread, once per process, as KServe's application is one per process. With
    ``VTHINK_API_KEY`` set, questions need that key as bearer token. UserError: the address or the model cannot be had.

    Args:
        model: a model folder, or its ``s3://…/`` prefix in ``storage``.
        config: where to listen, and the limits.
        storage: the store of an ``s3://…/`` model.
        cache_dir: where a downloaded model is kept; None: a temporary folder."""
    _check_address(config)
    from ...common.model.load import load_model
    from ...common.model.store import fetch_model

    with tempfile.TemporaryDirectory(prefix="vthink-model-") as scratch:
        folder = Path(model)
        if model.startswith("s3://"):
            folder = fetch_model(Storage(storage or StorageConfig()), model, cache_dir or Path(scratch))
        loaded = load_model(folder, config.dtype, config.attention)
        _serve(ServedModel(loaded, config.max_batch, config.prefix_cache_bytes, config.cache_s), config)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name if __spec__ else __package__}", allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="model folder, or its s3://…/ prefix")
    add("--host", help="address to listen on (default 127.0.0.1)")
    add("--port", type=int, help="TCP port (default 8080)")
    add("--config", default="{}", help="the server's section of the configuration, as JSON")
    add("--storage", default="{}", help="the storage section of the configuration, as JSON")
    add("--cache-dir", type=Path, help="where a downloaded model is kept")
    options = parser.parse_args(arguments)
    end_with_owner()
    # Until KServe takes the signals over, one ends the process as usual, with its cleanup.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = ServerConfig.load(options.config, "--config")
        changes = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
        config = ServerConfig.load(config.model_dump() | changes, "--host/--port")
        run_server(options.model, config, StorageConfig.load(options.storage, "--storage"), options.cache_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
