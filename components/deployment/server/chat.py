"""The chat route: from an HTTP request to a streamed or whole answer of the model in service.

A request is read (413, 408, 429), checked (400), waits for its turn (429), has its media fetched and decoded in a
worker process that can be killed, and is then answered in the running batch; all of it within one deadline (504). Each
step has a bound, and stops when its client has gone. Nothing here imports torch before it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Iterator
from typing import Protocol, Self, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...common.video.clip import Clip
from ...common.video.config import VideoConfig
from ..config import ServerConfig
from .admission import Admission
from .clips import ClipKey, ClipReader
from .completion import CompletionWriter, GeneratedAnswer, Piece
from .engine import Deliver
from .exchange import ApiError, HttpExchange, Upload, UploadBudget
from .media import MediaReader
from .payload import Media
from .request import ChatQuestion, parse_request

log = logging.getLogger(__name__)
T = TypeVar("T")

_REQUESTS = Counter("vthink_requests_total", "Chat requests, by HTTP status", ["status"])
_REFUSED = Counter(
    "vthink_requests_refused_total", "Chat requests that were refused, by status and code", ["status", "code"]
)
_IN_FLIGHT = Gauge("vthink_requests_in_flight", "Chat requests being read, decoded, waiting or answered")
_SECONDS = Histogram("vthink_request_seconds", "Seconds a chat request took, by part", ["part"])
WARNING = "x-vthink-warning"  # header with what of a request had no effect


@contextlib.contextmanager
def _timed(part: str) -> Iterator[None]:
    """Record how long a part of a request took that did not fail."""
    started = time.monotonic()
    yield
    _SECONDS.labels(part).observe(time.monotonic() - started)


class Submitted(Protocol):
    """A question that is being answered."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What of it had no effect."""

    def cancel(self) -> None:
        """Stop: nobody waits any more."""


class Model(Protocol):
    """What answers (`engine.ServedModel`)."""

    fingerprint: str
    video: VideoConfig

    def submit(
        self, question: ChatQuestion, clip: Clip | None, clip_key: ClipKey | None, deliver: Deliver
    ) -> Submitted:
        """Begin to answer; ``deliver`` is called from another thread."""


class ChatCompletions:
    """The chat route, as an ASGI application."""

    def __init__(self, model: Model, config: ServerConfig) -> None:
        """Starts the decoder's workers; `close` ends them."""
        self._model, self._config, video = model, config, model.video
        # Limits only: how frames are chosen and resized stays the model's.
        limits = {
            "max_duration_s": min(video.max_duration_s, config.max_duration_s),
            "max_file_bytes": min(video.max_file_bytes, config.max_video_bytes),
            "decode_timeout_s": min(video.decode_timeout_s, config.request_timeout_s),
        }
        self._media, self._uploads = (
            MediaReader(config),
            UploadBudget(max(config.max_uploads_bytes, config.max_request_bytes)),
        )
        self._clips = ClipReader(
            video.model_copy(update=limits), config.decoders, config.clip_cache_bytes, config.cache_s
        )
        self._admission = Admission(config.max_concurrency, config.max_waiting, config.max_wait_s)

    def close(self) -> None:
        """End the workers."""
        self._clips.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, with a clear status."""
        exchange = HttpExchange(scope, receive, send)
        started, limit_s = time.monotonic(), self._config.request_timeout_s
        try:
            with _IN_FLIGHT.track_inprogress():
                async with asyncio.timeout(limit_s):
                    await self._answer(exchange)
        except ApiError as error:
            _REFUSED.labels(str(error.status), error.code or "").inc()
            await exchange.fail(error)
        except TimeoutError:
            await exchange.fail(ApiError(504, f"no answer within {limit_s:g} s; ask about a shorter video or for less"))
        except ClientDisconnect:
            exchange.status = 499  # nginx's number for it
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("request failed (incident %s)", incident)
            await exchange.fail(ApiError(500, f"internal error; the server's log has it as incident {incident}"))
        finally:
            _REQUESTS.labels(str(exchange.status or 500)).inc()
            _SECONDS.labels("total").observe(time.monotonic() - started)

    async def _answer(self, exchange: HttpExchange) -> None:
        config = self._config
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also keeps web pages of other origins from sending requests to a server on this machine.
            await exchange.drain(config.max_request_bytes)
            raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        upload = Upload(self._uploads)
        try:
            with _timed("receive"):
                await exchange.body(config.max_request_bytes, config.upload_timeout_s, upload)
            question, media = await asyncio.to_thread(parse_request, upload.data, config)
            # What one key's requests brought is not another's: frames and prompts are kept apart by it.
            key = exchange.headers.get("authorization", "")
            scope = hashlib.sha256(key.encode()).hexdigest() if key else ""
            with _Watch(exchange) as watch:
                queued = time.monotonic()
                async with self._admission.slot(scope or exchange.peer, watch.gone):
                    _SECONDS.labels("queue").observe(time.monotonic() - queued)
                    shown = None
                    if media is not None:
                        read, media = self._read(media, question, scope), None
                        with _timed("decode"):
                            shown = await watch.unless_gone(read)
                    upload.free()
                    with _timed("generate"):
                        await self._write(exchange, question, shown, watch)
        finally:
            upload.free()

    async def _read(self, media: Media, question: ChatQuestion, scope: str) -> tuple[Clip, ClipKey]:
        assert question.media_kind is not None
        data = await self._media.read(media)
        del media
        return await self._clips.read(data, scope, question.media_kind, question.start_s, question.end_s)

    async def _write(
        self, exchange: HttpExchange, question: ChatQuestion, shown: tuple[Clip, ClipKey] | None, watch: _Watch
    ) -> None:
        clip, clip_key = shown or (None, None)
        writer = CompletionWriter(question, clip, self._config.model_name, self._model.fingerprint)
        loop, started = asyncio.get_running_loop(), time.monotonic()
        items: asyncio.Queue[Piece | GeneratedAnswer | Exception] = asyncio.Queue()

        def deliver(item: Piece | GeneratedAnswer | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
                loop.call_soon_threadsafe(items.put_nowait, item)

        job = await asyncio.to_thread(self._model.submit, question, clip, clip_key, deliver)
        if job.notes:
            exchange.response_headers[WARNING] = "; ".join(job.notes)
        try:
            answer, first = None, True
            while answer is None:
                item = items.get_nowait() if items.qsize() else await watch.unless_gone(items.get())
                if first:
                    _SECONDS.labels("first_token").observe(time.monotonic() - started)
                    first = False
                if isinstance(item, Exception):
                    raise item
                if question.stream and exchange.status is None:
                    for chunk in writer.first_chunks():
                        await exchange.event(chunk)
                if isinstance(item, GeneratedAnswer):
                    answer = item
                elif question.stream and (piece := writer.piece(item)) is not None:
                    await exchange.event(piece)
        finally:
            job.cancel()
        if question.stream:
            for chunk in writer.last_chunks(answer):
                await exchange.event(chunk)
            await exchange.event(None, last=True)
        else:
            await exchange.json(200, writer.whole(answer))
        what = (
            f"{clip.kind} of {clip.duration_s:.1f} s, {len(clip.frames)} frames" if clip is not None else "words alone"
        )
        known, usage = answer.cached_tokens, answer.usage
        words = "answered: %s, %d prompt (%d known) and %d answer tokens, %.2f s"
        log.info(words, what, usage["prompt_tokens"], known, usage["completion_tokens"], time.monotonic() - started)


class _Watch:
    """Sees when the client of a request has gone (its body must have been read)."""

    def __init__(self, exchange: HttpExchange) -> None:
        self.gone = asyncio.create_task(exchange.gone())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.gone.cancel()

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """The work's result; ClientDisconnect: the client went first, and the work was cancelled."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientDisconnect
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # nobody wants to know
