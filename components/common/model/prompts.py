"""Prompt templates: how a question about a video is put to the model. One place, versioned, without torch.

A template is named ``name/version``. A published version never changes: a model is served with the template it was
trained on, and its name travels in the model folder (``vthink.json``).

Sources: Video-R1 (arXiv 2503.21776) puts the instruction behind the question and asks for one ``<think>`` and one
``<answer>``; Video-Thinker (arXiv 2510.23473) asks in a system prompt for located, captioned segments first. The
wording here is ours.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError

AnswerFormat = Literal["video_r1", "video_thinker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """The fixed words around a question."""

    system: str | None
    """System message, or none."""
    suffix: str
    """Text behind the question and its options."""
    type_hints: dict[str, str]
    """What to put inside ``<answer>``, by problem type; appended to the suffix."""
    answer_format: AnswerFormat
    """The shape of response that the template asks for; format rewards and SFT targets follow it."""


_TYPE_HINTS = {
    "multiple_choice": "Put only the letter of your choice inside <answer></answer>.",
    "numerical": "Put only the number inside <answer></answer>, for example <answer>3</answer>.",
    "ocr": "Write what you read, character by character, inside <answer></answer>.",
    "free_form": "Put your answer as one short text inside <answer></answer>.",
    "regression": "Put your estimate as one number inside <answer></answer>, for example <answer>2.5</answer>.",
}


TEMPLATES: dict[str, PromptTemplate] = {
    "video_r1/1": PromptTemplate(
        system=None,
        suffix="Reason step by step about what happens in the video and in which order, inside <think></think>; "
        "then answer.",
        type_hints=_TYPE_HINTS,
        answer_format="video_r1",
    ),
    "video_thinker/1": PromptTemplate(
        system="You answer questions about videos. First find the parts of the video that matter. For each, write "
        "<time>MM:SS-MM:SS</time>, then what is seen there in <caption></caption>, then what follows from it in "
        "<think></think>. When you have seen enough, give the final answer in <answer></answer>.",
        suffix="",
        type_hints=_TYPE_HINTS,
        answer_format="video_thinker",
    ),
    # For models of a few hundred thousand parameters, to which instructions say nothing and cost time.
    "compact/1": PromptTemplate(system=None, suffix="", type_hints={}, answer_format="video_thinker"),
}


def get_template(name: str) -> PromptTemplate:
    """The template called ``name``.

    Raises:
        UserError: naming the templates there are.
    """
    try:
        return TEMPLATES[name]
    except KeyError:
        raise UserError(f"unknown prompt template '{name}'; there are: {', '.join(sorted(TEMPLATES))}") from None


def question_text(question: str, options: Sequence[str], problem_type: str, template: PromptTemplate) -> str:
    """The user's turn: question, lettered options, instruction."""
    lines = [question.strip()]
    lines += [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    lines += [text for text in (template.suffix, template.type_hints.get(problem_type, "")) if text]
    return "\n".join(lines)


def build_messages(
    question: str,
    options: Sequence[str],
    problem_type: str,
    kind: Literal["video", "image"] | None,
    template: PromptTemplate,
) -> list[dict[str, Any]]:
    """The conversation up to the model's turn, as chat-template messages with one media placeholder (None: without)."""
    messages: list[dict[str, Any]] = []
    if template.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": template.system}]})
    text = question_text(question, options, problem_type, template)
    # A text block must not carry a `video` key, not even with None: the chat template would see a video in it.
    messages.append({"role": "user", "content": [*([{"type": kind}] if kind else []), {"type": "text", "text": text}]})
    return messages
