"""The server's routes, apart from KServe's own: chat completions, the list of models, and the page at ``/``.

A request is admitted (or refused with 429), read (413, 408), checked (400), its media fetched and decoded in a worker
process that can be killed, and then answered by the one thread that runs the model; all of it within one deadline
(504). Each step has a bound, so that no request can make the server read, decode or generate without end, and a
request whose client has gone stops. Nothing here imports torch: the model is behind `Engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from ...common.video.clip import Clip, DecodeError
from ...common.video.codec import stored
from ...common.video.config import VideoConfig
from ...common.video.workers import Decoder
from ..config import ServerConfig
from .errors import ApiError
from .exchange import _DisconnectedError, _Exchange
from .media import MediaReader, shortened
from .page import page
from .reply import Generated, Reply
from .request import Ask, parse_request

log = logging.getLogger(__name__)


CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")
"""OpenAI's and vLLM's path, and that of KServe's Hugging Face runtime."""


_REQUESTS = Counter("vthink_requests_total", "Chat requests, by HTTP status", ["status"])


_IN_FLIGHT = Gauge("vthink_requests_in_flight", "Chat requests being read, decoded, waiting or answered")


_SECONDS = Histogram("vthink_request_seconds", "Seconds a chat request took, by part", ["part"])


_TOKENS = Counter("vthink_generated_tokens_total", "Tokens generated")


class Engine(Protocol):
    """The model in service."""

    fingerprint: str
    """Of the model, for ``system_fingerprint``."""
    system: str | None
    """System message of the model's prompt template."""
    video: VideoConfig
    """How the model's videos become frames."""

    def stream(self, ask: Ask, clip: Clip) -> Iterator[str | Generated]:
        """Yield the answer's text as it grows, then the whole. Closing the iterator stops the generation."""


class ChatCompletions:
    """The chat route, as an ASGI application."""

    def __init__(self, engine: Engine, config: ServerConfig, media: MediaReader | None = None) -> None:
        """Starts the decoder's workers; `close` ends them."""
        self._engine, self._config = engine, config
        self._media = media or MediaReader(config)
        # Limits only: how frames are chosen and resized stays the model's.
        video = engine.video
        self._video = video.model_copy(
            update={
                "max_duration_s": min(video.max_duration_s, config.max_duration_s),
                "max_file_bytes": min(video.max_file_bytes, config.max_video_bytes),
                "decode_timeout_s": min(video.decode_timeout_s, config.request_timeout_s),
            }
        )
        self._decoder = Decoder(self._video, config.decoders)
        self._decoding = ThreadPoolExecutor(config.decoders, "decode")
        self._generating = ThreadPoolExecutor(1, "generate")
        self._in_flight = 0

    def close(self) -> None:
        """End the workers."""
        self._generating.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, with a clear status."""
        exchange = _Exchange(scope, receive, send)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._admit(exchange)
        except ApiError as error:
            await exchange.fail(error)
        except TimeoutError:
            limit = self._config.request_timeout_s
            await exchange.fail(ApiError(504, f"no answer within {limit:g} s; ask about a shorter video or for less"))
        except _DisconnectedError:
            exchange.status = 499  # nginx's number for it
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("request failed (incident %s)", incident)
            await exchange.fail(ApiError(500, f"internal error; the server's log has it as incident {incident}"))
        finally:
            _REQUESTS.labels(str(exchange.status or 500)).inc()
            _SECONDS.labels("total").observe(time.monotonic() - started)

    async def _admit(self, exchange: _Exchange) -> None:
        config = self._config
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also keeps web pages of other origins from sending requests to a server on this machine.
            await exchange.drain(config.max_request_bytes)
            raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        if self._in_flight >= config.max_concurrency:
            await exchange.drain(config.max_request_bytes)
            raise ApiError(
                429,
                f"the server is busy with {config.max_concurrency} requests; try again soon",
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        self._in_flight += 1
        _IN_FLIGHT.inc()
        try:
            await self._answer(exchange)
        finally:
            self._in_flight -= 1
            _IN_FLIGHT.dec()

    async def _answer(self, exchange: _Exchange) -> None:
        config, loop = self._config, asyncio.get_running_loop()
        started = time.monotonic()
        body = await exchange.body(config.max_request_bytes, config.upload_timeout_s)
        ask = await asyncio.to_thread(
            parse_request,
            body,
            model_name=config.model_name,
            system=self._engine.system,
            max_new_tokens=config.max_new_tokens,
            max_question_chars=config.max_question_chars,
        )
        data = await self._media.read(ask.media_url)
        del body
        ask = dataclasses.replace(ask, media_url=shortened(ask.media_url))  # a video in base64 need not wait along
        _SECONDS.labels("receive").observe(time.monotonic() - started)
        started = time.monotonic()
        clip = await loop.run_in_executor(self._decoding, self._decode, data, ask)
        _SECONDS.labels("decode").observe(time.monotonic() - started)
        del data
        started = time.monotonic()
        reply = Reply(ask, clip, config.model_name, self._engine.fingerprint)
        generated: Generated | None = None
        async with self._generation(exchange, ask, clip) as items:
            while generated is None:
                item = await items.get()
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, Generated):
                    generated = item
                if ask.stream and exchange.status is None:
                    await exchange.event(reply.first_chunk())
                if ask.stream and isinstance(item, str):
                    await exchange.event(reply.delta_chunk(item))
        if ask.stream:
            for chunk in reply.last_chunks(generated):
                await exchange.event(chunk)
            await exchange.event(None, last=True)
        else:
            await exchange.json(200, reply.whole(generated))
        seconds = time.monotonic() - started
        _SECONDS.labels("generate").observe(seconds)
        _TOKENS.inc(len(generated.token_ids))
        log.info(
            "answered: %s of %.1f s, %d frames, %d prompt and %d answer tokens, %.2f s",
            clip.kind,
            clip.duration_s,
            len(clip.frames),
            len(generated.prompt_token_ids),
            len(generated.token_ids),
            seconds,
        )

    def _decode(self, data: bytes, ask: Ask) -> Clip:
        """The frames the model will see: decoded and stored exactly as data preparation does."""
        with tempfile.TemporaryDirectory(prefix="vthink-serve-") as folder:
            path = Path(folder) / "media"
            path.write_bytes(data)
            try:
                clip = self._decoder.read(path, kind=ask.media_kind, start_s=ask.start_s, end_s=ask.end_s)
            except DecodeError as error:
                reason = str(error).replace(str(path), "the file").removeprefix("the file: ")
                raise ApiError(400, f"the {ask.media_kind} cannot be read: {reason}", param="messages") from error
        return stored(clip, self._video)

    @contextlib.asynccontextmanager
    async def _generation(self, exchange: _Exchange, ask: Ask, clip: Clip) -> Any:
        """A queue of what the engine yields, and of the exception that ended it; stops the engine on leaving."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | Generated | Exception] = asyncio.Queue()
        stop = threading.Event()

        def put(item: str | Generated | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
                loop.call_soon_threadsafe(items.put_nowait, item)

        def generate() -> None:
            try:
                with contextlib.closing(self._engine.stream(ask, clip)) as stream:  # type: ignore[type-var]
                    for item in stream:
                        if stop.is_set():
                            return
                        put(item)
            except Exception as error:
                put(error)

        async def watch() -> None:
            await exchange.gone()
            put(_DisconnectedError())

        running = loop.run_in_executor(self._generating, generate)
        watching = asyncio.create_task(watch())
        try:
            yield items
        finally:
            stop.set()
            running.cancel()
            watching.cancel()


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
