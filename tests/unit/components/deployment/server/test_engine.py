"""The model in service: a thread with a running batch, around a tiny, untrained Qwen2.5-VL."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.load import LoadedModel, tokens_per_second
from vthink.components.common.model.prompt import BlindInputError
from vthink.components.common.model.prompts import Turn
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.server.completion import GeneratedAnswer, Piece
from vthink.components.deployment.server.engine import Job, ServedModel
from vthink.components.deployment.server.exchange import ApiError
from vthink.components.deployment.server.request import ChatQuestion

VIDEO = VideoConfig()
KEY: Any = ("", "digest", "video", None, None)


@pytest.fixture(scope="module")
def served() -> Iterator[ServedModel]:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    encoder = ChatEncoder(processor, "compact/1", VIDEO, tokens_per_second(model))
    loaded = LoadedModel(model.eval(), encoder, ModelCard(prompt="compact/1", video=VIDEO), folder=None)  # type: ignore[arg-type]
    engine = ServedModel(loaded, max_batch=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def clip() -> Clip:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 56, 56, 3), dtype=np.uint8)
    return Clip(pixels, np.arange(6) / 2, 3.0, "video")


def question(text: str = "What moves?", **more: Any) -> ChatQuestion:
    turns = more.pop("turns", (Turn(role="user", text=text, kind="video"),))
    return ChatQuestion(turns=turns, media_kind="video", **{"max_new_tokens": 12, **more})


def ask(served: ServedModel, clip: Clip | None, asked: ChatQuestion) -> tuple[Job, queue.Queue[Any]]:
    items: queue.Queue[Any] = queue.Queue()
    return served.submit(asked, clip, KEY if clip is not None else None, items.put), items


def answer(items: queue.Queue[Any]) -> tuple[GeneratedAnswer, list[Piece]]:
    pieces = []
    while not isinstance(item := items.get(timeout=60), GeneratedAnswer):
        if isinstance(item, Exception):
            raise item
        pieces.append(item)
    return item, pieces


def expected(served: ServedModel, clip: Clip, text: str, n: int = 1, **sampling: Any) -> list[tuple[int, ...]]:
    loaded = served.loaded
    prompt = loaded.encoder.encode(text, [], "free_form", clip)
    chosen = Sampling(**{"max_new_tokens": 12, **sampling})
    [completions] = sample(loaded.model, loaded.encoder, [prompt], chosen, n=n, keys=[0])
    return [tuple(completion.token_ids) for completion in completions]


def test_many_at_once_get_the_answers_of_one_at_a_time_in_pieces(served: ServedModel, clip: Clip) -> None:
    texts = ["What moves " + "left " * number + "?" for number in range(9)]
    waiting = [ask(served, clip, question(text))[1] for text in texts]  # more than there is room for
    for text, items in zip(texts, waiting, strict=True):
        whole, pieces = answer(items)
        assert whole.choices[0].token_ids == expected(served, clip, text)[0]
        assert "".join(piece.text for piece in pieces) == whole.choices[0].text
        assert whole.choices[0].finish_reason == "length"
    assert answer(ask(served, clip, question(texts[0]))[1])[0].cached_tokens > 0


def test_several_sampled_answers_are_each_their_own(served: ServedModel, clip: Clip) -> None:
    whole, pieces = answer(ask(served, clip, question(n=3, temperature=1.0, seed=5))[1])
    tokens = [choice.token_ids for choice in whole.choices]
    assert tokens == expected(served, clip, "What moves?", 3, temperature=1.0, seed=5)
    assert len(set(tokens)) == 3
    for index, choice in enumerate(whole.choices):
        assert "".join(piece.text for piece in pieces if piece.index == index) == choice.text


def test_a_stop_text_ends_the_answer_before_it(served: ServedModel, clip: Clip) -> None:
    free = answer(ask(served, clip, question())[1])[0].choices[0]
    stop = free.text[len(free.text) // 2 :][:3]
    whole, pieces = answer(ask(served, clip, question(stop=(stop, "never there")))[1])
    assert whole.choices[0].text == free.text[: free.text.index(stop)]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "stop"
    assert len(whole.choices[0].token_ids) < len(free.token_ids)


def test_log_probabilities_come_with_the_tokens(served: ServedModel, clip: Clip) -> None:
    whole, pieces = answer(ask(served, clip, question(top_logprobs=2))[1])
    told = [token for piece in pieces for token in piece.logprobs]
    assert len(told) == len(whole.choices[0].token_ids) == len(whole.choices[0].logprobs)
    assert all(token.logprob <= 0 and len(token.top) == 2 and token.top[0].text == token.text for token in told)


def test_words_alone_and_a_follow_up(served: ServedModel, clip: Clip) -> None:
    alone = question(turns=(Turn(role="user", text="Hello?"),))
    assert answer(ask(served, None, alone)[1])[0].choices[0].token_ids
    first = answer(ask(served, clip, question("Who?"))[1])[0]
    turns = (
        Turn(role="user", text="Who?", kind="video"),
        Turn(role="assistant", text=first.choices[0].text),
        Turn(role="user", text="Why?"),
    )
    follow = answer(ask(served, clip, question(turns=turns))[1])[0]
    assert follow.cached_tokens >= len(first.prompt_token_ids) - 1


def test_what_is_cancelled_stops_and_leaves_its_place(served: ServedModel, clip: Clip) -> None:
    jobs = [ask(served, clip, question(max_new_tokens=5000, temperature=1.0, seed=n)) for n in range(6)]
    jobs[0][1].get(timeout=60)
    for job, _ in jobs:
        job.cancel()
    assert answer(ask(served, clip, question())[1])[0].choices[0].token_ids == expected(served, clip, "What moves?")[0]
    assert not served._jobs


def test_a_prompt_that_cannot_be_read_does_not_harm_the_others(served: ServedModel, clip: Clip) -> None:
    first = ask(served, clip, question(max_new_tokens=40))[1]
    real = served.loaded.encoder.encode_chat
    served.loaded.encoder.encode_chat = lambda turns, _: real(turns, clip)  # type: ignore[method-assign]
    other = Clip(clip.frames[:2], clip.times_s[:2], 1.0, "video")  # its frames are not its prompt's
    items: queue.Queue[Any] = queue.Queue()
    served.submit(question("How?"), other, ("", "other", "video", None, None), items.put)
    good = ask(served, clip, question("Where?"))[1]
    del served.loaded.encoder.encode_chat  # type: ignore[attr-defined]
    with pytest.raises(BlindInputError, match="the prompt was made for"):
        answer(items)
    assert answer(first)[0].choices[0].token_ids
    assert answer(good)[0].choices[0].token_ids == expected(served, clip, "Where?")[0]


def test_a_prompt_longer_than_the_context_is_a_400_with_numbers_and_a_long_answer_is_shortened(
    served: ServedModel, clip: Clip
) -> None:
    served_len, served.max_model_len = served.max_model_len, 64
    try:
        with pytest.raises(ApiError, match="more than the model's 64"):
            ask(served, clip, question("left " * 100))
        job, items = ask(served, clip, question(max_new_tokens=500))
        assert "the answer has room for" in job.notes[0]
        whole, _ = answer(items)
        assert len(whole.prompt_token_ids) + len(whole.choices[0].token_ids) <= 64
    finally:
        served.max_model_len = served_len


def test_users_questions_are_not_kept_as_texts(served: ServedModel, clip: Clip) -> None:
    answer(ask(served, clip, question("a secret"))[1])
    assert served.loaded.encoder._tokenize.cache_info().currsize == 0


def test_failing_model_fails_what_runs_and_not_what_comes_later(
    served: ServedModel, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(type(served._batch), "advance", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            answer(ask(served, clip, question())[1])
    assert answer(ask(served, clip, question())[1])[0].choices[0].token_ids == expected(served, clip, "What moves?")[0]
    assert torch.is_grad_enabled()
