"""Continuous batching: whoever joins and leaves meanwhile, each prompt gets the tokens it gets alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vthink.components.common.model.batch import ContinuousBatch, Generation, Sampled
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling, inference, sample
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.prefixes import PrefixCache
from vthink.components.common.model.prompts import Turn
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig

Model = tuple[torch.nn.Module, ChatEncoder, list[Clip]]


@pytest.fixture(scope="module", params=[("qwen2_5_vl", 28), ("qwen3_vl", 32)], ids=["qwen2_5_vl", "qwen3_vl"])
def tiny(request: pytest.FixtureRequest) -> Model:
    family, side = request.param
    video = VideoConfig(size_multiple=side)
    model, processor = build_tiny(TinyModelConfig(family=family), video, 0)
    rng = np.random.default_rng(0)
    clips = [
        Clip(
            rng.integers(0, 256, (count, side * 2, side * 2, 3), dtype=np.uint8),
            np.arange(count) / 2,
            count / 2,
            "video" if count > 1 else "image",
        )
        for count in (8, 6, 1)
    ]
    return model.eval(), ChatEncoder(processor, "compact/1", video, tokens_per_second(model)), clips


def generation(tiny: Model, clip: int | None, text: str, n: int = 1, **sampling: float) -> Generation:
    _, encoder, clips = tiny
    shown = None if clip is None else clips[clip]
    turns = [Turn(role="user", text=text, kind=None if shown is None else shown.kind)]
    prompt = encoder.encode_chat(turns, shown)
    return Generation(prompt=prompt, clip=shown, clip_key=clip, sampling=Sampling(**sampling), n=n)  # type: ignore[arg-type]


def alone(tiny: Model, clip: int | None, text: str, n: int = 1, **sampling: float) -> list[list[int]]:
    """What `sample` gives for the prompt alone."""
    model, encoder, clips = tiny
    blind = clip is None
    prompt = (
        encoder.encode_blind(text, [], "free_form") if blind else encoder.encode(text, [], "free_form", clips[clip])
    )
    chosen = Sampling(**sampling)  # type: ignore[arg-type]
    return [c.token_ids for c in sample(model, encoder, [prompt], chosen, n=n, keys=[0], blind=blind)[0]]


def run(
    batch: ContinuousBatch, waiting: list[Generation], at_once: int = 2
) -> dict[tuple[Generation, int], list[Sampled]]:
    """Answer all; so many look for room in a round."""
    tokens: dict[tuple[Generation, int], list[Sampled]] = {}
    with inference(batch._model):
        while waiting or batch.rows:
            joined = batch.admit(waiting[:at_once])
            waiting = [generation for generation in waiting if generation not in joined]
            for token in batch.sample():
                tokens.setdefault((token.generation, token.index), []).append(token)
            batch.advance()
    return tokens


def ids(tokens: dict[tuple[Generation, int], list[Sampled]], which: Generation, index: int = 0) -> list[int]:
    return [token.token_id for token in tokens[which, index]]


def make(tiny: Model, rows: int = 6, max_bytes: int = 10**8) -> tuple[ContinuousBatch, PrefixCache]:
    cache = PrefixCache(max_bytes, 1000)
    return ContinuousBatch(tiny[0], tiny[1], cache, rows), cache


@pytest.mark.parametrize("max_bytes", [10**8, 0], ids=["cache", "no_cache"])
def test_each_gets_the_tokens_it_gets_alone(tiny: Model, max_bytes: int) -> None:
    questions = [
        (number % 3, "What moves " + "left " * number + "?", 1 + (number % 4 == 1), 5 + number, float(number % 2))
        for number in range(9)
    ]
    questions.append((None, "hello", 1, 6, 0.0))  # type: ignore[arg-type]
    batch, cache = make(tiny, max_bytes=max_bytes)
    asked = [
        generation(tiny, clip, text, n, max_new_tokens=length, temperature=heat, seed=7)
        for clip, text, n, length, heat in questions
    ]
    tokens = run(batch, asked)
    answers = set()
    for which, (clip, text, n, length, heat) in zip(asked, questions, strict=True):
        expected = alone(tiny, clip, text, n, max_new_tokens=length, temperature=heat, seed=7)
        assert [ids(tokens, which, index) for index in range(n)] == expected
        assert [token.finished for token in tokens[which, 0]][-1]
        answers |= {tuple(answer) for answer in expected}
    assert len(answers) > 6  # the control: the answers do differ
    assert cache.num_bytes <= max_bytes


def test_a_clip_is_read_once_and_a_follow_up_costs_its_own_tokens(tiny: Model) -> None:
    _, encoder, clips = tiny
    seen: list[int] = []
    hook = tiny[0].model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
    )
    batch, _ = make(tiny)
    first = generation(tiny, 0, "What moves?", max_new_tokens=8)
    same = generation(tiny, 0, "Which colour?", max_new_tokens=8)
    tokens = run(batch, [first, same])
    answer = encoder.decode(ids(tokens, first))
    turns = [
        Turn(role="user", text="What moves?", kind="video"),
        Turn(role="assistant", text=answer),
        Turn(role="user", text="Why?"),
    ]
    follow = Generation(
        prompt=encoder.encode_chat(turns, clips[0]), clip=clips[0], clip_key=0, sampling=Sampling(max_new_tokens=8)
    )
    cached = ids(run(batch, [follow]), follow)
    hook.remove()
    assert sum(seen) == int(first.prompt.grid_thw.prod())
    assert (first.cached_tokens, same.cached_tokens) == (0, first.prompt.vision_end)
    assert follow.cached_tokens >= len(first.prompt) - 1
    fresh, _ = make(tiny, max_bytes=0)
    again = Generation(prompt=follow.prompt, clip=clips[0], clip_key=0, sampling=Sampling(max_new_tokens=8))
    assert cached == ids(run(fresh, [again]), again)


def test_the_same_words_on_another_clip_are_read_anew(tiny: Model) -> None:
    batch, _ = make(tiny)
    first = generation(tiny, 0, "What moves?", max_new_tokens=4)
    other = Generation(prompt=first.prompt, clip=first.clip, clip_key="another caller's", sampling=first.sampling)
    run(batch, [first, other])
    assert other.cached_tokens == 0


def test_one_that_leaves_early_takes_nothing_from_the_others(tiny: Model) -> None:
    batch, _ = make(tiny)
    asked = [generation(tiny, 0, "What moves " + "left " * n + "?", max_new_tokens=9) for n in range(3)]
    tokens: dict[Generation, list[int]] = {}
    with inference(tiny[0]):
        batch.admit(asked)
        while batch.rows:
            for token in batch.sample():
                tokens.setdefault(token.generation, []).append(token.token_id)
            if len(tokens[asked[1]]) == 3:
                batch.drop(asked[1])
            batch.advance()
    assert len(tokens[asked[1]]) == 3
    for n in (0, 2):
        assert tokens[asked[n]] == alone(tiny, 0, "What moves " + "left " * n + "?", max_new_tokens=9)[0]


def test_log_probabilities_are_those_of_the_model(tiny: Model) -> None:
    batch, _ = make(tiny)
    asked = generation(tiny, 0, "What moves?", max_new_tokens=3)
    asked.top_logprobs = 2
    for token in run(batch, [asked])[asked, 0]:
        assert token.logprob is not None
        assert token.top[0] == (token.token_id, pytest.approx(token.logprob))  # greedy
        assert token.top[1][1] <= token.top[0][1] < 0


def test_broken_weights_end_the_answer_with_an_error(tiny: Model) -> None:
    batch, _ = make(tiny)
    head = tiny[0].lm_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head.fill_(float("nan"))
        try:
            [token] = run(batch, [asked := generation(tiny, 0, "What?", max_new_tokens=3)])[asked, 0]
        finally:
            head.copy_(before)
    assert "not finite" in (token.error or "")


def test_prefixes_are_bounded_in_bytes_and_time() -> None:
    clock = [0.0]
    cache = PrefixCache(5_000, 10, lambda: clock[0])

    def layers(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(1, 1, count, 8), torch.zeros(1, 1, count, 8))]

    for key in range(10):
        cache.add(key, torch.arange(20), layers(20))
        assert cache.num_bytes <= 5_000
    assert len(cache) == 3
    assert cache.longest(0, torch.arange(30), 10) is None
    head, count = cache.longest(9, torch.arange(30), 10) or (None, 0)
    assert count == 20
    child = cache.add(9, torch.arange(25), layers(5), head)
    assert cache.longest(9, torch.arange(30), 10) == (child, 25)
    assert child.layers(25)[0][0].shape[2] == 25
    longer = cache.add(9, torch.arange(28), layers(8), head)  # in place of the child, which it continues
    assert cache.longest(9, torch.arange(30), 10) == (longer, 28)
    assert len(cache) <= 4
    assert cache.longest(9, torch.tensor([5, 6, 7]), 1) is None
    clock[0] = 11.0
    cache.expire()
    assert (len(cache), cache.num_bytes) == (0, 0)
