"""A vLLM server, played by a fake over real HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.grpo.vllm import server as server_module
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.tests.unit.components.grpo.vllm.prompts import ask, clip_of, prompt_of, run


class FakeServer:
    """Plays the two endpoints of ``vllm serve`` that are used."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, Any]], logprobs_mode: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        model = {"logprobs_mode": logprobs_mode, "multimodal_config": {"mm_device_do_normalize": False}}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                known = self.path.startswith("/server_info?config_format=json")
                self.respond(200 if known else 404, {"vllm_config": {"model_config": model}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                self.respond(*answer(body))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.engine = SimpleNamespace(
            mode="server",
            server_base_url=f"http://127.0.0.1:{self.http.server_port}",
            accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
            sync_weights=lambda: None,
            model=torch.nn.Linear(1, 1),
        )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(answer: Callable[[dict[str, Any]], tuple[int, Any]], mode: str = "processed_logprobs") -> FakeServer:
        servers.append(FakeServer(answer, mode))
        return servers[-1]

    # The features are in vLLM's own serialisation; `TestWithVLLM` checks the real body.
    monkeypatch.setattr(
        server_module, "server_payload", lambda asked: {"token_ids": asked.token_ids, "seed": asked.sampling["seed"]}
    )
    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def choice(index: int, *token_ids: int, tokens: tuple[int, ...] | None = None) -> dict[str, Any]:
    entries = [{"token": f"token_id:{token}", "logprob": -token / 100} for token in tokens or token_ids]
    return {"index": index, "token_ids": list(token_ids), "finish_reason": "stop", "logprobs": {"content": entries}}


def test_a_server_completes_several_prompts_in_their_order(
    encoder: ChatEncoder, serve: Callable[..., FakeServer]
) -> None:
    prompts = [prompt_of(encoder, clip_of(encoder, seed=seed)) for seed in range(3)]

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {
            "prompt_token_ids": body["token_ids"],
            "choices": [choice(1, 20), choice(0, 10 + body["seed"] % 7)],
        }

    server = serve(answer)
    groups = run(server.engine, encoder, prompts)  # type: ignore[arg-type]
    seeds = [ask(encoder, prompt, key).sampling["seed"] for key, prompt in enumerate(prompts)]
    assert [group[0].token_ids for group in groups] == [[10 + seed % 7] for seed in seeds]
    assert [group[1].log_probs for group in groups] == [[-0.2]] * 3
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}), "start the vLLM server with --enable-scale-out"),
        ((500, b"out of\nmemory"), "/inference/v1/generate: status 500: out of memory"),
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, []), "answered in another form"),
        ((200, {"choices": []}), "answered in another form"),
        ((200, {"prompt_token_ids": [], "choices": [choice(0, 9, tokens=(8,))]}), "log-probabilities of other tokens"),
        ((200, {"prompt_token_ids": [], "choices": [choice(0, 9), choice(1, 9)]}), "a prompt of 0 tokens"),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_that_says_what_to_do(
    encoder: ChatEncoder, serve: Callable[..., FakeServer], answer: tuple[int, Any], message: str
) -> None:
    server = serve(lambda body: answer)
    with pytest.raises(UserError) as error:
        run(server.engine, encoder, [prompt_of(encoder, clip_of(encoder))])  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_or_returns_other_log_probabilities_is_refused(
    encoder: ChatEncoder, serve: Callable[..., FakeServer]
) -> None:
    server = serve(lambda body: (200, {}), mode="raw_logprobs")
    with pytest.raises(UserError, match="start it with --logprobs-mode processed_logprobs"):
        VLLMEngine(server.engine, encoder)
    engine = SimpleNamespace(mode="server", server_base_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match="is the vLLM server up"):
        VLLMEngine(engine, encoder)
