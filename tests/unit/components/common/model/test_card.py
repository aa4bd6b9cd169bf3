"""A model's card."""

import json
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import CARD, Lineage, ModelCard, save_model
from vthink.components.common.model.load import load_model
from vthink.components.common.model.prompts import PromptTemplate
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig

OWN = PromptTemplate(name="paper/1", suffix="Think, then answer.", answer_format="video_r1")


@pytest.mark.parametrize("video", [VideoConfig(), VideoConfig(num_frames=None, fps=2.0)], ids=["frames", "fps"])
@pytest.mark.parametrize("prompt", ["compact/1", OWN], ids=["named", "own"])
def test_a_card_comes_back_as_written(tmp_path: Path, prompt: str | PromptTemplate, video: VideoConfig) -> None:
    card = ModelCard(prompt=prompt, video=video, lineage=Lineage(base="s3://b/base/", fingerprint="0123"))
    card.write(tmp_path)
    assert ModelCard.read(tmp_path) == card
    assert json.loads((tmp_path / CARD).read_text())["lineage"] == {"base": "s3://b/base/", "fingerprint": "0123"}


def test_a_model_is_asked_with_a_template_of_which_only_its_folder_knows(tmp_path: Path) -> None:
    model, processor = build_tiny(TinyModelConfig(), VideoConfig(), 0)
    save_model(tmp_path, model, processor, ModelCard(prompt=OWN, video=VideoConfig()))
    encoder: ChatEncoder = load_model(tmp_path).encoder
    assert encoder.template == OWN
    assert "What?\nThink, then answer.<|im_end|>" in encoder.render("What?", [], "free_form", "video")


def test_a_model_without_its_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vthink\.json"):
        ModelCard.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cut off", "not JSON"),
        ("[1]", "expected a mapping"),
        ('{"prompt": "compact/1"}', "'video'"),
        ('{"prompt": 3, "video": {}}', "'prompt"),
    ],
)
def test_a_damaged_card_is_one_line_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        ModelCard.read(tmp_path)
    assert str(tmp_path / CARD) in str(caught.value)
