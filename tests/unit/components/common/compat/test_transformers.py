"""transformers: whether its Trainer still loads checkpoints without translating the names of their weights."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments
from vthink.components.common.compat.trl import load_weights
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig


def test_loading_weights_loads_all_of_them_or_refuses(tmp_path: Path) -> None:
    video = VideoConfig()
    saved, _ = build_tiny(TinyModelConfig(), video, 1)
    saved.save_pretrained(tmp_path / "saved")
    model, _ = build_tiny(TinyModelConfig(), video, 2)
    load_weights(model, tmp_path / "saved")
    for (name, expected), found in zip(saved.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, found), name
    deeper, _ = build_tiny(TinyModelConfig(num_layers=3), video, 2)
    with pytest.raises((UserError, RuntimeError)):
        load_weights(deeper, tmp_path / "saved")


def test_upstream_resumes_from_the_weights_that_the_model_happened_to_have(tmp_path: Path) -> None:
    """When this fails, transformers loads them: `load_weights`, and the methods that call it, can go."""
    saved, _ = build_tiny(TinyModelConfig(), VideoConfig(), 1)
    saved.save_pretrained(tmp_path / "saved")
    model, _ = build_tiny(TinyModelConfig(), VideoConfig(), 2)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    Trainer(model, arguments)._load_from_checkpoint(str(tmp_path / "saved"))
    pairs = zip(saved.parameters(), model.parameters(), strict=True)
    assert not all(torch.equal(expected, loaded) for expected, loaded in pairs)
