import pytest
import torch
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard
from vthink.components.common.model.generation import (
    Completion,
    Sampling,
    pick_tokens,
    sample,
    stream,
    uniforms,
)
from vthink.components.common.model.load import LoadedModel, tokens_per_second
from vthink.components.common.model.prompt import BlindInputError, EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.video.config import VideoConfig


@pytest.fixture(scope="module", params=[("qwen2_5_vl", 28), ("qwen3_vl", 32)], ids=["qwen2_5_vl", "qwen3_vl"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    family, multiple = request.param
    video = VideoConfig(size_multiple=multiple)
    model, processor = build_tiny(TinyModelConfig(family=family), video, 0)
    return LoadedModel(
        model.eval(),
        ChatEncoder(processor, "compact/1", video, tokens_per_second(model)),
        ModelCard(prompt="compact/1", video=video),
        folder=None,
    )  # type: ignore[arg-type]


def prompts_of(loaded: LoadedModel, count: int = 4) -> list:
    import numpy as np
    from vthink.components.common.video.clip import Clip

    multiple, rng = loaded.video.size_multiple, np.random.default_rng(0)
    prompts = []
    for index in range(count):
        kind, frames = ("image", 1) if index % 3 == 2 else ("video", 8 - 2 * (index % 2))
        pixels = rng.integers(0, 256, (frames, multiple * 2, multiple * 2, 3), dtype=np.uint8)
        clip = Clip(pixels, np.arange(frames) / 2, frames / 2, kind)
        prompts.append(
            loaded.encoder.encode("What moves " + "left " * index + "?", ["a", "b"], "multiple_choice", clip)
        )
    return prompts


@torch.no_grad()
def plain_tokens(loaded: LoadedModel, prompt: EncodedPrompt, sampling: Sampling, noise: torch.Tensor) -> list[int]:
    """One completion without cache, batch or padding: the whole sequence, pixels included, again for each token."""
    tokens: list[int] = []
    for step in range(sampling.max_new_tokens):
        batch = loaded.encoder.collate([prompt], [tokens])
        logits = loaded.model(**batch).logits[:, -1].float()
        logits[:, loaded.encoder.vision_token_ids] = float("-inf")
        tokens.append(int(pick_tokens(logits, sampling, noise[step : step + 1])))
        if tokens[-1] == loaded.encoder.eos_token_id:
            break
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_the_plain_path_for_mixed_lengths_and_media(loaded: LoadedModel, temperature: float) -> None:
    prompts = prompts_of(loaded)
    sampling = Sampling(max_new_tokens=12, temperature=temperature, seed=4)
    results = sample(loaded.model, loaded.encoder, prompts, sampling, n=3, batch_size=12)
    for key, (prompt, group) in enumerate(zip(prompts, results, strict=True)):
        for completion, noise in zip(group, uniforms(4, key, 3, 12), strict=True):
            assert completion.token_ids == plain_tokens(loaded, prompt, sampling, noise)


def test_several_questions_on_one_clip_read_it_once_and_get_the_plain_paths_tokens(loaded: LoadedModel) -> None:
    import numpy as np
    from vthink.components.common.video.clip import Clip

    multiple = loaded.video.size_multiple
    rng = np.random.default_rng(1)
    prompts = []
    for frames in (8, 4):
        pixels = rng.integers(0, 256, (frames, multiple * 2, multiple * 2, 3), dtype=np.uint8)
        questions = [("How many squares move " + "left " * i + "?", [], "numerical") for i in range(4)]
        prompts += loaded.encoder.encode_many(questions, Clip(pixels, np.arange(frames) / 2, frames / 2, "video"))
    prompts = prompts[::3] + prompts[1::3] + prompts[2::3]  # in no particular order
    seen: list[int] = []
    hook = loaded.model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
    )
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=2)
    results = sample(loaded.model, loaded.encoder, prompts, sampling, n=2)
    hook.remove()
    assert sum(seen) == sum(int(grid.prod()) for grid in {id(p.pixel_values): p.grid_thw for p in prompts}.values())
    for key, (prompt, group) in enumerate(zip(prompts, results, strict=True)):
        for completion, noise in zip(group, uniforms(2, key, 2, 8), strict=True):
            assert completion.token_ids == plain_tokens(loaded, prompt, sampling, noise)


def test_a_completion_does_not_depend_on_what_shares_its_batch(loaded: LoadedModel) -> None:
    prompts = prompts_of(loaded)
    sampling = Sampling(max_new_tokens=10, temperature=1.0, seed=3)
    together = sample(loaded.model, loaded.encoder, prompts, sampling, n=4, batch_size=16, keys=[5, 6, 7, 8])
    alone = sample(loaded.model, loaded.encoder, prompts[1:2], sampling, n=2, keys=[6])
    assert [c.token_ids for c in together[1][:2]] == [c.token_ids for c in alone[0]]
    other = sample(loaded.model, loaded.encoder, prompts[1:2], sampling, n=2, keys=[9])
    assert [c.token_ids for c in other[0]] != [c.token_ids for c in alone[0]]  # the control: another key


def test_vision_tokens_are_never_sampled(loaded: LoadedModel) -> None:
    with torch.no_grad():
        head = loaded.model.lm_head.weight
        before = head.clone()
        head[loaded.encoder.vision_token_ids] = 10 * head.abs().max()  # the model wants nothing but vision tokens
    try:
        sampling = Sampling(max_new_tokens=16, temperature=1.0)
        groups = sample(loaded.model, loaded.encoder, prompts_of(loaded, 2), sampling, n=8)
    finally:
        with torch.no_grad():
            head.copy_(before)
    tokens = {token for group in groups for completion in group for token in completion.token_ids}
    assert not tokens & set(loaded.encoder.vision_token_ids)


def test_the_vision_tower_runs_once_per_video_whatever_the_number_of_completions(loaded: LoadedModel) -> None:
    seen: list[int] = []
    hook = loaded.model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
    )
    prompts = [p for p in prompts_of(loaded) if p.kind == "video"]
    sample(loaded.model, loaded.encoder, prompts, Sampling(max_new_tokens=4, temperature=1.0), n=8, batch_size=64)
    hook.remove()
    assert sum(seen) == sum(int(p.grid_thw.prod()) for p in prompts)


@torch.no_grad()
def test_a_question_without_its_video_is_answered_as_the_plain_path_does_and_only_on_demand(
    loaded: LoadedModel,
) -> None:
    encoder = loaded.encoder
    blind = [
        encoder.encode_blind("What moves " + "left " * index + "?", ["a", "b"], "multiple_choice") for index in (0, 3)
    ]
    assert not any(bool(torch.isin(prompt.input_ids, torch.tensor(encoder.vision_token_ids)).any()) for prompt in blind)
    sampling = Sampling(max_new_tokens=6)
    found = sample(loaded.model, encoder, blind, sampling, blind=True)
    for prompt, [completion] in zip(blind, found, strict=True):
        expected = loaded.model.generate(
            input_ids=prompt.input_ids[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
            suppress_tokens=encoder.vision_token_ids,
            eos_token_id=encoder.eos_token_id,
            pad_token_id=encoder.pad_token_id,
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()
    with pytest.raises(BlindInputError, match="0 vision placeholders"):
        sample(loaded.model, encoder, blind, sampling)
    with pytest.raises(BlindInputError, match="do not go together"):
        sample(loaded.model, encoder, [*blind, *prompts_of(loaded, 1)], sampling, blind=True)


def test_finished_rows_stop_and_say_so(loaded: LoadedModel) -> None:
    prompts = prompts_of(loaded, 2)
    free = sample(loaded.model, loaded.encoder, prompts, Sampling(max_new_tokens=6))
    assert all(c.finish_reason == "length" and len(c.token_ids) == 6 for (c,) in free)
    with torch.no_grad():
        head = loaded.model.lm_head.weight
        before = head.clone()
        head[loaded.encoder.eos_token_id] = head[free[0][0].token_ids[0]] * 1.5
    try:
        stopped = sample(loaded.model, loaded.encoder, prompts, Sampling(max_new_tokens=6))
    finally:
        with torch.no_grad():
            head.copy_(before)
    assert stopped[0][0].finish_reason == "stop"
    assert stopped[0][0].token_ids == [loaded.encoder.eos_token_id]


def test_streamed_pieces_make_up_the_completion(loaded: LoadedModel) -> None:
    prompt = prompts_of(loaded, 1)[0]
    sampling = Sampling(max_new_tokens=24, temperature=1.0, seed=1)
    *pieces, completion = stream(loaded, prompt, sampling)
    assert isinstance(completion, Completion)
    assert "".join(pieces) == completion.text  # type: ignore[arg-type]
    assert completion == sample(loaded.model, loaded.encoder, [prompt], sampling, keys=[0])[0][0]


def test_sampling_follows_the_distribution_and_the_nucleus() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(20_000, 4)
    noise = uniforms(0, 0, 1, 20_000)[0]
    drawn = pick_tokens(logits, Sampling(temperature=1.0), noise)
    frequency = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(frequency, probabilities, atol=0.015)
    nucleus = pick_tokens(logits, Sampling(temperature=1.0, top_p=0.7), noise)
    frequency = torch.bincount(nucleus, minlength=4) / len(nucleus)
    assert torch.allclose(frequency, torch.tensor([0.625, 0.375, 0, 0]), atol=0.015)


def test_impossible_sampling_settings_are_refused() -> None:
    for bad in (
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"temperature": float("nan")},
    ):
        with pytest.raises(ValueError, match="must be"):
            Sampling(**bad)  # type: ignore[arg-type]


def test_the_same_sample_has_the_same_tokens_in_sft_rollout_evaluation_and_server(prepared: PreparedSet) -> None:
    from vthink.components.common.video.clip import Clip, stored
    from vthink.components.sft.train import ResponseCollator

    video = prepared.video
    model, processor = build_tiny(TinyModelConfig(), video, 0)
    encoder = ChatEncoder(processor, "video_thinker/1", video, tokens_per_second(model))
    split = prepared.split("train")
    item = split[0]
    rollout = encoder.encode_sample(item)  # GRPO and evaluation
    batch = ResponseCollator(split, encoder, "auto")([{"row": 0}])
    assert batch["input_ids"][0, : len(rollout)].tolist() == rollout.input_ids.tolist()
    assert torch.equal(batch["pixel_values_videos"], rollout.pixel_values)
    # The server gets question and options as text, decodes the file itself and applies the stored codec.
    served_clip = stored(Clip(item.clip.frames, item.clip.times_s, item.clip.duration_s, item.clip.kind), video)
    served = encoder.encode(item.sample.question, list(item.sample.options), item.sample.problem_type, served_clip)
    assert served.input_ids.tolist() == rollout.input_ids.tolist()
