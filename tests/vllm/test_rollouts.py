"""Rollouts in vLLM are the policy's: same tokens, same log-probabilities, present weights. Played and real."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.model.generation import sample
from vthink.components.grpo.vllm.server import VLLMServers, _Server
from vthink.tests.vllm.subject import GREEDY, Item, Subject

ORDER = [3, 1, 7, 0, 2, 6, 5, 4]
STEPS = itertools.count(1)


@pytest.fixture
def steps() -> Callable[[], int]:
    """Numbers of steps that were never used before, so that weights move."""

    def step() -> int:
        return next(STEPS)

    return step


def test_48_items_get_the_tokens_and_log_probabilities_of_our_own_engine(subject: Subject, items: list[Item]) -> None:
    prompts = [item.prompt for item in items]
    ours = [group[0].token_ids for group in sample(subject.model, subject.encoder, prompts, GREEDY)]
    completions = [group[0] for group in subject.generate(prompts, sampling=GREEDY)]
    assert len(prompts) == 48
    assert [completion.token_ids for completion in completions] == ours
    assert max(map(subject.gap, prompts, completions)) < 1e-4
    # the answers tell the clips apart
    assert len({tuple(ids) for ids in ours}) > 24


def test_groups_of_different_size_come_in_one_call_each_on_its_own_pixels(subject: Subject, items: list[Item]) -> None:
    clip, prompt = items[0].clip, items[0].prompt
    shuffled = subject.encoder.with_clip(prompt, clip.permuted(ORDER))
    groups = subject.generate([prompt, shuffled, items[1].prompt], [8, 4, 2])
    assert [len(group) for group in groups] == [8, 4, 2]
    for seen, group in zip([prompt, shuffled, items[1].prompt], groups, strict=True):
        assert max(subject.gap(seen, completion) for completion in group) < 1e-4
    assert len({tuple(completion.token_ids) for completion in groups[0]}) > 1
    assert min(subject.gap(prompt, completion) for completion in groups[1]) > 1e-2
    again = subject.generate([prompt, shuffled, items[1].prompt], [8, 4, 2])
    ids = [[completion.token_ids for completion in group] for group in groups]
    assert [[completion.token_ids for completion in group] for group in again] == ids


def test_new_weights_change_the_output_and_the_old_ones_restore_it(
    subject: Subject, items: list[Item], steps: Callable[[], int]
) -> None:
    prompts = [item.prompt for item in items[:4]]

    def tokens() -> list[list[int]]:
        completions = [group[0] for group in subject.generate(prompts, step=steps(), sampling=GREEDY)]
        assert max(map(subject.gap, prompts, completions)) < 1e-4
        return [completion.token_ids for completion in completions]

    before = tokens()
    subject.scale(1.3)
    try:
        changed = tokens()
        # the check can fail: without a new step nothing is sent
        subject.scale(1 / 1.3)
        stale = subject.generate(prompts, step=subject.engine._weights_of_step, sampling=GREEDY)  # type: ignore[arg-type]
        assert max(subject.gap(p, group[0]) for p, group in zip(prompts, stale, strict=True)) > 1e-2
        subject.scale(1.3)
    finally:
        subject.scale(1 / 1.3)
    assert changed != before
    assert tokens() == before


def test_cached_prompts_that_are_not_forgotten_answer_from_old_weights(
    subject: Subject, items: list[Item], steps: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # vLLM caches whole blocks of 128 tokens
    prompt = subject.encoder.encode("Left? " * 150, ["a", "b"], "multiple_choice", items[2].clip)
    subject.generate([prompt], step=steps())
    _keep(subject, "prefix", monkeypatch)
    subject.scale(1.3)
    try:
        ((stale,),) = subject.generate([prompt], step=steps())
        assert subject.gap(prompt, stale) > 1e-3
    finally:
        subject.scale(1 / 1.3)
        monkeypatch.undo()
        ((fresh,),) = subject.generate([prompt], step=steps())
    assert subject.gap(prompt, fresh) < 1e-4


def test_vision_features_that_only_the_worker_has_forgotten_end_the_played_engine(
    subject: Subject, items: list[Item], steps: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they end the real one (seen with 0.32), which would have to be started again."""
    if subject.part == "real":
        return
    subject.generate([items[2].prompt], step=steps())
    _keep(subject, "encoder", monkeypatch)
    with pytest.raises((UserError, RuntimeError), match="Encoder cache miss"):
        subject.generate([items[2].prompt], step=steps())
    monkeypatch.undo()
    subject.generate([items[2].prompt], step=steps())


def _keep(subject: Subject, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one of vLLM's caches be forgotten no more."""
    vllm: Any = subject.engine.vllm
    if subject.mode == "server":
        call = _Server.call
        path = f"/reset_{cache}_cache"
        monkeypatch.setattr(_Server, "call", lambda self, m, p, **body: None if p == path else call(self, m, p, **body))
    elif cache == "prefix":
        monkeypatch.setattr(vllm._engine, "reset_prefix_cache", lambda: True)
    else:
        monkeypatch.setattr(vllm._engine.llm_engine, "reset_encoder_cache", lambda: None)


def test_a_prompt_longer_than_the_context_is_refused_in_one_line(subject: Subject, items: list[Item]) -> None:
    encoder, clip = subject.encoder, items[0].clip
    long = encoder.encode("Left? " * 900, ["a", "b"], "multiple_choice", clip)
    with pytest.raises(UserError, match=r"longer than|maximum") as error:
        subject.generate([items[0].prompt, long])
    assert "\n" not in str(error.value)
    assert len(subject.generate([items[0].prompt])) == 1


def test_a_chat_request_before_and_after_a_sync_is_answered(
    subject: Subject, files: list[Path], items: list[Item], steps: Callable[[], int]
) -> None:
    """V9: the worker emptied its cache of vision features, the scheduler counted on them, and the engine died."""
    if subject.mode != "server":
        return
    image = base64.b64encode(files[1].read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": "?"},
    ]
    request = {"model": "policy", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
    answers = []
    for _ in range(2):
        response = httpx.post(f"{subject.urls[0]}/v1/chat/completions", json=request, timeout=60)
        assert response.status_code == 200, response.text
        answers.append(response.json()["choices"][0]["message"]["content"])
        subject.generate([items[0].prompt], step=steps())
    assert answers[0] == answers[1]


def test_several_servers_take_turns_with_the_same_weights(
    subject: Subject, items: list[Item], monkeypatch: Any
) -> None:
    if subject.mode != "server":
        return
    weights = subject.engine.vllm._weights  # type: ignore[attr-defined]
    servers = VLLMServers(subject.urls * 2, weights, None)  # one that is asked under two names
    calls: list[int] = []
    for number, server in enumerate(servers._servers):
        generate = type(server).generate
        monkeypatch.setattr(server, "_number", number, raising=False)
    monkeypatch.setattr(
        type(server), "generate", lambda self, request: calls.append(self._number) or generate(self, request)
    )
    engine = type(subject.engine)(servers, subject.encoder, subject.engine.patch_dtype)
    with engine.policy(0):
        groups = engine.generate([item.prompt for item in items[:4]], GREEDY, [1] * 4, list(range(4)))
    assert sorted(calls) == [0, 0, 1, 1]
    assert max(subject.gap(item.prompt, group[0]) for item, group in zip(items, groups, strict=False)) < 1e-4
