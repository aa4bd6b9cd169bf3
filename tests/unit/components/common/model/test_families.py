"""Model families, by name and by processor."""

from dataclasses import replace

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.model.families import FAMILIES, family_of
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig


def test_an_unknown_family_is_named_when_the_configuration_is_read():
    with pytest.raises(ConfigError, match=r"'tiny\.family': unknown model family 'qwen3vl'; did you mean 'qwen3_vl'\?"):
        ModelConfig.load({"tiny": {"family": "qwen3vl"}})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_known_by_its_processor(name):
    family = FAMILIES.get(name)
    processor = build_tiny(TinyModelConfig(family=name), VideoConfig(size_multiple=family.size_multiple), 0)[1]
    assert family_of(processor) is family


def test_a_processor_of_no_family_is_refused():
    with pytest.raises(UserError, match="a model with a int is not supported"):
        family_of(3)


def test_a_family_may_come_from_outside(monkeypatch):
    """One entry, from another package: it can be configured, built and recognised."""
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES.items()))
    FAMILIES.register("mine", mine := replace(FAMILIES.get("qwen2_5_vl"), video_text=lambda tokens, times_s: "seen"))
    config = ModelConfig.load({"tiny": {"family": "mine"}})
    assert FAMILIES.get(config.tiny.family) is mine
    assert build_tiny(config.tiny, VideoConfig(), 0)[0].config.model_type == "qwen2_5_vl"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2_5_vl", "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"),
        (
            "qwen3_vl",
            "<0.2 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
            "<1.5 seconds><|vision_start|><|video_pad|><|video_pad|><|vision_end|>",
        ),
    ],
)
def test_each_family_says_in_its_own_way_when_what_is_seen(name, text):
    assert FAMILIES.get(name).video_text(2, [0.25, 1.5]) == text
