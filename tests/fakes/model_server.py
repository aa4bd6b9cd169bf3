"""This package's model server with a played model: routes, guard, decoder and limits are the real ones.

The model answers from a script and needs no torch. tests/integration/test_server.py asks the real program with a real
(tiny) model the same kinds of questions. Known to differ: no KServe around the routes, of whose own only readiness is
there.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import httpx
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.chat import ChatCompletions
from vthink.components.deployment.server.completion import Choice, GeneratedAnswer, Piece
from vthink.components.deployment.server.connections import limited
from vthink.components.deployment.server.request import ChatQuestion
from vthink.components.deployment.server.serve import CHAT_PATHS, Guard, build_routes

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
class ScriptedModel:
    """Answers `text` word by word, or what `answers` has for the question; remembers the questions and clips."""

    text: str = ANSWER
    answers: Mapping[str, str] = field(default_factory=dict)
    """Response by the question's text."""
    delay_s: float = 0.0
    fingerprint: str = "f" * 16
    system: str | None = "Look closely."
    video: VideoConfig = field(
        default_factory=lambda: VideoConfig(num_frames=4, min_pixels=56 * 56, max_pixels=56 * 56, decode_timeout_s=20)
    )
    questions: list[ChatQuestion] = field(default_factory=list)
    clips: list[Clip | None] = field(default_factory=list)
    clip_keys: list[object] = field(default_factory=list)
    stopped_early: int = 0

    def stream(self, question: ChatQuestion, clip: Clip | None) -> Generator[Piece | GeneratedAnswer, None, None]:
        self.questions.append(question)
        self.clips.append(clip)
        every = self.answers.get(question.text, self.text).split(" ")
        words = every[: question.max_new_tokens]
        try:
            for index, word in enumerate(words):
                time.sleep(self.delay_s)
                yield Piece(word if index == 0 else " " + word)
        except GeneratorExit:
            self.stopped_early += 1
            raise
        finish = "stop" if len(words) == len(every) else "length"
        choice = Choice(text=" ".join(words), token_ids=tuple(range(len(words))), finish_reason=finish)
        yield GeneratedAnswer(choices=(choice,), prompt_token_ids=(1, 2, 3))

    def submit(
        self, question: ChatQuestion, clip: Clip | None, clip_key: object, deliver: Callable[[object], None]
    ) -> Submission:
        """Answers in a thread of its own."""
        self.clip_keys.append(clip_key)
        submission = Submission(question.notes)

        def run() -> None:
            try:
                with contextlib.closing(self.stream(question, clip)) as stream:
                    for item in stream:
                        if submission.cancelled:
                            return
                        deliver(item)
            except Exception as error:
                deliver(error)

        threading.Thread(target=run, daemon=True).start()
        return submission


@dataclass
class Submission:
    """What `ServedModel.submit` returns."""

    notes: tuple[str, ...]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Running:
    """A server on a loopback port."""

    url: str
    port: int
    model: ScriptedModel
    chat: ChatCompletions

    def warm_up(self, video: Path) -> None:
        """Ask until there is an answer, so that no time limit of the test is spent on the start of the decoder."""
        text, self.model.text = self.model.text, "ready"
        url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "ready?"}]
        body = {"messages": [{"role": "user", "content": content}]}
        while httpx.post(self.url + CHAT_PATHS[0], json=body, timeout=60).status_code != 200:
            pass
        self.model.text = text


@contextlib.contextmanager
def running(model: ScriptedModel, config: ServerConfig, api_key: str | None = None) -> Iterator[Running]:
    """A server on a port of the loopback address."""
    chat = ChatCompletions(model, config)
    ready = Route("/v2/health/ready", lambda _: JSONResponse({"ready": True}))
    app = Starlette(
        routes=[*build_routes(chat, config, {"vthink": {"max_video_bytes": config.max_video_bytes}}), ready],
        middleware=[Middleware(Guard, config=config, api_key=api_key)],
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    connections = {"http": limited(config), "backlog": 64}
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **connections))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listener.getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, model, chat)
    finally:
        server.should_exit = True
        thread.join(10)
        chat.close()
