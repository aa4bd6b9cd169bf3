"""The server's routes, apart from KServe's own: chat completions, the list of models, and the page at ``/``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..config import ServerConfig
from .chat import ChatCompletions
from .page import page

CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")
"""OpenAI's and vLLM's path, and that of KServe's Hugging Face runtime."""


def build_routes(chat: ChatCompletions, config: ServerConfig, about: Mapping[str, Any]) -> list[BaseRoute]:
    """All routes. ``about`` is what `GET /v1/models` says about the model beyond its name."""
    created = int(time.time())

    async def models(_: Request) -> Response:
        card = {"id": config.model_name, "object": "model", "created": created, "owned_by": "vthink"}
        # `models` is KServe's own answer at this path.
        return JSONResponse({"object": "list", "data": [{**card, **about}], "models": [config.model_name]})

    async def index(_: Request) -> Response:
        html, policy = page()
        return HTMLResponse(
            html,
            headers={
                "content-security-policy": policy,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "cache-control": "no-cache",
            },
        )

    return [
        *(Route(path, chat, methods=["POST"]) for path in CHAT_PATHS),
        Route("/v1/models", models, methods=["GET"]),
        Route("/openai/v1/models", models, methods=["GET"]),
        Route("/", index, methods=["GET"]),
    ]
