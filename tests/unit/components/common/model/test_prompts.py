"""Prompt templates."""

import json
import re
from pathlib import Path

import pytest
import yaml
from vthink.components.common.config import ConfigError
from vthink.components.common.errors import UserError
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.model.prompts import (
    TEMPLATES,
    PromptTemplate,
    build_messages,
    get_template,
    question_text,
)


def test_an_unknown_template_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="'video_thinker/9'; did you mean 'video_thinker/1'"):
        get_template("video_thinker/9")


def test_options_are_lettered_and_the_instruction_follows_the_problem_type() -> None:
    template = get_template("video_r1/1")
    text = question_text("What is first?", ["red", "blue"], "multiple_choice", template)
    assert text.splitlines()[:3] == ["What is first?", "A. red", "B. blue"]
    assert "letter" in text.splitlines()[-1]
    assert "number" in question_text("How many?", [], "numerical", template).splitlines()[-1]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["video", "image"])
def test_every_template_has_exactly_one_media_block_and_no_empty_media_keys(name: str, kind: str) -> None:
    messages = build_messages("Q?", ["a", "b"], "multiple_choice", kind, get_template(name))  # type: ignore[arg-type]
    blocks = [block for message in messages for block in message["content"]]
    assert [block["type"] for block in blocks].count(kind) == 1
    for block in blocks:
        if block["type"] == "text":
            assert set(block) == {"type", "text"}


def test_video_thinker_asks_for_located_segments_and_video_r1_has_no_system_prompt() -> None:
    assert get_template("video_r1/1").system is None
    assert "<time>" in str(get_template("video_thinker/1").system)


OWN = {"name": "paper/1", "system": "Look closely.", "suffix": "Think, then answer.", "answer_format": "video_r1"}


def test_a_template_may_come_from_a_file_or_a_module_and_its_content_is_what_stages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(OWN))
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    (tmp_path / "own_prompts.py").write_text(
        f"from vthink.components.common.model.prompts import PromptTemplate\nPAPER = PromptTemplate(**{OWN!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for prompt in (str(tmp_path / "own.yaml"), str(tmp_path / "own.json"), "own_prompts:PAPER", OWN):
        config = ModelConfig.load({"prompt": prompt})
        assert config.prompt == PromptTemplate(**OWN)
        assert ModelConfig.load(config.to_json()) == config


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("video_thinker/9", "unknown prompt template 'video_thinker/9'; did you mean 'video_thinker/1'?"),
        ("nowhere.yaml", "prompt template nowhere.yaml: "),
        ("no_such_module:PAPER", "cannot import 'no_such_module'"),
        ("math:pi", "is a float, not a PromptTemplate"),
        ({"name": "own", "sufix": "x"}, "unknown key 'prompt.sufix'; did you mean 'suffix'?"),
    ],
)
def test_a_wrong_template_is_named_when_the_configuration_is_read(prompt: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.load({"prompt": prompt})


def test_a_card_or_a_server_cannot_have_anything_imported_or_read(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(OWN))
    for prompt in ("math:pi", str(tmp_path / "own.yaml")):
        with pytest.raises(UserError, match="unknown prompt template"):
            get_template(prompt)
    assert get_template(OWN) == PromptTemplate(**OWN)
