"""What serving must know of a model that we trained, and vLLM's arguments and chat template that follow from it."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass

from ...common.errors import UserError
from ...common.model.card import CARD, ModelCard
from ...common.model.prompts import Prompt, get_template
from ...common.storage.names import join
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ..config import DeploymentConfig

NO_DOMAIN = "none.invalid"
"""A host that cannot exist (RFC 2606): without any, vLLM would fetch media from everywhere."""

_json = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What serving must know of a model folder."""

    prompt: Prompt
    """Its prompt template."""
    video: VideoConfig
    family: str
    """``model_type`` of its ``config.json``."""
    chat_template: str
    """The chat template of its tokenizer."""

    @classmethod
    def read(cls, storage: Storage, source: str) -> TrainedModel:
        """Read it from a model folder in the store.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            card = ModelCard.load(storage.read_json(join(source, CARD)), join(source, CARD))
            config = storage.read_json(join(source, "config.json"))
            template = storage.read_bytes(join(source, "chat_template.jinja")).decode()
            get_template(card.prompt)
            return cls(card.prompt, card.video, str(config["model_type"]), template)
        except UserError as error:
            raise UserError(f"{source} cannot be served: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} cannot be served: vthink.json or config.json is damaged ({error})") from error


def serving_template(model: TrainedModel) -> str:
    """The chat template for a server that knows nothing of ours: it puts a question as training did.

    Around the model's own template it sets the system message, puts the media before the words, letters the options,
    and appends what the prompt template says for the problem type. A request may give ``options`` and
    ``problem_type`` in its ``chat_template_kwargs``.
    """
    template = get_template(model.prompt)
    texts = {"system": template.system or "", "suffix": template.suffix, "hints": template.type_hints}
    head = "".join(f"{{%- set vt_{name} = {json.dumps(value)} %}}" for name, value in texts.items())
    lines = importlib.resources.files(__package__).joinpath("question.jinja").read_text("utf-8").splitlines()
    return head + "".join(line.strip() for line in lines) + model.chat_template


def vllm_arguments(model: TrainedModel, section: DeploymentConfig) -> list[str]:
    """vLLM's arguments that make it sample, resize and ask as training did (spelling of vLLM 0.31; not run here).

    vLLM takes at most so many frames at so many per second, evenly spread, as `VideoConfig` does; it knows no least
    number of frames, does not round to pairs, and does not recompress frames. What that changes shows in the smoke
    test.
    """
    video, server = model.video, section.server
    frames = video.num_frames or video.max_frames
    sampling: dict[str, float] = {"num_frames": frames}
    if video.fps is not None:
        sampling["fps"] = int(video.fps) if video.fps == int(video.fps) else video.fps
    pixels: dict[str, object] = {"min_pixels": video.min_pixels, "max_pixels": video.max_pixels}
    if model.family == "qwen3_vl":  # its processor's budget is for all frames together
        pixels = {"size": {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels * frames}}
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
    line = [f"--{name}={value}".replace("{{", "{{`{{`}}") for name, value in arguments.items()]
    domains = server.allowed_media_domains if server.allow_http_media else ()
    return [*line, "--allowed-media-domains", *([domain.lstrip(".") for domain in domains] or [NO_DOMAIN])]
