"""The vision tower's windows in a few calls: the same values and gradients, and how many calls there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.families import FAMILIES
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.model.windows import Windows, batch_windows
from vthink.components.common.video.config import VideoConfig

GRID = torch.tensor([[3, 12, 20], [1, 6, 4]])  # windows of 8 × 8, and cut-off ones at the right and below; a picture


def tower(family: str) -> Any:
    video = VideoConfig(size_multiple=28 if family == "qwen2_5_vl" else 32)
    return build_tiny(TinyModelConfig(family=family, num_vision_layers=3), video, 0)[0]


def features_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    visual = model.train().model.visual
    vision = model.config.vision_config
    size = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(GRID.prod(1).sum()), size, generator=torch.Generator().manual_seed(0))
    output = visual(pixels, grid_thw=GRID)
    features = torch.cat([output.pooler_output, *getattr(output, "deepstack_features", [])])
    features.square().sum().backward()
    return features.detach(), {name: p.grad for name, p in visual.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_windows_give_the_towers_values_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, batched = tower(family), tower(family)
    batch_windows(batched)
    batch_windows(batched)  # once more changes nothing
    expected, gradients = features_and_gradients(plain)
    features, ours = features_and_gradients(batched)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    for name, gradient in gradients.items():
        assert float((ours[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    # The control: two windows taken for one are seen.
    of = Windows.of
    monkeypatch.setattr(Windows, "of", lambda ends: of(torch.cat([ends[:1], ends[2:]])))
    assert not torch.allclose(features_and_gradients(batched)[0], expected, rtol=1e-2)


def test_a_tower_of_the_real_depth_needs_twenty_times_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the shape of a 16-frame clip of 1,000 visual tokens; the layers are narrow, as many as in the real model."""
    vision = {"depth": 32, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 64, "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [7, 15, 23, 31]})
    )
    calls = [0]
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls[0] += 1
        return attention(*arguments, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    pixels, grid = torch.randn(8 * 16 * 30, 1176), torch.tensor([[8, 16, 30]])  # 960 visual tokens
    with torch.no_grad():
        plain = model.model.visual(pixels, grid_thw=grid).pooler_output
        plain_calls, calls[0] = calls[0], 0
        batch_windows(model)
        ours = model.model.visual(pixels, grid_thw=grid).pooler_output
    assert plain_calls / calls[0] >= 20, (plain_calls, calls[0])
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_other_kernels_are_left_alone() -> None:
    model = tower("qwen2_5_vl")
    model.model.visual.config._attn_implementation = "eager"
    batch_windows(model)
    assert model.model.visual.config._attn_implementation == "eager"
