"""vLLM's arguments for a model that we trained."""

from __future__ import annotations

import json
from typing import Any

from ...common.model.prompts import get_template
from ..config import DeploymentConfig
from .trained_model import TrainedModel

NO_DOMAIN = "none.invalid"
"""A host that cannot exist (RFC 2606): without any, vLLM would fetch media from everywhere."""


def serving_template(model: TrainedModel) -> str:
    """The chat template for a server that knows nothing of ours: it puts a question as training did.

    Around the model's own template it sets the system message, puts the media before the words, letters the options,
    and appends what the prompt template says for the problem type. A request may give ``options`` and
    ``problem_type`` in its ``chat_template_kwargs``.
    """
    template = get_template(model.prompt)
    quoted = {
        name: json.dumps(value)
        for name, value in (
            ("system", template.system or ""),
            ("suffix", template.suffix),
            ("hints", template.type_hints),
        )
    }
    return (
        f"{{%- set vt_system = {quoted['system']} %}}"
        f"{{%- set vt_suffix = {quoted['suffix']} %}}"
        f"{{%- set vt_hints = {quoted['hints']} %}}"
        "{%- set vt_options = options | default([], true) %}"
        "{%- set vt_type = problem_type | default('multiple_choice' if vt_options else 'free_form', true) %}"
        "{%- set vt = namespace(messages=[], media=[], text=[]) %}"
        "{%- if vt_system and messages[0]['role'] not in ['system', 'developer'] %}"
        "{%- set vt.messages = [{'role': 'system', 'content': [{'type': 'text', 'text': vt_system}]}] %}"
        "{%- endif %}"
        "{%- for message in messages %}"
        "{%- if loop.last and message['role'] == 'user' %}"
        "{%- set content = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
        "else message['content'] %}"
        "{%- for part in content %}"
        "{%- if part['type'] == 'text' %}{%- set vt.text = vt.text + [part['text'] | trim] %}"
        "{%- else %}{%- set vt.media = vt.media + [part] %}{%- endif %}"
        "{%- endfor %}"
        "{%- for option in vt_options %}"
        "{%- set vt.text = vt.text + ['ABCDEFGHIJKLMNOPQRSTUVWXYZ'[loop.index0] + '. ' + option] %}"
        "{%- endfor %}"
        "{%- for words in [vt_suffix, vt_hints.get(vt_type, '')] if words %}"
        "{%- set vt.text = vt.text + [words] %}"
        "{%- endfor %}"
        "{%- set words = [{'type': 'text', 'text': vt.text | join('\\n')}] %}"
        "{%- set vt.messages = vt.messages + [{'role': 'user', 'content': vt.media + words}] %}"
        "{%- else %}{%- set vt.messages = vt.messages + [message] %}{%- endif %}"
        "{%- endfor %}"
        "{%- set messages = vt.messages %}"
    ) + model.chat_template


def vllm_arguments(model: TrainedModel, section: DeploymentConfig) -> list[str]:
    """vLLM's arguments that make it sample, resize and ask as training did (spelling of vLLM 0.31; not run here).

    vLLM takes at most so many frames at so many per second, evenly spread, as `VideoConfig` does; it knows no least
    number of frames, does not round to pairs, and does not recompress frames. What that changes shows in the smoke
    test.
    """
    video, server = model.video, section.server
    sampling: dict[str, Any] = {"num_frames": video.num_frames or video.max_frames}
    if video.fps is not None:
        sampling["fps"] = int(video.fps) if video.fps == int(video.fps) else video.fps
    if model.family == "qwen3_vl":  # its processor's budget is for all frames together
        frames = sampling["num_frames"]
        edges = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels * frames}
        pixels: dict[str, Any] = {"size": edges}
    else:
        pixels = {"min_pixels": video.min_pixels, "max_pixels": video.max_pixels}
    domains = server.allowed_media_domains if server.allow_http_media else ()
    arguments = {
        "max-model-len": str(section.kserve.max_model_len),
        "limit-mm-per-prompt": '{"image":1,"video":1}',
        "media-io-kwargs": _json({"video": sampling}),
        "mm-processor-kwargs": _json(pixels),
        "generation-config": "vllm",  # the folder's own may penalise repetition, which evaluation did not
        "chat-template-content-format": "openai",
        "chat-template": serving_template(model),
    }
    if server.dtype != "auto":
        arguments["dtype"] = server.dtype
    if section.kserve.gpus > 1:
        arguments["tensor-parallel-size"] = str(section.kserve.gpus)
    # KServe reads arguments as a Go template: braces of ours are quoted for it, and are themselves again in the pod.
    found = [f"--{name}={value}".replace("{{", "{{`{{`}}") for name, value in arguments.items()]
    return [*found, "--allowed-media-domains", *([d.lstrip(".") for d in domains] or [NO_DOMAIN])]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
