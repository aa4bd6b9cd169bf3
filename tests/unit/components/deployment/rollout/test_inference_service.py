"""What a server that knows nothing of ours is told: its chat template puts a question as training did."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.prompts import TEMPLATES
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.rollout.inference_service import TrainedModel, serving_template

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
