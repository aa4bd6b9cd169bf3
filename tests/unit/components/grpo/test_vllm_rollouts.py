"""Rollouts in vLLM.

vLLM pins versions that other parts of the environment do not admit, so it is not installed here, and most tests give
`VLLMRollouts` a fake that plays its interface. The tests in `TestWithVLLM` run the real engine where ``import vllm``
works, on a CPU too (checked with vLLM 0.31: ``python -m pytest tests/unit/components/grpo/test_vllm_rollouts.py``).
"""

import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.positions import patchify
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.vllm import request as request_module
from vthink.components.grpo.vllm import rollouts as rollouts_module
from vthink.components.grpo.vllm.answer import PromptMismatchError, SampledCompletion
from vthink.components.grpo.vllm.importance import importance_weights
from vthink.components.grpo.vllm.request import Request, RolloutError, request
from vthink.components.grpo.vllm.rollouts import VLLMRollouts

FAMILIES = {"qwen2_5_vl": 28, "qwen3_vl": 32}
SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
ORDER = [3, 1, 7, 0, 2, 6, 5, 4]


def build(family: str) -> tuple[Any, Any, ChatEncoder]:
    """Model, processor and encoder; heads of 32, the smallest that vLLM's CPU kernels take."""
    video = VideoConfig(size_multiple=FAMILIES[family])
    tiny = TinyModelConfig(family=family, hidden_size=128, num_heads=4, initializer_range=0.08)  # type: ignore[arg-type]
    model, processor = build_tiny(tiny, video, 0)
    return model.eval(), processor, ChatEncoder(processor, "compact/1", video, tokens_per_second(model))


@pytest.fixture(scope="module", params=list(FAMILIES))
def encoder(request: pytest.FixtureRequest) -> ChatEncoder:
    return build(request.param)[2]


def clip_of(encoder: ChatEncoder, kind: str = "video", seed: int = 0) -> Clip:
    side, frames = encoder.video.size_multiple * 2, 8 if kind == "video" else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, side, side + side // 2, 3), dtype=np.uint8)
    # 0.7 s per temporal patch: neither float32 nor bfloat16 hold it exactly
    return Clip(pixels, np.arange(frames) * 0.35, frames * 0.35 if kind == "video" else 0.0, kind)  # type: ignore[arg-type]


def prompt_of(encoder: ChatEncoder, clip: Clip) -> EncodedPrompt:
    return encoder.encode("Which way does the square move?", ["left", "right"], "multiple_choice", clip)


def ask(encoder: ChatEncoder, prompt: EncodedPrompt, key: int = 1, **changes: Any) -> Request:
    arguments = {"n": 3, "salt": "weights-1", "dtype": torch.float32} | changes
    return request(prompt, encoder, SAMPLING, key=key, **arguments)


# -- the request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_request_is_the_trainers_own_tokens_and_patches(encoder: ChatEncoder, kind: str) -> None:
    prompt = prompt_of(encoder, clip_of(encoder, kind))
    asked = ask(encoder, prompt)
    assert asked.token_ids == prompt.input_ids.tolist()
    assert torch.equal(torch.cat([item.patches for item in asked.items]), prompt.pixel_values)
    covered = [position for item in asked.items for position in range(item.offset, item.offset + item.length)]
    assert covered == prompt.mm_token_type_ids.nonzero()[:, 0].tolist()
    for item in asked.items:
        assert item.length * encoder.merge**2 == int(item.grid_thw.prod()) == len(item.patches)


def test_qwen2_5_vl_gets_one_video_with_its_time_and_qwen3_vl_one_image_per_time_that_it_reads(
    encoder: ChatEncoder,
) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    items = ask(encoder, prompt).items
    if encoder.timestamps:
        assert [item.modality for item in items] == ["image"] * 4
        assert set(items[0].fields()) == {"pixel_values", "image_grid_thw"}
        assert items[0].fields()["image_grid_thw"].tolist() == [1, *prompt.grid_thw[1:].tolist()]
    else:
        (item,) = items
        fields = item.fields()
        assert set(fields) == {"pixel_values_videos", "video_grid_thw", "second_per_grid_ts"}
        assert torch.equal(fields["video_grid_thw"], prompt.grid_thw)
        assert fields["second_per_grid_ts"].item() == prompt.second_per_grid_s == pytest.approx(0.7)


def test_bytes_for_a_vllm_that_normalises_are_exactly_the_frames(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    prompt = prompt_of(encoder, clip)
    if encoder.normalisation["image"] != encoder.normalisation["video"]:
        with pytest.raises(RolloutError, match="mm_device_do_normalize"):
            ask(encoder, prompt, dtype=torch.uint8)
        return
    untouched, _ = patchify(clip.frames, [0.0] * 3, [1 / 255] * 3, encoder.patch, encoder.merge, encoder.temporal_patch)
    (item,) = ask(encoder, prompt, dtype=torch.uint8).items
    assert item.patches.dtype == torch.uint8
    assert torch.equal(item.patches.float(), untouched.round())


def test_a_shuffled_clip_has_keys_and_patches_of_its_own(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    ordered = ask(encoder, prompt_of(encoder, clip))
    shuffled = ask(encoder, encoder.with_clip(prompt_of(encoder, clip), clip.permuted(ORDER)))
    assert shuffled.token_ids == ordered.token_ids
    assert not {item.key for item in shuffled.items} & {item.key for item in ordered.items}
    for one, other in zip(ordered.items, shuffled.items, strict=True):
        assert not torch.equal(one.patches, other.patches)


def test_keys_depend_on_pixels_time_and_weights(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    prompt = prompt_of(encoder, clip)
    key = ask(encoder, prompt).items[0].key
    assert ask(encoder, prompt_of(encoder, clip)).items[0].key == key
    assert ask(encoder, prompt, salt="weights-2").items[0].key != key
    # The same frames over more seconds: the features are the same, but the positions in the cached prefix are not.
    slower = replace(prompt, second_per_grid_s=1.4)
    assert (ask(encoder, slower).items[0].key != key) is (not encoder.timestamps)


def test_the_same_seed_and_key_give_the_same_request_and_others_another_seed(encoder: ChatEncoder) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    first, again, other = ask(encoder, prompt), ask(encoder, prompt), ask(encoder, prompt, key=2)
    assert first.sampling == again.sampling
    # vLLM seeds completion i with seed + i: groups must not overlap.
    assert abs(first.sampling["seed"] - other.sampling["seed"]) > 1000
    reseeded = request(prompt, encoder, replace(SAMPLING, seed=6), 3, 1, "weights-1", torch.float32)
    assert reseeded.sampling["seed"] != first.sampling["seed"]


def test_only_the_end_of_turn_ends_a_completion_and_vision_tokens_are_suppressed(encoder: ChatEncoder) -> None:
    sampling = ask(encoder, prompt_of(encoder, clip_of(encoder))).sampling
    assert sampling["stop_token_ids"] == [encoder.eos_token_id]
    assert sampling["ignore_eos"]
    assert set(sampling["logit_bias"]) == set(encoder.vision_token_ids)
    assert (sampling["n"], sampling["max_tokens"], sampling["logprobs"]) == (3, 12, 0)


# -- the engine, played by a fake -------------------------------------------------------------------------------------


class FakeVLLM:
    """Plays TRL's ``VLLMGeneration`` around a ``vllm.LLM`` in this process, as far as `VLLMRollouts` uses them."""

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
    monkeypatch.setattr(rollouts_module, "engine_request", lambda asked: (asked, None))
    return FakeVLLM


def run(engine: FakeVLLM, encoder: ChatEncoder, prompts: list[EncodedPrompt], n: int = 2) -> list:
    rollouts = VLLMRollouts(engine, encoder)
    with rollouts.policy(0):
        return rollouts.generate(prompts, SAMPLING, n, keys=list(range(len(prompts))))


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
    with pytest.raises(PromptMismatchError, match=rf"{len(prompt) - 1} tokens, the trainer's has {len(prompt)}"):
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
    with pytest.raises(RolloutError) as error:
        run(engine, encoder, [prompt_of(encoder, clip_of(encoder))])
    assert message in str(error.value)


def test_a_completion_of_vision_tokens_and_a_log_probability_that_is_no_number_are_refused(
    encoder: ChatEncoder, fake: type[FakeVLLM]
) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    engine = fake(lambda asked: output(asked.token_ids, ([9, encoder.video_token_id], "stop"), ([9], "stop")))
    with pytest.raises(RolloutError, match="vision tokens"):
        run(engine, encoder, [prompt])

    def not_a_number(asked: Request) -> Any:
        answer = output(asked.token_ids, ([9, 10], "stop"), ([9], "stop"))
        answer.outputs[0].logprobs[1][10].logprob = float("nan")
        return answer

    with pytest.raises(RolloutError, match="not a log-probability for each"):
        run(fake(not_a_number), encoder, [prompt])
    # what a server writes where it has none
    engine = fake(lambda asked: output(asked.token_ids, ([9, 999_900], "stop"), ([9], "stop")))
    with pytest.raises(RolloutError, match="not a log-probability for each"):
        run(engine, encoder, [prompt])


def test_a_prompt_that_vllm_refuses_leaves_nothing_behind(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    clip = clip_of(encoder)
    short, long = (encoder.encode("Left? " * count, ["a", "b"], "multiple_choice", clip) for count in (1, 50))
    engine = fake(lambda asked: output(asked.token_ids, ([9], "stop"), ([9], "stop")), longest=len(short))
    with pytest.raises(RolloutError, match=f"refused a prompt of {len(long)} tokens: ValueError: longer than"):
        run(engine, encoder, [short, long])
    assert not engine.waiting
    assert len(run(engine, encoder, [short])) == 1


def test_weights_move_once_per_step_and_change_every_cache_key(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    engine = fake(lambda asked: output(asked.token_ids, ([9], "stop")))
    rollouts = VLLMRollouts(engine, encoder)
    prompt = prompt_of(encoder, clip_of(encoder))
    with pytest.raises(RolloutError, match="policy"):
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
    rollouts = VLLMRollouts(engine, encoder)
    for _ in range(2):
        with rollouts.policy(0):
            rollouts.generate([prompt_of(encoder, clip_of(encoder))], SAMPLING)
    assert engine.events == ["sync", "wake kv_cache", "sleep 2"] * 2


def test_settings_that_would_give_wrong_rollouts_are_refused(encoder: ChatEncoder, fake: type[FakeVLLM]) -> None:
    with pytest.raises(RolloutError, match="vllm_tensor_parallel_size is 2"):
        VLLMRollouts(fake(output, tensor_parallel_size=2), encoder)
    with pytest.raises(RolloutError, match="--logprobs-mode processed_logprobs"):
        VLLMRollouts(fake(output, logprobs_mode="raw_logprobs"), encoder)


# -- a server, played by a fake over real HTTP ------------------------------------------------------------------------


class FakeServer:
    """Plays the two endpoints of ``vllm serve`` that are used."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, Any]], logprobs_mode: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        model = {"logprobs_mode": logprobs_mode, "multimodal_config": {"mm_device_do_normalize": False}}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                known = self.path.startswith("/server_info?config_format=json")
                self.respond(200 if known else 404, {"vllm_config": {"model_config": model}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                self.respond(*answer(body))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.engine = SimpleNamespace(
            mode="server",
            server_base_url=f"http://127.0.0.1:{self.http.server_port}",
            accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
            sync_weights=lambda: None,
            model=torch.nn.Linear(1, 1),
        )


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(answer: Callable[[dict[str, Any]], tuple[int, Any]], mode: str = "processed_logprobs") -> FakeServer:
        servers.append(FakeServer(answer, mode))
        return servers[-1]

    # The features are in vLLM's own serialisation; `TestWithVLLM` checks the real body.
    monkeypatch.setattr(
        rollouts_module, "server_payload", lambda asked: {"token_ids": asked.token_ids, "seed": asked.sampling["seed"]}
    )
    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def choice(index: int, *token_ids: int, tokens: tuple[int, ...] | None = None) -> dict[str, Any]:
    entries = [{"token": f"token_id:{token}", "logprob": -token / 100} for token in tokens or token_ids]
    return {"index": index, "token_ids": list(token_ids), "finish_reason": "stop", "logprobs": {"content": entries}}


def test_a_server_completes_several_prompts_in_their_order(
    encoder: ChatEncoder, serve: Callable[..., FakeServer]
) -> None:
    prompts = [prompt_of(encoder, clip_of(encoder, seed=seed)) for seed in range(3)]

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {
            "prompt_token_ids": body["token_ids"],
            "choices": [choice(1, 20), choice(0, 10 + body["seed"] % 7)],
        }

    server = serve(answer)
    groups = run(server.engine, encoder, prompts)  # type: ignore[arg-type]
    seeds = [ask(encoder, prompt, key).sampling["seed"] for key, prompt in enumerate(prompts)]
    assert [group[0].token_ids for group in groups] == [[10 + seed % 7] for seed in seeds]
    assert [group[1].log_probs for group in groups] == [[-0.2]] * 3
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}), "start the vLLM server with --enable-scale-out"),
        ((500, b"out of\nmemory"), "/inference/v1/generate: status 500: out of memory"),
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, []), "answered in another form"),
        ((200, {"choices": []}), "answered in another form"),
        ((200, {"prompt_token_ids": [], "choices": [choice(0, 9, tokens=(8,))]}), "log-probabilities of other tokens"),
        ((200, {"prompt_token_ids": [], "choices": [choice(0, 9), choice(1, 9)]}), "a prompt of 0 tokens"),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_that_says_what_to_do(
    encoder: ChatEncoder, serve: Callable[..., FakeServer], answer: tuple[int, Any], message: str
) -> None:
    server = serve(lambda body: answer)
    with pytest.raises(RolloutError) as error:
        run(server.engine, encoder, [prompt_of(encoder, clip_of(encoder))])  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_or_returns_other_log_probabilities_is_refused(
    encoder: ChatEncoder, serve: Callable[..., FakeServer]
) -> None:
    server = serve(lambda body: (200, {}), mode="raw_logprobs")
    with pytest.raises(RolloutError, match="start it with --logprobs-mode processed_logprobs"):
        VLLMRollouts(server.engine, encoder)
    engine = SimpleNamespace(mode="server", server_base_url="http://127.0.0.1:9")
    with pytest.raises(RolloutError, match="is the vLLM server up"):
        VLLMRollouts(engine, encoder)


# -- the correction ---------------------------------------------------------------------------------------------------


def test_importance_weights_are_the_table_worked_out_by_hand() -> None:
    policy = torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.6, 1.0]]).log().requires_grad_()
    sampler = torch.tensor([[0.5, 0.4, 0.3], [0.4, 0.4, 1.0]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    result = importance_weights(policy, sampler, mask, cap=2.0)
    #                                  0.9 / 0.3 = 3, capped at 2
    expected = torch.tensor([[1.0, 0.5, 2.0], [0.25, 1.5, 1.0]])
    assert torch.allclose(result.weights, expected)
    assert not result.weights.requires_grad
    assert result.truncated == pytest.approx(1 / 5)
    gaps = np.log([1, 2, 3, 4, 1.5])
    assert result.mean_gap == pytest.approx(gaps.mean())
    assert result.max_gap == pytest.approx(gaps.max())


def test_padding_counts_for_nothing_whatever_it_holds() -> None:
    trainer, sampler = torch.tensor([-1.0, float("nan")]), torch.tensor([-1.0, -5.0])
    result = importance_weights(trainer, sampler, torch.tensor([1, 0]))
    assert result.weights.tolist() == [1.0, 1.0]
    assert result.max_gap == 0
    with pytest.raises(RolloutError, match="row 1"):
        importance_weights(trainer, sampler, torch.tensor([1, 1]))


def test_completions_without_tokens_have_no_weights() -> None:
    empty = torch.zeros(2, 0)
    result = importance_weights(empty, empty, empty)
    assert result.weights.shape == (2, 0)
    assert (result.truncated, result.mean_gap, result.max_gap) == (0, 0, 0)


def test_shapes_that_differ_and_a_cap_below_one_are_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="shapes differ"):
        importance_weights(two, three, two)
    with pytest.raises(ValueError, match="cap"):
        importance_weights(two, two, two, cap=0.5)


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
        return VLLMRollouts(InThisProcess(model, folder), encoder)

    @torch.no_grad()
    def gap(rollouts: VLLMRollouts, prompt: EncodedPrompt, completion: SampledCompletion) -> float:
        """Largest difference of a token's log-probability to the trainer's on ``prompt``."""
        encoder, ids = rollouts.encoder, torch.tensor(completion.token_ids)
        batch = encoder.collate([prompt], [completion.token_ids])
        logits = rollouts.engine.model(**batch).logits[0, len(prompt) - 1 : -1].float()
        logits[:, encoder.vision_token_ids] -= 100
        ours = torch.log_softmax(logits / SAMPLING.temperature, -1).gather(-1, ids[:, None])[:, 0]
        return float((ours - torch.tensor(completion.log_probs)).abs().max())

    class TestWithVLLM:
        @pytest.mark.parametrize("kind", ["video", "image"])
        def test_its_log_probabilities_are_the_trainers(self, real: VLLMRollouts, kind: str) -> None:
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
            self, real: VLLMRollouts, monkeypatch: pytest.MonkeyPatch
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

        def test_new_weights_are_used_and_nothing_of_the_old_ones_is(self, real: VLLMRollouts) -> None:
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

        def test_a_prompt_longer_than_the_context_is_refused_by_name(self, real: VLLMRollouts) -> None:
            clip = clip_of(real.encoder)
            short, long = (real.encoder.encode("Left? " * n, ["a", "b"], "multiple_choice", clip) for n in (1, 600))
            with real.policy(0):
                with pytest.raises(RolloutError, match=r"refused a prompt of .* tokens: VLLMValidationError"):
                    real.generate([short, long], SAMPLING)
                assert len(real.generate([short], SAMPLING)) == 1

        def test_normalising_twice_is_seen_in_the_gap(self, real: VLLMRollouts) -> None:
            prompt = prompt_of(real.encoder, clip_of(real.encoder, seed=4))
            if not real._normalises:
                assert real.encoder.timestamps
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
