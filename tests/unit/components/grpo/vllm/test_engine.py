"""Rollouts in vLLM.

vLLM pins versions that other parts of the environment do not admit, so it is not installed here, and most tests give
`VLLMEngine` a fake that plays its interface. The tests in `TestWithVLLM` run the real engine where ``import vllm``
works, on a CPU too (checked with vLLM 0.31: ``python -m pytest tests/unit/components/grpo/vllm/test_engine.py``).
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.grpo.vllm import engine as engine_module
from vthink.components.grpo.vllm import request as request_module
from vthink.components.grpo.vllm.answer import SampledCompletion
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.request import Request
from vthink.tests.unit.components.grpo.vllm.prompts import (
    FAMILIES,
    ORDER,
    SAMPLING,
    ask,
    build,
    clip_of,
    prompt_of,
    run,
)


class FakeVLLM:
    """Plays TRL's ``VLLMGeneration`` around a ``vllm.LLM`` in this process, as far as `VLLMEngine` uses them."""

    mode, tensor_parallel_size, enable_sleep_mode = "colocate", 1, False
    longest = 10_000

    def __init__(self, answer: Callable[[Request], Any], **settings: Any) -> None:
        self.answer, self.waiting, self.events = answer, [], []
        self.asked: list[Request] = []
        self.model = torch.nn.Linear(1, 1)
        self.__dict__ |= {name: settings.pop(name) for name in list(settings) if hasattr(type(self), name)}
        multimodal = SimpleNamespace(mm_device_do_normalize=False)
        model = {"multimodal_config": multimodal, "logprobs_mode": "processed_logprobs"} | settings
        self.llm = self.llm_engine = self
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(**model))

    def sync_weights(self) -> None:
        self.events.append("sync")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {' '.join(tags)}")

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def add_request(self, name: str, prompt: Request, params: None) -> None:
        if len(prompt.token_ids) > self.longest:
            raise ValueError("longer than the maximum model length")
        self.asked.append(prompt)
        self.waiting.append((name, prompt))

    def abort_request(self, names: list[str]) -> None:
        self.waiting = [(name, prompt) for name, prompt in self.waiting if name not in names]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        name, prompt = self.waiting.pop()  # the last one first: vLLM answers in the order in which they end
        output = self.answer(prompt)
        output.request_id, output.finished = name, True
        return [output]


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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeVLLM]:
    """The fake takes requests as they are, where vLLM has types of its own."""
    monkeypatch.setattr(engine_module, "engine_request", lambda asked: (asked, None))
    return FakeVLLM


def test_completions_come_back_in_order_with_their_log_probabilities(
    encoder: ChatEncoder, fake: type[FakeVLLM]
) -> None:
    clip = clip_of(encoder)
    first, second = prompt_of(encoder, clip), prompt_of(encoder, clip_of(encoder, seed=1))
    eos = encoder.eos_token_id

    def answer(asked: Request) -> Any:
        mark = 90 + (asked.sampling["seed"] == ask(encoder, second, key=1).sampling["seed"])
        shuffled = output(asked.token_ids, ([mark, 20, eos], "stop"), ([mark, 21] * 6, "length"))
        shuffled.outputs.reverse()
        return shuffled

    groups = run(fake(answer), encoder, [first, second])
    assert [[completion.token_ids[0] for completion in group] for group in groups] == [[90, 90], [91, 91]]
    completion = groups[1][0]
    assert completion == SampledCompletion(
        token_ids=[91, 20, eos],
        text=encoder.decode([91, 20, eos]),
        finish_reason="stop",
        log_probs=[-0.91, -0.20, -eos / 100],
    )
    assert [completion.finish_reason for completion in groups[0]] == ["stop", "length"]


def test_an_empty_completion_stays_one(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    engine = fake(lambda asked: output(asked.token_ids, ([], "stop"), ([9], "length")))
    ((empty, other),) = run(engine, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert (empty.token_ids, empty.log_probs, empty.text) == ([], [], "")
    assert other.token_ids == [9]


def test_another_prompt_than_the_trainers_is_refused(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    # one vision token fewer, as another resize would give
    place = int(prompt.mm_token_type_ids.nonzero()[0])
    engine = fake(
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
    encoder: ChatEncoder, fake: type[FakeVLLM], completions: list, message: str
) -> None:
    engine = fake(lambda asked: output(asked.token_ids, *completions))
    with pytest.raises(UserError) as error:
        run(engine, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert message in str(error.value)


def test_a_completion_of_vision_tokens_and_a_log_probability_that_is_no_number_are_refused(
    encoder: ChatEncoder, fake: type[FakeVLLM]
) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    engine = fake(lambda asked: output(asked.token_ids, ([9, encoder.video_token_id], "stop"), ([9], "stop")))
    with pytest.raises(UserError, match="vision tokens"):
        run(engine, encoder, [prompt])

    def not_a_number(asked: Request) -> Any:
        answer = output(asked.token_ids, ([9, 10], "stop"), ([9], "stop"))
        answer.outputs[0].logprobs[1][10].logprob = float("nan")
        return answer

    with pytest.raises(UserError, match="not a log-probability for each"):
        run(fake(not_a_number), encoder, [prompt])
    # what a server writes where it has none
    engine = fake(lambda asked: output(asked.token_ids, ([9, 999_900], "stop"), ([9], "stop")))
    with pytest.raises(UserError, match="not a log-probability for each"):
        run(engine, encoder, [prompt])


def test_a_prompt_that_vllm_refuses_leaves_nothing_behind(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    clip = clip_of(encoder)
    short, long = (encoder.encode("Left? " * count, ["a", "b"], "multiple_choice", clip) for count in (1, 50))
    engine = fake(lambda asked: output(asked.token_ids, ([9], "stop"), ([9], "stop")), longest=len(short))
    with pytest.raises(UserError, match=f"refused a prompt of {len(long)} tokens: ValueError: longer than"):
        run(engine, encoder, [short, long])
    assert not engine.waiting
    assert len(run(engine, encoder, [short])) == 1


def test_weights_move_once_per_step_and_change_every_cache_key(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    engine = fake(lambda asked: output(asked.token_ids, ([9], "stop")))
    rollouts = VLLMEngine(engine, encoder)
    prompt = prompt_of(encoder, clip_of(encoder))
    with pytest.raises(UserError, match="policy"):
        rollouts.generate([prompt], SAMPLING)
    for step in (0, 0, 1):
        with rollouts.policy(step):
            rollouts.generate([prompt], SAMPLING)
    assert engine.events == ["sync", "sync"]
    first, again, later = engine.asked
    assert first.cache_salt == again.cache_salt != later.cache_salt
    assert first.items[0].key == again.items[0].key != later.items[0].key


def test_an_engine_that_slept_gets_its_weights_again(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    engine = fake(lambda asked: output(asked.token_ids, ([9], "stop")), enable_sleep_mode=True)
    rollouts = VLLMEngine(engine, encoder)
    for _ in range(2):
        with rollouts.policy(0):
            rollouts.generate([prompt_of(encoder, clip_of(encoder))], SAMPLING)
    assert engine.events == ["sync", "wake kv_cache", "sleep 2"] * 2


def test_settings_that_would_give_wrong_rollouts_are_refused(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    with pytest.raises(UserError, match="vllm_tensor_parallel_size is 2"):
        VLLMEngine(fake(output, tensor_parallel_size=2), encoder)
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        VLLMEngine(fake(output, logprobs_mode="raw_logprobs"), encoder)


# -- the real engine --------------------------------------------------------------------------------------------------

if importlib.util.find_spec("vllm") is not None:

    class InThisProcess:
        """A real ``vllm.LLM`` as TRL's ``VLLMGeneration`` holds it, on the CPU."""

        mode, tensor_parallel_size, enable_sleep_mode = "colocate", 1, False

        def __init__(self, model: Any, folder: Path) -> None:
            os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
            from vllm import LLM

            self.model = model
            self.llm = LLM(
                model=str(folder),
                dtype="float32",
                enforce_eager=True,
                max_model_len=1024,
                max_num_batched_tokens=2048,
                max_num_seqs=16,
                logprobs_mode="processed_logprobs",
            )

        def sync_weights(self) -> None:
            weights = ((name, parameter.data) for name, parameter in self.model.named_parameters())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    @pytest.fixture(scope="module", params=list(FAMILIES))
    def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
        model, processor, encoder = build(request.param)
        folder = tmp_path_factory.mktemp(request.param)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return VLLMEngine(InThisProcess(model, folder), encoder)

    @torch.no_grad()
    def gap(rollouts: VLLMEngine, prompt: EncodedPrompt, completion: SampledCompletion) -> float:
        """Largest difference of a token's log-probability to the trainer's on ``prompt``."""
        encoder, ids = rollouts.encoder, torch.tensor(completion.token_ids)
        batch = encoder.collate([prompt], [completion.token_ids])
        logits = rollouts.generation.model(**batch).logits[0, len(prompt) - 1 : -1].float()
        logits[:, encoder.vision_token_ids] -= 100
        ours = torch.log_softmax(logits / SAMPLING.temperature, -1).gather(-1, ids[:, None])[:, 0]
        return float((ours - torch.tensor(completion.log_probs)).abs().max())

    class TestWithVLLM:
        @pytest.mark.parametrize("kind", ["video", "image"])
        def test_its_log_probabilities_are_the_trainers(self, real: VLLMEngine, kind: str) -> None:
            prompt = prompt_of(real.encoder, clip_of(real.encoder, kind))
            other = prompt_of(real.encoder, clip_of(real.encoder, kind, seed=1))
            with real.policy(0):
                groups = real.generate([prompt, other], SAMPLING, 4)
                again = real.generate([other, prompt], SAMPLING, 4, keys=[1, 0])
            # not the log-probabilities to the last bit: what was cached is not computed again in the same batch
            sampled = [[completion.token_ids for completion in group] for group in groups]
            assert [[completion.token_ids for completion in group] for group in again] == sampled[::-1]
            assert len({tuple(token_ids) for token_ids in sampled[0]}) > 1
            assert max(gap(real, prompt, completion) for completion in groups[0]) < 1e-4
            assert max(gap(real, other, completion) for completion in groups[1]) < 1e-4
            assert min(gap(real, other, completion) for completion in groups[0]) > 1e-2

        def test_shuffled_frames_are_seen_shuffled_and_would_not_be_under_the_ordered_ones_key(
            self, real: VLLMEngine, monkeypatch: pytest.MonkeyPatch
        ) -> None:
            clip = clip_of(real.encoder, seed=2)
            ordered = prompt_of(real.encoder, clip)
            shuffled = real.encoder.with_clip(ordered, clip.permuted(ORDER))
            with real.policy(0):
                ((first,), (second,)) = real.generate([ordered, shuffled], SAMPLING)
                assert gap(real, ordered, first) < 1e-4
                assert gap(real, shuffled, second) < 1e-4 < 1e-2 < gap(real, ordered, second)
                # Negative control: one key for both, and vLLM answers from the features of the frames in order.
                items = request_module._vision_items
                keys = [item.key for item in items(ordered, real.encoder, "same", torch.float32)]
                monkeypatch.setattr(
                    request_module,
                    "_vision_items",
                    lambda *arguments: [
                        replace(item, key=key) for item, key in zip(items(*arguments), keys, strict=True)
                    ],
                )
                real.generate([ordered], SAMPLING)
                ((blind,),) = real.generate([shuffled], SAMPLING)
            assert gap(real, ordered, blind) < 1e-4 < 1e-2 < gap(real, shuffled, blind)

        def test_new_weights_are_used_and_nothing_of_the_old_ones_is(self, real: VLLMEngine) -> None:
            prompt = prompt_of(real.encoder, clip_of(real.encoder, seed=3))
            with real.policy(0):
                real.generate([prompt], SAMPLING)
            with torch.no_grad():
                for parameter in real.engine.model.parameters():
                    parameter.mul_(1.1)
            with real.policy(1):
                salt = real._salt
                ((fresh,),) = real.generate([prompt], SAMPLING)
                real.engine.sync_weights()
                assert gap(real, prompt, fresh) < 1e-4
                with torch.no_grad():
                    for parameter in real.engine.model.parameters():
                        parameter.div_(1.1)
                real.engine.sync_weights()
                # Negative control: weights that change without the salt are answered from what is cached.
                assert real._salt == salt
                ((stale,),) = real.generate([prompt], SAMPLING)
                assert gap(real, prompt, stale) > 1e-3
            with real.policy(2):
                ((fresh,),) = real.generate([prompt], SAMPLING)
                assert gap(real, prompt, fresh) < 1e-4

        def test_a_prompt_longer_than_the_context_is_refused_by_name(self, real: VLLMEngine) -> None:
            clip = clip_of(real.encoder)
            short, long = (real.encoder.encode("Left? " * n, ["a", "b"], "multiple_choice", clip) for n in (1, 600))
            with real.policy(0):
                with pytest.raises(UserError, match=r"refused a prompt of .* tokens: VLLMValidationError"):
                    real.generate([short, long], SAMPLING)
                assert len(real.generate([short], SAMPLING)) == 1

        def test_normalising_twice_is_seen_in_the_gap(self, real: VLLMEngine) -> None:
            prompt = prompt_of(real.encoder, clip_of(real.encoder, seed=4))
            if not real._normalises:
                assert real.encoder.family.time_in_text
                return
            real._normalises = False
            try:
                with real.policy(3):
                    ((twice,),) = real.generate([prompt], SAMPLING)
            finally:
                real._normalises = True
            assert gap(real, prompt, twice) > 1e-2

        def test_the_body_for_a_server_is_read_back_by_vllm_as_it_was(self, encoder: ChatEncoder) -> None:
            from vllm.entrypoints.scale_out.token_in_token_out.mm_features import mm_kwargs_from_features
            from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

            prompt = prompt_of(encoder, clip_of(encoder))
            asked = ask(encoder, prompt)
            body = GenerateRequest.model_validate(json.loads(json.dumps(request_module.server_payload(asked))))
            assert body.token_ids == prompt.input_ids.tolist()
            assert body.sampling_params.logit_bias == asked.sampling["logit_bias"]
            assert (body.sampling_params.n, body.sampling_params.seed) == (3, asked.sampling["seed"])
            assert body.features is not None
            ((modality, items),) = mm_kwargs_from_features(body.features).items()
            assert [(p.offset, p.length) for p in body.features.mm_placeholders[modality]] == [
                (item.offset, item.length) for item in asked.items
            ]
            for item, theirs in zip(asked.items, items, strict=True):
                assert theirs is not None
                for name, tensor in item.fields().items():
                    assert theirs[name].data.dtype == tensor.dtype
                    assert torch.equal(theirs[name].data, tensor)
