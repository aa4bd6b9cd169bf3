"""The tiny model."""

import torch
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig

VIDEO = VideoConfig()


def test_the_same_seed_gives_the_same_tiny_model_and_another_seed_another() -> None:
    first, again, other = (build_tiny(TinyModelConfig(), VIDEO, seed)[0] for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
