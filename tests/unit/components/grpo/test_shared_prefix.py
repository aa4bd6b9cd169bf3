"""The packed forward equals the plain one, values and gradients, and its controls show that the comparison can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl.trainer.utils import add_fused_lm_head
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.prompt import BlindInputError, EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.shared_prefix import AttentionForm, Layout, Packed, install, log_probs, pack

G = 4
Family = Literal["qwen2_5_vl", "qwen3_vl"]


class World:
    """A model, prompts on two videos and an image, and their ragged completions, one of them empty."""

    def __init__(self, family: Family, query_heads_per_key: int = 1) -> None:
        multiple = 28 if family == "qwen2_5_vl" else 32
        video = VideoConfig(size_multiple=multiple)
        self.model, processor = build_tiny(TinyModelConfig(family=family), video, 0)
        if query_heads_per_key > 1:
            config, eos = self.model.config, self.model.generation_config.eos_token_id
            config.text_config.num_key_value_heads = config.text_config.num_attention_heads // query_heads_per_key
            self.model = type(self.model)(config)
            self.model.generation_config.update(eos_token_id=eos)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(2.0)  # attention that attends, so that a wrong position or mask shows
        self.encoder = ChatEncoder(processor, "compact/1", video, tokens_per_second(self.model))
        rng = np.random.default_rng(0)
        self.prompts: list[EncodedPrompt] = []
        self.completions: list[list[list[int]]] = []
        for index, (kind, frames) in enumerate((("video", 8), ("image", 1), ("video", 6))):
            pixels = rng.integers(0, 256, (frames, multiple * 2, multiple * (2 + index), 3), dtype=np.uint8)
            clip = Clip(pixels, np.arange(frames) / 3, frames / 3, kind)  # type: ignore[arg-type]
            question = "What moves " + "left " * index + "?"
            self.prompts.append(self.encoder.encode(question, ["a", "b"], "multiple_choice", clip))
            lengths = [9, 5, 0, 12] if index == 0 else [7, 7, 7, 7] if index == 1 else [1, 3, 8, 2]
            self.completions.append([rng.integers(70, 300, length).tolist() for length in lengths])
        self.count = sum(len(c) for group in self.completions for c in group)
        self.weights = torch.randn(self.count, generator=torch.Generator().manual_seed(1))

    def plain(self) -> torch.Tensor:
        """(ΣC,) the obvious way: a row per completion, one after the other, through the model's own forward."""
        parts = []
        for prompt, group in zip(self.prompts, self.completions, strict=True):
            for completion in group:
                if completion:
                    batch = self.encoder.collate([prompt], [completion])
                    logits = self.model(**batch, use_cache=False).logits[0, len(prompt) - 1 : -1]
                    parts.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
        return torch.cat(parts)

    def packed(self) -> Packed:
        return pack(self.encoder, self.prompts, self.completions)

    def gradients(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        self.model.zero_grad(set_to_none=True)
        (values * self.weights).sum().backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture(
    scope="module", params=[("qwen2_5_vl", 1), ("qwen3_vl", 1), ("qwen2_5_vl", 2)], ids=lambda p: f"{p[0]}-{p[1]}"
)
def world(request: pytest.FixtureRequest) -> World:
    return World(*request.param)


@pytest.fixture(scope="module")
def expected(world: World) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    values = world.plain()
    return values.detach(), world.gradients(values)


@pytest.fixture(scope="module")
def prepared_world(world: World, expected: object) -> World:
    """The same model once more, now with the fused head and our attention (the plain figures are already taken)."""
    add_fused_lm_head(world.model, outputs=("log_probs", "entropy"))
    install(world.model)
    return world


def relative(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest relative error over the parameters, of those whose gradient is more than rounding."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in wanted.items()
        if gradient.norm() > 1e-4
    )


@pytest.fixture
def seen(prepared_world: World) -> Any:
    """What the language model and the vision tower were called with."""
    calls: dict[str, list[Any]] = {"tokens": [], "patches": []}
    model = prepared_world.model.model
    hooks = [
        model.language_model.layers[0].register_forward_pre_hook(
            lambda _, args: calls["tokens"].append(tuple(args[0].shape[:2]))
        ),
        model.visual.register_forward_pre_hook(
            lambda _, args, kwargs: calls["patches"].append((args[0] if args else kwargs["hidden_states"]).shape[0]),
            with_kwargs=True,
        ),
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("form", ["two_call", "mask"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_values_and_gradients_equal_the_plain_forward(
    prepared_world: World, expected: Any, seen: dict[str, list[Any]], form: AttentionForm, checkpointing: bool
) -> None:
    world, (values, gradients) = prepared_world, expected
    if checkpointing:
        world.model.gradient_checkpointing_enable({"use_reentrant": False})
    world.model.train()
    try:
        found, entropy = log_probs(world.model, world.packed(), form)
        # No silent fallback: one row of P + ΣC tokens per group, and the tower once, over each clip once.
        assert seen["tokens"] == [(1, sum(len(p) for p in world.prompts) + world.count)]
        assert seen["patches"] == [sum(int(p.grid_thw.prod()) for p in world.prompts)]
        assert (found - values).abs().max() < 1e-5
        assert relative(world.gradients(found), gradients) < 1e-5
        assert entropy is not None
        assert entropy.shape == values.shape
    finally:
        world.model.gradient_checkpointing_disable()
        world.model.eval()


def restarted_nowhere(packed: Packed) -> Packed:
    positions, offset = packed.position_ids.clone(), 0
    for prefix, suffixes in packed.layout.groups:
        start = offset + prefix
        first = int(positions[0, 0, start])
        positions[:, 0, start : start + sum(suffixes)] = first + torch.arange(sum(suffixes))
        offset = start + sum(suffixes)
    return replace(packed, position_ids=positions)


def without_pixels(packed: Packed) -> Packed:
    media = packed.media | {"pixel_values_videos": torch.zeros_like(packed.media["pixel_values_videos"])}
    return replace(packed, media=media)


def other_pixels(packed: Packed) -> Packed:
    media = packed.media | {"pixel_values_videos": packed.media["pixel_values_videos"].flip(0)}
    return replace(packed, media=media)


@pytest.mark.parametrize("change", [restarted_nowhere, without_pixels, other_pixels])
@pytest.mark.parametrize("form", ["two_call", "mask"])
def test_the_comparison_catches_wrong_positions_and_missing_or_other_pixels(
    prepared_world: World, expected: Any, change: Callable[[Packed], Packed], form: AttentionForm
) -> None:
    with torch.no_grad():
        found, _ = log_probs(prepared_world.model, change(prepared_world.packed()), form)
    assert (found - expected[0]).abs().max() > 1e-2


def test_the_comparison_catches_completions_that_see_each_other(
    prepared_world: World, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(self: Layout, device: torch.device) -> torch.Tensor:
        return torch.ones(1, 1, self.num_tokens, self.num_tokens, dtype=torch.bool, device=device).tril()

    monkeypatch.setattr(Layout, "mask", leaking)
    with torch.no_grad():
        found, _ = log_probs(prepared_world.model, prepared_world.packed(), "mask")
    assert (found - expected[0]).abs().max() > 1e-2


class LargestMask(TorchDispatchMode):
    """Remembers the largest (rows, columns) of a boolean tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (0, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.bool and result.ndim >= 2:
            self.shape = max(self.shape, tuple(result.shape[-2:]), key=lambda shape: shape[0] * shape[1])
        return result


def test_the_two_call_form_builds_no_more_of_a_mask_than_a_completion_over_its_prompt(prepared_world: World) -> None:
    packed, largest = prepared_world.packed(), {}
    for form in ("two_call", "mask"):
        with torch.no_grad(), LargestMask() as mode:
            log_probs(prepared_world.model, packed, form)  # type: ignore[arg-type]
        largest[form] = mode.shape
    longest = max(len(c) for group in prepared_world.completions for c in group)
    assert largest["two_call"][0] <= longest
    assert largest["two_call"][1] <= max(map(len, prepared_world.prompts)) + longest
    assert largest["mask"] == (packed.layout.num_tokens,) * 2  # the control


def test_a_group_of_empty_completions_contributes_nothing_and_fails_nothing(prepared_world: World) -> None:
    world = prepared_world
    packed = pack(world.encoder, world.prompts[:2], [[[], []], [[71, 72], []]])
    found, _ = log_probs(world.model, packed)
    assert found.shape == (2,)
    alone, _ = log_probs(world.model, pack(world.encoder, world.prompts[1:2], [[[71, 72], []]]))
    assert torch.allclose(found, alone, atol=1e-5)


def test_a_model_that_was_not_prepared_or_a_batch_without_pixels_is_refused(prepared_world: World) -> None:
    fresh = World("qwen2_5_vl")
    add_fused_lm_head(fresh.model)
    with pytest.raises(RuntimeError, match="prepare it by `install`"):
        log_probs(fresh.model, fresh.packed())
    packed = prepared_world.packed()
    with pytest.raises(BlindInputError, match="without the pixels"):
        log_probs(
            prepared_world.model, Packed(packed.layout, packed.input_ids, packed.position_ids, packed.targets, {})
        )


def test_generation_is_what_it_was_before_the_attention_was_replaced() -> None:
    from vthink.components.common.model.generation import Sampling, sample

    world = World("qwen2_5_vl")
    sampling = Sampling(max_new_tokens=10)
    before = sample(world.model, world.encoder, world.prompts, sampling, n=2)
    add_fused_lm_head(world.model)
    install(world.model)
    assert sample(world.model, world.encoder, world.prompts, sampling, n=2) == before


def test_low_precision_and_adapters_agree_with_the_plain_forward() -> None:
    from peft import LoraConfig, get_peft_model

    world = World("qwen2_5_vl")
    add_fused_lm_head(world.model)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(world.model, config)
    world.model = adapted
    with torch.no_grad():
        values = world.plain()
        install(adapted)
        found, _ = log_probs(adapted, world.packed())
        assert (found - values).abs().max() < 1e-5
        # bfloat16 has 8 bits: both ways differ from float32 by about as much, and from each other by no more.
        noise = (world_in_bfloat16(adapted, world.plain) - values).abs().mean()
        difference = world_in_bfloat16(adapted, lambda: log_probs(adapted, world.packed())[0]) - values
        assert difference.abs().mean() < 2 * noise


def world_in_bfloat16(model: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return compute().float()


def test_under_autocast_attention_gets_queries_keys_and_values_of_one_type(
    prepared_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights under bfloat16: rotary positions leave q and k in float32. A GPU's causal bias refuses them."""
    types: set[tuple[torch.dtype, ...]] = set()
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **keywords: Any) -> torch.Tensor:
        types.add((query.dtype, key.dtype, value.dtype))
        return attention(query, key, value, **keywords)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr("vthink.components.grpo.shared_prefix.F.scaled_dot_product_attention", watched)
        log_probs(prepared_world.model, prepared_world.packed())
    assert (torch.bfloat16,) * 3 in types
    assert all(len(set(each)) == 1 for each in types)
