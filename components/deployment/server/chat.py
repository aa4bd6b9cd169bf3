"""The chat route: from an HTTP request to a streamed or whole answer of the model in service.

A request is admitted (or refused with 429), read (413, 408), checked (400), its media fetched and decoded in a worker
process that can be killed, and then answered by the one thread that runs the model; all of it within one deadline
(504). Each step has a bound, and a request whose client has gone stops. Nothing here imports torch before it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ...common.video.clip import Clip, DecodeError, stored
from ...common.video.workers import Decoder
from ..config import ServerConfig
from .completion import ApiError, ChatQuestion, CompletionWriter, GeneratedAnswer, Headers, parse_request
from .media import MediaReader

if TYPE_CHECKING:
    from ...common.model.load import LoadedModel

log = logging.getLogger(__name__)

_DRAIN_S = 5.0

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


class HttpExchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._asgi = (scope, receive, send)
        request = Request(scope, receive)
        self.headers, self._pieces = request.headers, request.stream()
        self.status: int | None = None  # of the response, once it has begun

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The request's body; ApiError 413 or 408, ClientDisconnect."""
        declared = self.headers.get("content-length", "0")
        body = bytearray()
        if declared.isdigit() and int(declared) <= limit:
            try:
                async with asyncio.timeout(timeout_s):
                    async for piece in self._pieces:
                        body += piece
                        if len(body) > limit:
                            break
                    else:
                        return bytes(body)
            except TimeoutError:
                raise ApiError(408, f"the request did not arrive within {timeout_s:g} s") from None
        await self.drain(limit)
        raise ApiError(413, f"the request is larger than {limit} bytes, the most this server takes")

    async def drain(self, limit: int) -> None:
        """Drop what still arrives, within bounds: closed over unread data, a connection is reset, the response lost."""
        if self.headers.get("expect"):
            return  # the client waits for our word and has not sent the body
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                async for piece in self._pieces:
                    dropped += len(piece)
                    if dropped > 4 * limit:
                        return

    async def gone(self) -> None:
        """Return when the client has gone (after the body was read)."""
        while (await self._asgi[1]())["type"] != "http.disconnect":
            pass

    async def json(self, status: int, content: object, headers: Headers = None) -> None:
        """Answer with JSON."""
        response = JSONResponse(content, status, headers)
        self.status = status
        await response(*self._asgi)

    async def event(self, content: object, last: bool = False) -> None:
        """Send a server-sent event (None: ``[DONE]``), starting the response with the first."""
        send = self._asgi[2]
        if self.status is None:
            self.status = 200
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers.append((b"x-accel-buffering", b"no"))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        data = "[DONE]" if content is None else json.dumps(content)
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": not last})

    async def fail(self, error: ApiError) -> None:
        """Answer with an error; in a stream that has begun, as its last event."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):  # the client may not be reading
                if self.status is None:
                    await self.json(error.status, error.body, error.headers)
                else:
                    self.status = error.status
                    await self.event(error.body)
                    await self.event(None, last=True)


class ServedModel:
    """The model in service: encodes and decodes with the code that evaluation runs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.video, self.system = loaded.video, loaded.encoder.template.system
        self.fingerprint = loaded.card.lineage.fingerprint
        self.max_model_len = int(loaded.model.config.get_text_config().max_position_embeddings)

    def stream(self, question: ChatQuestion, clip: Clip) -> Generator[str | GeneratedAnswer, None, None]:
        """Yield the answer's text as it grows, then the whole. Closing the iterator stops the generation.

        ApiError 400: the prompt and the longest answer do not fit the model's context.
        """
        from ...common.model.generation import Sampling, stream

        prompt = self.loaded.encoder.encode(question.text, question.options, question.problem_type, clip)
        if len(prompt) + question.max_new_tokens > self.max_model_len:
            both = f"{len(prompt)} prompt tokens and up to {question.max_new_tokens} of an answer"
            message = f"{both} are more than the model's {self.max_model_len}; lower max_tokens or ask about less"
            raise ApiError(400, message, "messages", "context_length_exceeded")
        sampling = Sampling(
            max_new_tokens=question.max_new_tokens, temperature=question.temperature, top_p=question.top_p,
            seed=secrets.randbits(31) if question.seed is None else question.seed,
        )  # fmt: skip
        for item in stream(self.loaded, prompt, sampling):
            if isinstance(item, str):
                yield item
            else:
                yield GeneratedAnswer(
                    text=item.text, token_ids=tuple(item.token_ids), finish_reason=item.finish_reason,
                    prompt_token_ids=tuple(prompt.input_ids.tolist()),
                )  # fmt: skip


class ChatCompletions:
    """The chat route, as an ASGI application."""

    def __init__(self, model: ServedModel, config: ServerConfig) -> None:
        """Starts the decoder's workers; `close` ends them."""
        self._model, self._config, video = model, config, model.video
        # Limits only: how frames are chosen and resized stays the model's.
        limits = {
            "max_duration_s": min(video.max_duration_s, config.max_duration_s),
            "max_file_bytes": min(video.max_file_bytes, config.max_video_bytes),
            "decode_timeout_s": min(video.decode_timeout_s, config.request_timeout_s),
        }
        self._video = video.model_copy(update=limits)
        self._media, self._decoder = MediaReader(config), Decoder(self._video, config.decoders)
        self._decoding = ThreadPoolExecutor(config.decoders, "decode")
        self._generating = ThreadPoolExecutor(1, "generate")
        self._slots = asyncio.Semaphore(config.max_concurrency)

    def close(self) -> None:
        """End the workers."""
        self._generating.shutdown(wait=False, cancel_futures=True)
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens, with a clear status."""
        exchange = HttpExchange(scope, receive, send)
        started, limit_s = time.monotonic(), self._config.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._admit(exchange)
        except ApiError as error:
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

    async def _admit(self, exchange: HttpExchange) -> None:
        config, refusal = self._config, None
        if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Also keeps web pages of other origins from sending requests to a server on this machine.
            refusal = ApiError(415, "send JSON, with the header Content-Type: application/json")
        elif self._slots.locked():
            words = f"the server is busy with {config.max_concurrency} requests; try again soon"
            refusal = ApiError(429, words, code="rate_limit_exceeded", headers={"retry-after": "1"})
        if refusal is not None:
            await exchange.drain(config.max_request_bytes)
            raise refusal
        async with self._slots:
            with _IN_FLIGHT.track_inprogress():
                await self._answer(exchange)

    async def _answer(self, exchange: HttpExchange) -> None:
        config = self._config
        with _timed("receive"):
            body = await exchange.body(config.max_request_bytes, config.upload_timeout_s)
            question, url = await asyncio.to_thread(parse_request, body, config, self._model.system)
            data = await self._media.read(url)
            del body, url  # a video in base64 need not wait along
        with _timed("decode"):
            clip = await asyncio.get_running_loop().run_in_executor(self._decoding, self._decode, data, question)
            del data
        started = time.monotonic()
        with _timed("generate"):
            answer = await self._write(exchange, question, clip)
        _TOKENS.inc(len(answer.token_ids))
        figures = (len(clip.frames), len(answer.prompt_token_ids), len(answer.token_ids), time.monotonic() - started)
        words = "answered: %s of %.1f s, %d frames, %d prompt and %d answer tokens, %.2f s"
        log.info(words, clip.kind, clip.duration_s, *figures)

    def _decode(self, data: bytes, question: ChatQuestion) -> Clip:
        """The frames the model will see: decoded and stored exactly as data preparation does."""
        kind = question.media_kind
        with tempfile.TemporaryDirectory(prefix="vthink-serve-") as folder:
            path = Path(folder) / "media"
            path.write_bytes(data)
            try:
                clip = self._decoder.read(path, kind=kind, start_s=question.start_s, end_s=question.end_s)
            except DecodeError as error:
                reason = str(error).replace(str(path), "the file").removeprefix("the file: ")
                raise ApiError(400, f"the {kind} cannot be read: {reason}", "messages") from error
        return stored(clip, self._video)

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
                    await exchange.event(writer.chunk(role="assistant", content=""))
                if question.stream and isinstance(item, str):
                    await exchange.event(writer.chunk(content=item))
        if question.stream:
            for chunk in writer.last_chunks(answer):
                await exchange.event(chunk)
            await exchange.event(None, last=True)
        else:
            await exchange.json(200, writer.whole(answer))
        return answer

    @contextlib.asynccontextmanager
    async def _generation(
        self, exchange: HttpExchange, question: ChatQuestion, clip: Clip
    ) -> AsyncIterator[asyncio.Queue[str | GeneratedAnswer | Exception]]:
        """A queue of what the model yields, or of the exception that ended it; stops the model on leaving."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[str | GeneratedAnswer | Exception] = asyncio.Queue()
        stop = threading.Event()

        def put(item: str | GeneratedAnswer | Exception) -> None:
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
            put(ClientDisconnect())

        running = loop.run_in_executor(self._generating, generate)
        watching = asyncio.create_task(watch())
        try:
            yield items
        finally:
            stop.set()
            running.cancel()
            watching.cancel()
