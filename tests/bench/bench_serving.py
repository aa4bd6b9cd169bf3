"""The model server with many clients, against itself one request at a time and without a memory.

*Plain* is what the server was before: every video decoded and read anew, one answer after the other (`max_batch: 1`, no
caches). *Own* answers all requests in one running batch and keeps what it has read. Both answer the same greedy
requests over HTTP in turns; their answers must be equal. Weights are random: speed does not depend on them.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from recording import OUTPUT, Measurement, record
from vthink.components.common.compat.torchvision import declare_torchvision_operators

declare_torchvision_operators()  # before transformers is imported
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard
from vthink.components.common.model.load import LoadedModel, tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.engine import ServedModel
from vthink.tests.fakes.model_server import Running, running, write_video

VIDEO = VideoConfig(num_frames=16, min_pixels=112 * 112, max_pixels=112 * 112)
WANTED = {("repeated", 8): 6.0, ("repeated", 32): 12.0, ("distinct", 8): 3.0, ("distinct", 32): 4.0}
PLAIN: dict[str, Any] = {"max_batch": 1, "clip_cache_bytes": 0, "prefix_cache_bytes": 0}


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer."""

    first_s: float
    total_s: float
    text: str


@contextlib.contextmanager
def serving(settings: dict[str, Any]) -> Iterator[Running]:
    """A server of this process with the tiny model."""
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    encoder = ChatEncoder(processor, "compact/1", VIDEO, tokens_per_second(model))
    encoder.eos_token_id = -1  # so that every answer has the full length
    loaded = LoadedModel(model.eval(), encoder, ModelCard(prompt="compact/1", video=VIDEO), Path())
    config = ServerConfig.load({"max_waiting": 1000, "max_wait_s": 300, **settings})
    served = ServedModel(loaded, config.max_batch, config.prefix_cache_bytes, config.cache_s)
    with running(served, config) as server:  # type: ignore[arg-type]
        yield server
    served.close()


def question(video: bytes, text: str, tokens: int) -> bytes:
    """A streamed request."""
    url = "data:video/mp4;base64," + base64.b64encode(video).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "stream": True}
    ).encode()


async def ask(client: httpx.AsyncClient, url: str, body: bytes) -> Timed:
    """Ask, and note when the first words arrive."""
    started, first, text = time.perf_counter(), 0.0, ""
    headers = {"content-type": "application/json"}
    async with client.stream("POST", url + "/v1/chat/completions", content=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                piece = choice["delta"].get("content")
                if piece:
                    first, text = first or time.perf_counter(), text + piece
    return Timed(first - started, time.perf_counter() - started, text)


async def load(url: str, bodies: Sequence[bytes], clients: int) -> tuple[float, list[Timed]]:
    """Seconds that the clients need for all requests, each taking the next one as soon as it has its answer."""
    answers: dict[int, Timed] = {}
    left = iter(enumerate(bodies))

    async def work(client: httpx.AsyncClient) -> None:
        for number, body in left:
            answers[number] = await ask(client, url, body)

    async with httpx.AsyncClient(timeout=600, trust_env=False, limits=httpx.Limits(max_connections=clients)) as client:
        started = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return time.perf_counter() - started, [answers[number] for number in range(len(bodies))]


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of them lies."""
    return (
        statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1] if len(values) > 1 else values[0]
    )


def measure(kind: str, clients: int, videos: list[bytes], rounds: int, tokens: int) -> Measurement:
    """So many clients, on one video or on as many as there are requests."""
    count = max(16, 2 * clients)
    seconds: dict[str, list[float]] = {"plain": [], "own": []}
    timed: dict[str, list[Timed]] = {"plain": [], "own": []}
    for turn in range(rounds):
        texts = {}
        for name, settings in (("plain", PLAIN), ("own", {})):
            chosen = [videos[0]] * count if kind == "repeated" else videos[:count]
            bodies = [question(video, f"Round {turn}, question {n}?", tokens) for n, video in enumerate(chosen)]
            with serving(settings) as server:
                for _ in range(4):  # decoders start when they are first needed
                    asyncio.run(load(server.url, [question(videos[-1], "ready?", 2)] * 2, 2))
                spent, answers = asyncio.run(load(server.url, bodies, clients))
            seconds[name].append(spent)
            timed[name] += answers
            texts[name] = [answer.text for answer in answers]
        if texts["plain"] != texts["own"]:
            raise SystemExit(f"serving/{kind}-{clients}: the answers differ")
    extra: dict[str, Any] = {"requests_per_s": count / min(seconds["own"])}
    for name, answers in timed.items():
        for part in (0.5, 0.99):
            extra[f"{name}_first_p{part * 100:.0f}_s"] = percentile([answer.first_s for answer in answers], part)
            extra[f"{name}_total_p{part * 100:.0f}_s"] = percentile([answer.total_s for answer in answers], part)
    return Measurement(
        name=f"serving/{kind}-{clients}",
        plain_seconds=min(seconds["plain"]),
        own_seconds=min(seconds["own"]),
        wanted_ratio=WANTED.get((kind, clients)),
        setting={"requests": count, "tokens": tokens, "rounds": rounds, "torch": torch.__version__, "frames": 16},
        extra=extra,
    )


def follow_up(video: bytes, rounds: int) -> Measurement:
    """Seconds to the first token of a first question on a video, and of one that follows it."""
    first, then = [], []
    with serving({}) as server:
        asyncio.run(load(server.url, [question(video, "ready?", 2)] * 2, 2))
        for turn in range(rounds):
            fresh = write_video(Path(tempfile.mkdtemp()) / "v.mp4", seconds=4 + turn / 10, size=128).read_bytes()
            asked = json.loads(question(fresh, "What moves?", 32))
            [answer] = asyncio.run(load(server.url, [json.dumps(asked).encode()], 1))[1]
            asked["messages"] += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "Why?"}]
            [later] = asyncio.run(load(server.url, [json.dumps(asked).encode()], 1))[1]
            first.append(answer.first_s)
            then.append(later.first_s)
    return Measurement(
        name="serving/follow-up-first-token", plain_seconds=min(first), own_seconds=min(then), wanted_ratio=5.0,
        setting={"rounds": rounds, "tokens": 32, "frames": 16},
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--kinds", nargs="*", choices=["repeated", "distinct"], default=["repeated", "distinct"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        count = max(16, 2 * max(options.clients)) + 1
        paths = (write_video(Path(folder) / f"{n}.mp4", seconds=2 + n / 20, size=128) for n in range(count))
        videos = [path.read_bytes() for path in paths]
    for kind in options.kinds:
        for clients in options.clients:
            record([measure(kind, clients, videos, options.rounds, options.tokens)], options.output)
    record([follow_up(videos[0], options.rounds)], options.output)


if __name__ == "__main__":
    main()
