"""Servers that answer in every form, and those that cannot be used: a fake over real HTTP.

Whole rollouts on servers, played and real: tests/vllm.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.grpo.vllm import server as server_module
from vthink.components.grpo.vllm.server import VLLMServers
from vthink.components.grpo.vllm.weights import PolicyWeights
from vthink.tests.unit.components.grpo.vllm.prompts import ask, clip_of, prompt_of, run


class FakeServer:
    """Answers completions by a function, and says what it was told to of itself."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, Any]], version: str, settings: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        model = {"logprobs_mode": "raw_logprobs", "dtype": "torch.float32"} | settings
        model.setdefault("multimodal_config", {"mm_device_do_normalize": False})
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                bodies = {"/version": {"version": version}, "/server_info": {"vllm_config": {"model_config": model}}}
                self.respond(200 if path in bodies else 404, bodies.get(path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
                if body is None or "token_ids" not in body:  # new weights, and caches to be emptied
                    self.respond(200, {"success": True} if "prefix" in self.path else b"")
                    return
                fake.bodies.append(body)
                self.respond(*answer(body))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.servers = servers_at(f"http://127.0.0.1:{self.http.server_port}")


def servers_at(url: str) -> VLLMServers:
    return VLLMServers([url], PolicyWeights(torch.nn.Linear(1, 1), Accelerator(cpu=True)), None)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(
        answer: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, {}),
        version: str = "0.32.0",
        **settings: Any,
    ) -> FakeServer:
        servers.append(FakeServer(answer, version, settings))
        return servers[-1]

    # The features are in vLLM's own serialisation, which is not installed here.
    monkeypatch.setattr(
        server_module, "server_payload", lambda asked: {"token_ids": asked.token_ids, "seed": asked.sampling["seed"]}
    )
    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def old(token: int) -> dict[str, Any]:
    return {"token": f"token_id:{token}"}


def new(token: int) -> dict[str, Any]:
    return {"token_id": token}


def choice(
    index: int, *token_ids: int, tokens: tuple[int, ...] | None = None, form: Callable[[int], dict[str, Any]] = new
) -> dict[str, Any]:
    entries = [form(token) | {"logprob": -token / 100} for token in tokens or token_ids]
    return {"index": index, "token_ids": list(token_ids), "finish_reason": "stop", "logprobs": {"content": entries}}


@pytest.mark.parametrize("form", [old, new])
def test_a_server_completes_several_prompts_in_their_order_in_the_form_of_each_version(
    encoder: ChatEncoder, serve: Callable[..., FakeServer], form: Callable[[int], dict[str, Any]]
) -> None:
    prompts = [prompt_of(encoder, clip_of(encoder, seed=seed)) for seed in range(3)]

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {
            "prompt_token_ids": body["token_ids"],
            "choices": [choice(1, 20, form=form), choice(0, 10 + body["seed"] % 7, form=form)],
        }

    server = serve(answer)
    groups = run(server.servers, encoder, prompts)
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
        run(server.servers, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("version", "settings", "message"),
    [
        ("0.32.0", {"logprobs_mode": "processed_logprobs"}, "start the vLLM server with --logprobs-mode raw_logprobs"),
        ("0.32.0", {"dtype": "torch.bfloat16"}, "start the vLLM server with --dtype float32"),
        ("0.32.0", {"multimodal_config": {"mm_device_do_normalize": True}}, "with --no-mm-device-do-normalize"),
        ("0.32.0", {"multimodal_config": None}, "/server_info has another form"),
        ("0.30.2", {}, "is vLLM 0.30.2; GRPO's rollouts work with 0.31 to 0.33"),
        ("0.34.0", {}, "is vLLM 0.34.0"),
        ("dev", {}, "is vLLM dev"),
    ],
)
def test_a_server_under_which_rollouts_would_be_wrong_is_refused_at_the_start(
    serve: Callable[..., FakeServer], version: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        serve(version=version, **settings).servers.check(torch.float32, "raw_logprobs")
    assert message in str(error.value)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0+cpu", "0.33.1"])
def test_supported_versions_with_the_right_settings_are_taken(serve: Callable[..., FakeServer], version: str) -> None:
    serve(version=version).servers.check(torch.float32, "raw_logprobs")


def test_a_server_that_is_down_is_an_error() -> None:
    with pytest.raises(UserError, match="is the vLLM server up"):
        servers_at("http://127.0.0.1:9").check(torch.float32, "raw_logprobs")
