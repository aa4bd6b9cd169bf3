"""Prompt templates: how a question about a video is put to the model. One place, versioned, without torch.

A template is named ``name/version``. A published version never changes: a model is served with the template it was
trained on. The name of one of ours, or all fields of another, travel in the model folder (``vthink.json``).

Sources: Video-R1 (arXiv 2503.21776) puts the instruction behind the question and asks for one ``<think>`` and one
``<answer>``; Video-Thinker (arXiv 2510.23473) asks in a system prompt for located, captioned segments first. The
wording here is ours; a paper's own can be given as a file (`resolve_prompt`).
"""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..config import Section
from ..errors import UserError
from ..registry import Registry
from ..video.config import MediaKind


class PromptTemplate(Section):
    """The fixed words around a question."""

    name: str
    """What it is called, with its version."""
    system: str | None = None
    """System message, or none."""
    suffix: str = ""
    """Text behind the question and its options."""
    type_hints: dict[str, str] = Field(default_factory=dict)
    """What to put inside ``<answer>``, by problem type; appended to the suffix."""
    answer_format: str = "video_thinker"
    """The shape of response that the template asks for (`answers.formats`); format rewards and SFT targets follow
    it."""


Prompt = str | PromptTemplate  # a template of ours by name, or all of another one
_TYPE_HINTS = {
    "multiple_choice": "Put only the letter of your choice inside <answer></answer>.",
    "numerical": "Put only the number inside <answer></answer>, for example <answer>3</answer>.",
    "ocr": "Write what you read, character by character, inside <answer></answer>.",
    "free_form": "Put your answer as one short text inside <answer></answer>.",
    "regression": "Put your estimate as one number inside <answer></answer>, for example <answer>2.5</answer>.",
}

_TEMPLATES = (
    PromptTemplate(
        name="video_r1/1",
        suffix="Reason step by step about what happens in the video and in which order, inside <think></think>; "
        "then answer.",
        type_hints=_TYPE_HINTS,
        answer_format="video_r1",
    ),
    PromptTemplate(
        name="video_thinker/1",
        system="You answer questions about videos. First find the parts of the video that matter. For each, write "
        "<time>MM:SS-MM:SS</time>, then what is seen there in <caption></caption>, then what follows from it in "
        "<think></think>. When you have seen enough, give the final answer in <answer></answer>.",
        type_hints=_TYPE_HINTS,
    ),
    # For models of a few hundred thousand parameters, to which instructions say nothing and cost time.
    PromptTemplate(name="compact/1"),
)
TEMPLATES = Registry[PromptTemplate]("prompt template", PromptTemplate, {t.name: t for t in _TEMPLATES})


def get_template(prompt: Prompt | Mapping[str, Any]) -> PromptTemplate:
    """The template of this name, or with these fields, as a model's card or a server gives them. Nothing is imported or
    read for it: cards come from outside. A UserError names the nearest template there is."""
    if isinstance(prompt, PromptTemplate):
        return prompt
    return TEMPLATES.get(prompt, outside=False) if isinstance(prompt, str) else PromptTemplate.load(prompt, "prompt")


def resolve_prompt(prompt: str) -> Prompt:
    """What a configuration's ``model.prompt`` (see there) stands for: a name stays, what lies outside is read."""
    if not prompt.endswith((".yaml", ".yml", ".json")):
        template = TEMPLATES.get(prompt)
        return template if ":" in prompt else prompt
    import yaml

    try:
        return PromptTemplate.load(yaml.safe_load(Path(prompt).read_text("utf-8")), prompt)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"prompt template {prompt}: {' '.join(str(error).split())[:200]}") from error


def question_text(question: str, options: Sequence[str], problem_type: str, template: PromptTemplate) -> str:
    """The user's turn: question, lettered options, instruction."""
    lines = [question.strip()]
    lines += [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    lines += [text for text in (template.suffix, template.type_hints.get(problem_type, "")) if text]
    return "\n".join(lines)


def build_messages(
    question: str, options: Sequence[str], problem_type: str, kind: MediaKind | None, template: PromptTemplate
) -> list[dict[str, Any]]:
    """The conversation up to the model's turn, as chat-template messages with one media placeholder (None: without)."""
    messages: list[dict[str, Any]] = []
    if template.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": template.system}]})
    text = question_text(question, options, problem_type, template)
    # A text block must not carry a `video` key, not even with None: the chat template would see a video in it.
    messages.append({"role": "user", "content": [*([{"type": kind}] if kind else []), {"type": "text", "text": text}]})
    return messages
