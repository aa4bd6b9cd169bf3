"""The server of one model: KServe's `ModelServer` with the OpenAI chat route and a page.

KServe brings health, metrics and graceful stop. Its own OpenAI routes need vLLM and drop media parts, so the chat
route is ours (`chat.py`).

Run it with ``python -m vthink.components.deployment.server.serve --model FOLDER|s3://…/ --port 8080``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from ...common.compat.kserve import log_like_kserve, serve_routes
from ...common.errors import UserError
from ...common.launch.process import end_with_owner
from ...common.storage.config import StorageConfig
from ...common.storage.s3 import Storage
from ..ask import API_KEY
from ..config import ServerConfig
from .chat import ChatCompletions
from .guard import Guard
from .model import TorchModel
from .routes import CHAT_PATHS, build_routes

if TYPE_CHECKING:
    from ...common.model.load import LoadedModel

log = logging.getLogger(f"{__package__}.serve")  # __name__ is __main__ when run as a program


def check_address(config: ServerConfig) -> None:
    """See that the address can be listened on, before a model is loaded for minutes.

    Raises:
        UserError: it is taken, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another with --port"
            ) from error


def serve(loaded: LoadedModel, config: ServerConfig) -> None:
    """Serve a loaded model until the process is told to stop (SIGTERM, SIGINT).

    With ``VTHINK_API_KEY`` set, questions need that key as bearer token.

    Must be called in the main thread, once per process: KServe's application is one per process.
    """
    log_like_kserve(__package__ or "")
    model = TorchModel(loaded)
    chat = ChatCompletions(model, config)
    about: dict[str, Any] = {
        "max_model_len": model.max_model_len,
        "vthink": {
            "prompt": loaded.card.model_dump(mode="json")["prompt"],
            "lineage": model.lineage,
            "max_video_bytes": config.max_video_bytes,
            "max_duration_s": config.max_duration_s,
            "max_new_tokens": config.max_new_tokens,
        },
    }
    shown = f"[{config.host}]" if ":" in config.host else config.host
    log.info("serving %s at http://%s:%d", loaded.folder, shown, config.port)
    try:
        serve_routes(
            config.model_name,
            build_routes(chat, config, about),
            [Middleware(Guard, config=config, api_key=os.environ.get(API_KEY))],
            host=config.host,
            port=config.port,
            grace_period_s=config.grace_period_s,
            predict_hint=f"ask at POST {CHAT_PATHS[0]}",
        )
    finally:
        chat.close()


def run_server(
    model: str, config: ServerConfig, storage: StorageConfig | None = None, cache_dir: Path | None = None
) -> None:
    """Fetch, load and serve a model; returns when the process was told to stop.

    Args:
        model: a model folder, or its ``s3://…/`` prefix.
        config: where to listen, and the limits.
        storage: the store of an ``s3://…/`` model.
        cache_dir: where a downloaded model is kept; None: a temporary folder.

    Raises:
        UserError: the address or the model cannot be had, in one line.
    """
    check_address(config)
    from ...common.model.load import load_model
    from ...common.model.store import fetch_model

    with tempfile.TemporaryDirectory(prefix="vthink-model-") as scratch:
        folder = Path(model)
        if model.startswith("s3://"):
            folder = fetch_model(Storage(storage or StorageConfig()), model, cache_dir or Path(scratch))
        serve(load_model(folder, config.dtype, config.attention), config)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name if __spec__ else __package__}", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="model folder, or its s3://…/ prefix")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (default 8080)")
    parser.add_argument("--config", default="{}", help="the server's section of the configuration, as JSON")
    parser.add_argument("--storage", default="{}", help="the storage section of the configuration, as JSON")
    parser.add_argument("--cache-dir", type=Path, help="where a downloaded model is kept")
    options = parser.parse_args(arguments)
    end_with_owner()
    # Until KServe takes the signals over, one ends the process as usual, with its cleanup.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = ServerConfig.load(options.config, "--config")
        changes = {k: v for k, v in {"host": options.host, "port": options.port}.items() if v is not None}
        config = ServerConfig.load(config.model_dump() | changes, "--host/--port")
        run_server(options.model, config, StorageConfig.load(options.storage, "--storage"), options.cache_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
