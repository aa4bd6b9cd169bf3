"""What our clients send to a vLLM that has our chat template comes to the prompt that the model was trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vthink.components.common.chat_endpoint.endpoint import BlockingEndpoint
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.rows.sample import Media, Sample
from vthink.components.deployment.ask import FileQuestion, ask, served_endpoint
from vthink.components.deployment.rollout.inference_service import TrainedModel, serving_template
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.models import EndpointModel
from vthink.tests.fakes.chat_server import Answer, chat_server, completion
from vthink.tests.vllm.subject import OPTIONS, QUESTION

PROMPTS = ["compact/1", "video_thinker/1", "video_r1/1"]
Client = Callable[[str, Path, str], None]


def ask_plainly(url: str, path: Path, prompt: str) -> None:
    """As the smoke test does."""
    with BlockingEndpoint(served_endpoint(url)) as endpoint:
        ask(endpoint, FileQuestion(path=path, text=QUESTION, options=OPTIONS), {"temperature": 0}, plain=True)


def ask_as_a_user(url: str, path: Path, prompt: str) -> None:
    """As `vthink ask` does."""
    with BlockingEndpoint(served_endpoint(url)) as endpoint:
        ask(endpoint, FileQuestion(path=path, text=QUESTION, options=OPTIONS))


def evaluate(url: str, path: Path, prompt: str) -> None:
    """As `vthink evaluate` does."""
    sample = Sample(
        id="one", media=Media(kind="image", uri=str(path)), question=QUESTION, options=OPTIONS,
        problem_type="multiple_choice", answer="A", source="test", split="test",
    )  # fmt: skip
    model = EndpointModel(url, ModelConfig(prompt=prompt), EvaluationConfig())
    model.predict()([sample], [SimpleNamespace(path=path)])
    model.release()


def sent(client: Client, path: Path, prompt: str) -> dict[str, Any]:
    """What the client sends to a vLLM."""
    models = {"object": "list", "data": [{"id": "policy", "object": "model", "owned_by": "vllm"}]}
    with chat_server() as server:
        server.reply = lambda request: Answer(body=completion("x") if "messages" in request else models)
        client(server.url, path, prompt)
        return next(request for request in server.requests if "messages" in request)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("client", [ask_plainly, ask_as_a_user, evaluate])
def test_the_prompt_is_that_of_training(
    policy: tuple[Any, ChatEncoder], family: str, files: list[Path], client: Client, prompt: str
) -> None:
    base = policy[1]
    encoder = ChatEncoder(base.processor, prompt, base.video, base.tokens_per_second)
    request = sent(client, files[1], prompt)
    template = serving_template(TrainedModel(prompt, base.video, family, base.processor.chat_template))
    messages = [
        message | {"content": [part | {"type": part["type"].removesuffix("_url")} for part in message["content"]]}
        for message in request["messages"]
    ]
    rendered = base.processor.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True,
        **request.get("chat_template_kwargs", {}),
    )  # fmt: skip
    assert rendered == encoder.render(QUESTION, OPTIONS, "multiple_choice", "image")
    assert request["temperature"] == 0
