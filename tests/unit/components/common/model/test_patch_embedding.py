"""The patch embedding as a product."""

from pathlib import Path

import pytest
import torch
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.families import FAMILIES
from vthink.components.common.model.folder import ModelCard, save_model
from vthink.components.common.model.load import PatchEmbedding, load_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_are_embedded_by_a_product_as_by_the_convolution(tmp_path: Path, family: str) -> None:
    video = VideoConfig(size_multiple=28 if family == "qwen2_5_vl" else 32)
    model, processor = build_tiny(TinyModelConfig(family=family), video, 0)
    save_model(tmp_path, model, processor, ModelCard(prompt="compact/1", video=video))
    ours = load_model(tmp_path).model.train()
    assert type(ours.model.visual.patch_embed.proj) is PatchEmbedding
    assert ours.state_dict().keys() == model.state_dict().keys()
    config = model.config.vision_config
    grid = torch.tensor([[2, 4, 8], [1, 6, 4]])
    size = 3 * config.temporal_patch_size * config.patch_size**2
    pixels = torch.randn(int(grid.prod(1).sum()), size, generator=torch.Generator().manual_seed(0))
    features, gradients = [], []
    for tower in (model.train().model.visual, ours.model.visual):
        found = tower(pixels, grid_thw=grid)
        features.append(torch.cat([found.pooler_output, *getattr(found, "deepstack_features", [])]))
        features[-1].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in tower.named_parameters()})
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=1e-5)
    assert "patch_embed.proj.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert float((gradients[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    # The control: the weights taken in another order are seen.
    ours.model.visual.patch_embed.proj.weight.data = ours.model.visual.patch_embed.proj.weight.data.flip(-1)
    assert not torch.allclose(ours.model.visual(pixels, grid_thw=grid).pooler_output, found.pooler_output, rtol=1e-2)
