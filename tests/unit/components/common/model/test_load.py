"""Model folders to models, or one clear error."""

import json
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig

VIDEO = VideoConfig()


def test_damaged_weights_are_one_clear_error(tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    save_model(tmp_path / "m", model, processor, ModelCard(prompt="compact/1", video=VIDEO))
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "m")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VIDEO, 0)
    save_model(tmp_path / "m", model, processor, ModelCard(prompt="compact/1", video=VIDEO))
    load_model(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):  # it contradicts its own layer_types
        load_model(tmp_path / "m")
    del config["text_config"]["layer_types"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weights missing"):
        load_model(tmp_path / "m")
