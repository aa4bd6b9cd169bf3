"""A server with the real routes, decoder and limits; only the model is a small stand-in that needs no torch."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.guard import Guard
from vthink.components.deployment.server.reply import Generated
from vthink.components.deployment.server.request import Ask
from vthink.components.deployment.server.routes import ChatCompletions, build_routes

ANSWER = (
    "<time>00:00-00:01</time><caption>a red square moves right</caption><think>it starts left</think>"
    "The square went right. <answer>B</answer>"
)


def write_video(path: Path, seconds: float = 3.0, fps: int = 10, size: int = 64) -> Path:
    """An H.264 mp4 of a square that moves right."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        count = int(seconds * fps)
        for index in range(count):
            pixels = np.full((size, size, 3), 30, np.uint8)
            left = index * (size - 16) // count
            pixels[24:40, left : left + 16] = (230, 40, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@dataclass
class ScriptedEngine:
    """Says `text` word by word; remembers what it was asked and shown."""

    text: str = ANSWER
    delay_s: float = 0.0
    fingerprint: str = "f" * 16
    system: str | None = "Look closely."
    video: VideoConfig = field(
        default_factory=lambda: VideoConfig(num_frames=4, min_pixels=56 * 56, max_pixels=56 * 56, decode_timeout_s=20)
    )
    asks: list[Ask] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    stopped_early: int = 0

    def stream(self, ask: Ask, clip: Clip) -> Iterator[str | Generated]:
        self.asks.append(ask)
        self.clips.append(clip)
        words = self.text.split(" ")[: ask.max_new_tokens]
        try:
            for index, word in enumerate(words):
                time.sleep(self.delay_s)
                yield word if index == 0 else " " + word
        except GeneratorExit:
            self.stopped_early += 1
            raise
        finish = "stop" if len(words) == len(self.text.split(" ")) else "length"
        yield Generated(
            text=" ".join(words), token_ids=tuple(range(len(words))), finish_reason=finish, prompt_token_ids=(1, 2, 3)
        )


@dataclass
class Running:
    """A server on a loopback port."""

    url: str
    port: int
    engine: ScriptedEngine
    chat: ChatCompletions


@contextlib.contextmanager
def running(engine: ScriptedEngine, config: ServerConfig, chat: ChatCompletions | None = None) -> Iterator[Running]:
    chat = chat or ChatCompletions(engine, config)
    app = Starlette(
        routes=build_routes(chat, config, {"vthink": {"max_video_bytes": config.max_video_bytes}}),
        middleware=[Middleware(Guard, config=config)],
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listener.getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, engine, chat)
    finally:
        server.should_exit = True
        thread.join(10)
        chat.close()


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("media") / "moving.mp4")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEngine(), ServerConfig(max_new_tokens=64, upload_timeout_s=2)) as started:
        yield started


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server with settings of one test's own."""
    with contextlib.ExitStack() as stack:

        def launch(engine: ScriptedEngine | None = None, **settings: object) -> Running:
            config = ServerConfig.load(settings)
            return stack.enter_context(running(engine or ScriptedEngine(), config))

        yield launch
