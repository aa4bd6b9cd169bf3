"""Answers that are refused, and when weights move. Whole rollouts, played and real: tests/vllm."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.grpo.vllm.answer import Answer, SampledCompletion, engine_answer
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.request import Request
from vthink.tests.unit.components.grpo.vllm.prompts import SAMPLING, ask, clip_of, prompt_of, run


class FakeVLLM:
    """Answers requests by a function."""

    def __init__(self, answer: Callable[[Request], Any], sleeps: bool = False) -> None:
        self.answer, self.sleeps, self.events = answer, sleeps, []

    def load(self) -> None:
        self.events.append("load")

    def sleep(self) -> bool:
        self.events.append("sleep")
        return self.sleeps

    def complete(self, requests: list[Request]) -> list[Answer]:
        return [engine_answer(self.answer(request)) for request in requests]


def output(prompt: list[int], *completions: tuple[list[int], str | None]) -> SimpleNamespace:
    """A ``vllm.RequestOutput``; token 7 of a completion has log-probability -0.07."""
    return SimpleNamespace(
        prompt_token_ids=prompt,
        outputs=[
            SimpleNamespace(
                index=index,
                token_ids=tuple(ids),
                finish_reason=reason,
                logprobs=[{token: SimpleNamespace(logprob=-token / 100)} for token in ids],
            )
            for index, (ids, reason) in enumerate(completions)
        ],
    )


def test_completions_come_back_in_order_with_their_log_probabilities(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    first, second = prompt_of(encoder, clip), prompt_of(encoder, clip_of(encoder, seed=1))
    eos = encoder.eos_token_id

    def answer(asked: Request) -> Any:
        mark = 90 + (asked.sampling["seed"] == ask(encoder, second, key=1).sampling["seed"])
        shuffled = output(asked.token_ids, ([mark, 20, eos], "stop"), ([mark, 21] * 6, "length"))
        shuffled.outputs.reverse()
        return shuffled

    groups = run(FakeVLLM(answer), encoder, [first, second])
    assert [[completion.token_ids[0] for completion in group] for group in groups] == [[90, 90], [91, 91]]
    completion = groups[1][0]
    assert completion == SampledCompletion(
        token_ids=[91, 20, eos],
        text=encoder.decode([91, 20, eos]),
        finish_reason="stop",
        log_probs=[-0.91, -0.20, -eos / 100],
    )
    assert [completion.finish_reason for completion in groups[0]] == ["stop", "length"]


def test_an_empty_completion_stays_one(encoder: ChatEncoder) -> None:
    engine = FakeVLLM(lambda asked: output(asked.token_ids, ([], "stop"), ([9], "length")))
    ((empty, other),) = run(engine, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert (empty.token_ids, empty.log_probs, empty.text) == ([], [], "")
    assert other.token_ids == [9]


def test_another_prompt_than_the_trainers_is_refused(encoder: ChatEncoder) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    # one vision token fewer, as another resize would give
    place = int(prompt.mm_token_type_ids.nonzero()[0])
    engine = FakeVLLM(
        lambda asked: output(asked.token_ids[:place] + asked.token_ids[place + 1 :], ([9], "stop"), ([9], "stop"))
    )
    with pytest.raises(UserError, match=rf"{len(prompt) - 1} tokens, the trainer's has {len(prompt)}"):
        run(engine, encoder, [prompt])


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        ([([9], "stop")], "asked for 2 completions and returned [0]"),
        ([([9], "stop"), ([9], "abort")], "completion 1 of 2 was not finished: abort"),
        ([([9], "stop"), ([9], None)], "completion 1 of 2 was not finished: None"),
        ([([9] * 13, "length"), ([9], "stop")], "completion 0 of 2 has 13 tokens; 12 were allowed"),
        ([([9], "stop"), ([9, 10**6], "stop")], "not a log-probability for each"),
    ],
)
def test_an_answer_that_must_not_be_trained_on_is_refused(
    encoder: ChatEncoder, completions: list, message: str
) -> None:
    engine = FakeVLLM(lambda asked: output(asked.token_ids, *completions))
    with pytest.raises(UserError) as error:
        run(engine, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert message in str(error.value)


def test_a_completion_of_vision_tokens_and_a_log_probability_that_is_no_number_are_refused(
    encoder: ChatEncoder,
) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    engine = FakeVLLM(lambda asked: output(asked.token_ids, ([9, encoder.video_token_id], "stop"), ([9], "stop")))
    with pytest.raises(UserError, match="vision tokens"):
        run(engine, encoder, [prompt])

    def not_a_number(asked: Request) -> Any:
        answer = output(asked.token_ids, ([9, 10], "stop"), ([9], "stop"))
        answer.outputs[0].logprobs[1][10].logprob = float("nan")
        return answer

    with pytest.raises(UserError, match="not a log-probability for each"):
        run(FakeVLLM(not_a_number), encoder, [prompt])
    # what a server writes where it has none
    engine = FakeVLLM(lambda asked: output(asked.token_ids, ([9, 999_900], "stop"), ([9], "stop")))
    with pytest.raises(UserError, match="not a log-probability for each"):
        run(engine, encoder, [prompt])


def test_weights_move_once_per_step_and_only_within_a_step_is_sampled(encoder: ChatEncoder) -> None:
    fake = FakeVLLM(lambda asked: output(asked.token_ids, ([9], "stop")))
    rollouts = VLLMEngine(fake, encoder, torch.float32)
    prompt = prompt_of(encoder, clip_of(encoder))
    with pytest.raises(UserError, match="policy"):
        rollouts.generate([prompt], SAMPLING, [1], [0])
    for step in (0, 0, 1):
        with rollouts.policy(step):
            rollouts.generate([prompt], SAMPLING, [1], [0])
    assert fake.events == ["load", "sleep", "sleep", "load", "sleep"]


def test_a_vllm_that_slept_gets_its_weights_again(encoder: ChatEncoder) -> None:
    fake = FakeVLLM(lambda asked: output(asked.token_ids, ([9], "stop")), sleeps=True)
    rollouts = VLLMEngine(fake, encoder, torch.float32)
    for _ in range(2):
        with rollouts.policy(0):
            rollouts.generate([prompt_of(encoder, clip_of(encoder))], SAMPLING, [1], [0])
    assert fake.events == ["load", "sleep"] * 2
