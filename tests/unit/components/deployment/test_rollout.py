"""What a server that knows nothing of ours is told: its chat template puts a question as training did."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.prompts import TEMPLATES
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.client import AskError, ask
from vthink.components.deployment.rollout.trained_model import TrainedModel
from vthink.components.deployment.rollout.vllm import serving_template

VIDEO = VideoConfig()
QUESTIONS = [
    ('Which way does "it" go?\n', ["left", "right"], "multiple_choice"),
    ("How many?", [], "numerical"),
    ("What is written {{ there }}?", [], "ocr"),
    ("Describe it.", [], "free_form"),
    ("How long?", [], "regression"),
]


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_tiny(TinyModelConfig(), VIDEO, 0)[1]


@pytest.mark.parametrize("prompt", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_serving_template_renders_what_training_rendered(processor: Any, prompt: str, kind: Any) -> None:
    encoder = ChatEncoder(processor, prompt, VIDEO, None)
    template = serving_template(TrainedModel(prompt, VIDEO, "qwen2_5_vl", processor.chat_template))
    for question, options, problem_type in QUESTIONS:
        # As vLLM hands it over: the parts in the caller's order, media as placeholders; words first, on purpose.
        content = [{"type": "text", "text": question}, {"type": kind}]
        more = {"options": options, "problem_type": problem_type}
        found = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template, tokenize=False, add_generation_prompt=True, **more,
        )  # fmt: skip
        assert found == encoder.render(question, options, problem_type, kind)


def rendered(prompt: str, messages: list[dict[str, Any]], **more: Any) -> str:
    base = (
        "{%- for m in messages %}[{{ m['role'] }}]"
        "{%- for p in m['content'] %}{{ p['text'] | default('<' ~ p['type'] ~ '>') }}{%- endfor %}{%- endfor %}"
    )
    template = serving_template(TrainedModel(prompt, VIDEO, "qwen2_5_vl", base))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers makes it
    return environment.from_string(template).render(messages=messages, **more)


def test_a_plain_request_is_asked_as_our_own_server_would() -> None:
    user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}
    text = rendered("video_thinker/1", [user])
    assert text.startswith("[system]" + TEMPLATES.get("video_thinker/1").system[:20])  # type: ignore[index]
    assert text.endswith("[user]<video>What happens?\n" + TEMPLATES.get("video_thinker/1").type_hints["free_form"])
    own = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert rendered("video_thinker/1", [own, user]).startswith("[system]Be brief.[user]")
    assert "[user]plain words\n" in rendered("video_r1/1", [{"role": "user", "content": "plain words"}])


def test_only_the_last_turn_is_asked() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "first"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "<answer>A</answer>"}]},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
    ]
    text = rendered("video_r1/1", turns, options=["yes", "no"])
    assert "[user]first[assistant]" in text
    assert "second\nA. yes\nB. no\n" in text
    assert text.count(TEMPLATES.get("video_r1/1").suffix) == 1


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server without our extension, which asks for a key."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            known = self.headers.get("Authorization") == "Bearer right"
            message = {"role": "assistant", "content": "<answer>B</answer>"}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": [5]}
            body = {"model": "m", "choices": [choice]} if known else {"error": {"message": "Unauthorized"}}
            data = json.dumps(body).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()


def test_a_server_without_our_extension_gets_options_for_its_template(
    listener: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    url, got = listener
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    settings: dict[str, Any] = {"problem_type": "multiple_choice", "model": "vthink", "plain": True}
    reply = ask(url, clip, "Which?", ["x", "y"], api_key="right", **settings)
    assert reply["answer"] == "B"
    assert got[0]["chat_template_kwargs"] == {"options": ["x", "y"], "problem_type": "multiple_choice"}
    assert got[0]["model"] == "vthink"
    assert "vthink" not in got[0]
    with pytest.raises(AskError, match=r"HTTP 401\): Unauthorized"):
        ask(url, clip, "Which?", api_key="wrong", plain=True)
