"""Answers of vLLM, from its engine or its server, checked before they are trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...common.errors import UserError
from ...common.model.chat import ChatEncoder
from ...common.model.generation import Completion
from .request import Request

_IMPOSSIBLE = -9000.0  # no token was sampled with such a log-probability: a server writes -9999 where it has none


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledCompletion(Completion):
    """A completion with the probabilities that it was sampled with."""

    log_probs: list[float]
    """One per token: of the distribution sampled from, that is after temperature, nucleus and suppressed tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One completion as vLLM returned it, unchecked."""

    index: int
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What vLLM returned for one request, unchecked."""

    prompt_token_ids: list[int]
    choices: list[Choice]


def engine_answer(output: Any) -> Answer:
    """A ``vllm.RequestOutput`` as an answer."""
    choices = [
        Choice(
            index=choice.index,
            token_ids=list(choice.token_ids),
            log_probs=[
                entry[token].logprob for token, entry in zip(choice.token_ids, choice.logprobs or [], strict=True)
            ],
            finish_reason=choice.finish_reason,
        )
        for choice in output.outputs
    ]
    return Answer(prompt_token_ids=list(output.prompt_token_ids), choices=choices)


def server_answer(body: Mapping[str, Any]) -> Answer:
    """The JSON that ``/inference/v1/generate`` returned as an answer.

    Raises:
        KeyError, TypeError, ValueError: it has another form."""
    choices = []
    for choice in body["choices"]:
        entries = (choice["logprobs"] or {"content": []})["content"] or []
        scored_ids = [int(str(entry["token"]).removeprefix("token_id:")) for entry in entries]
        token_ids = [int(token) for token in choice["token_ids"] or []]
        if scored_ids != token_ids:
            raise ValueError("log-probabilities of other tokens than those of the completion")
        choices.append(
            Choice(
                index=int(choice["index"]),
                token_ids=token_ids,
                log_probs=[float(entry["logprob"]) for entry in entries],
                finish_reason=choice["finish_reason"],
            )
        )
    return Answer(prompt_token_ids=[int(token) for token in body["prompt_token_ids"]], choices=choices)


def check_answer(request: Request, answer: Answer, encoder: ChatEncoder) -> list[SampledCompletion]:
    """The completions of an answer that fits its request, in the order of their numbers.

    Raises:
        UserError: vLLM completed other token ids than it was asked to, or completions are missing, unfinished, too
            long, hold vision tokens, or lack log-probabilities."""
    theirs, ours = answer.prompt_token_ids, request.token_ids
    if theirs != ours:
        position = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        where = "where one of them ends" if position is None else f"from position {position} on"
        raise UserError(
            f"vLLM completed a prompt of {len(theirs)} tokens, the trainer's has {len(ours)}, and they differ {where}"
        )
    n, longest = request.sampling["n"], request.sampling["max_tokens"]
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(n)):
        raise UserError(f"vLLM was asked for {n} completions and returned {[choice.index for choice in choices]}")
    completions = []
    for choice in choices:
        ids, name = choice.token_ids, f"completion {choice.index} of {n}"
        if choice.finish_reason not in ("stop", "length"):
            raise UserError(f"{name} was not finished: {choice.finish_reason}")
        if len(ids) > longest:
            raise UserError(f"{name} has {len(ids)} tokens; {longest} were allowed")
        if forbidden := sorted(set(ids) & set(encoder.vision_token_ids)):
            raise UserError(f"{name} holds vision tokens ({forbidden}), which only a prompt may")
        if len(choice.log_probs) != len(ids) or not all(_IMPOSSIBLE < value < 1e-3 for value in choice.log_probs):
            raise UserError(f"{name} has {len(ids)} tokens, but not a log-probability for each")
        completions.append(
            SampledCompletion(
                token_ids=ids,
                text=encoder.decode(ids),
                finish_reason="stop" if choice.finish_reason == "stop" else "length",
                log_probs=choice.log_probs,
            )
        )
    return completions
