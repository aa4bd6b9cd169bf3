"""The chat route: from an HTTP request to a streamed or whole answer.

A request is admitted (or refused with 429), read (413, 408), checked (400), its media fetched and decoded in a worker
process that can be killed, and then answered by the one thread that runs the model; all of it within one deadline
(504). Each step has a bound, so that no request can make the server read, decode or generate without end, and a
request whose client has gone stops. Nothing here imports torch: the model is behind `ServedModel`.
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
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import Receive, Scope, Send

from ...common.video.clip import Clip, DecodeError, stored
from ...common.video.workers import Decoder
from ..config import ServerConfig
from .errors import ApiError
from .exchange import ClientGoneError, HttpExchange
from .media import MediaReader, shortened
from .model import ServedModel
from .reply import CompletionWriter, GeneratedAnswer
from .request import ChatQuestion, parse_request

log = logging.getLogger(__name__)

Item = str | GeneratedAnswer | Exception
"""What a generation yields: pieces of text, at the end the whole, or what ended it."""

_REQUESTS = Counter("vthink_requests_total", "Chat requests, by HTTP status", ["status"])
_IN_FLIGHT = Gauge("vthink_requests_in_flight", "Chat requests being read, decoded, waiting or answered")
_SECONDS = Histogram("vthink_request_seconds", "Seconds a chat request took, by part", ["part"])
_TOKENS = Counter("vthink_generated_tokens_total", "Tokens generated")


@contextlib.contextmanager
def _timed(part: str) -> Iterator[None]:
    """Record how long a part of a request took that did not fail."""
    started = time.monotonic()
    yield
    _SECONDS.labels(part).observe(time.monotonic() - started)


class ChatCompletions:
    """The chat route, as an ASGI application."""

    def __init__(self, model: ServedModel, config: ServerConfig, media: MediaReader | None = None) -> None:
        """Starts the decoder's workers; `close` ends them."""
        self._model, self._config = model, config
        self._media = media or MediaReader(config)
        # Limits only: how frames are chosen and resized stays the model's.
        video = model.video
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
        exchange = HttpExchange(scope, receive, send)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._admit(exchange)
        except ApiError as error:
            await exchange.fail(error)
        except TimeoutError:
            limit = self._config.request_timeout_s
            await exchange.fail(ApiError(504, f"no answer within {limit:g} s; ask about a shorter video or for less"))
        except ClientGoneError:
            exchange.status = 499  # nginx's number for it
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("request failed (incident %s)", incident)
            await exchange.fail(ApiError(500, f"internal error; the server's log has it as incident {incident}"))
        finally:
            _REQUESTS.labels(str(exchange.status or 500)).inc()
            _SECONDS.labels("total").observe(time.monotonic() - started)

    async def _admit(self, exchange: HttpExchange) -> None:
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

    async def _answer(self, exchange: HttpExchange) -> None:
        with _timed("receive"):
            question, data = await self._receive(exchange)
        with _timed("decode"):
            clip = await asyncio.get_running_loop().run_in_executor(self._decoding, self._decode, data, question)
        del data
        started = time.monotonic()
        with _timed("generate"):
            answer = await self._write(exchange, question, clip)
        _TOKENS.inc(len(answer.token_ids))
        log.info(
            "answered: %s of %.1f s, %d frames, %d prompt and %d answer tokens, %.2f s",
            clip.kind,
            clip.duration_s,
            len(clip.frames),
            len(answer.prompt_token_ids),
            len(answer.token_ids),
            time.monotonic() - started,
        )

    async def _receive(self, exchange: HttpExchange) -> tuple[ChatQuestion, bytes]:
        """The question, without its media's URL (a video in base64 need not wait along), and the media."""
        config = self._config
        body = await exchange.body(config.max_request_bytes, config.upload_timeout_s)
        question = await asyncio.to_thread(
            parse_request,
            body,
            model_name=config.model_name,
            system=self._model.system,
            max_new_tokens=config.max_new_tokens,
            max_question_chars=config.max_question_chars,
        )
        data = await self._media.read(question.media_url)
        return dataclasses.replace(question, media_url=shortened(question.media_url)), data

    async def _write(self, exchange: HttpExchange, question: ChatQuestion, clip: Clip) -> GeneratedAnswer:
        writer = CompletionWriter(question, clip, self._config.model_name, self._model.fingerprint)
        answer: GeneratedAnswer | None = None
        async with self._generation(exchange, question, clip) as items:
            while answer is None:
                item = await items.get()
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, GeneratedAnswer):
                    answer = item
                if question.stream and exchange.status is None:
                    await exchange.event(writer.first_chunk())
                if question.stream and isinstance(item, str):
                    await exchange.event(writer.delta_chunk(item))
        if question.stream:
            for chunk in writer.last_chunks(answer):
                await exchange.event(chunk)
            await exchange.event(None, last=True)
        else:
            await exchange.json(200, writer.whole(answer))
        return answer

    def _decode(self, data: bytes, question: ChatQuestion) -> Clip:
        """The frames the model will see: decoded and stored exactly as data preparation does."""
        with tempfile.TemporaryDirectory(prefix="vthink-serve-") as folder:
            path = Path(folder) / "media"
            path.write_bytes(data)
            try:
                clip = self._decoder.read(
                    path, kind=question.media_kind, start_s=question.start_s, end_s=question.end_s
                )
            except DecodeError as error:
                reason = str(error).replace(str(path), "the file").removeprefix("the file: ")
                raise ApiError(400, f"the {question.media_kind} cannot be read: {reason}", param="messages") from error
        return stored(clip, self._video)

    @contextlib.asynccontextmanager
    async def _generation(
        self, exchange: HttpExchange, question: ChatQuestion, clip: Clip
    ) -> AsyncIterator[asyncio.Queue[Item]]:
        """A queue of what the model yields, and of the exception that ended it; stops the model on leaving."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()
        stop = threading.Event()

        def put(item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it
                loop.call_soon_threadsafe(items.put_nowait, item)

        def generate() -> None:
            try:
                with contextlib.closing(self._model.stream(question, clip)) as stream:
                    for item in stream:
                        if stop.is_set():
                            return
                        put(item)
            except Exception as error:
                put(error)

        async def watch() -> None:
            await exchange.gone()
            put(ClientGoneError())

        running = loop.run_in_executor(self._generating, generate)
        watching = asyncio.create_task(watch())
        try:
            yield items
        finally:
            stop.set()
            running.cancel()
            watching.cancel()
