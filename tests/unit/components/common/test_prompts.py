import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.model.prompts import TEMPLATES, build_messages, get_template, question_text


def test_an_unknown_template_is_refused_with_the_known_names() -> None:
    with pytest.raises(UserError, match=r"'video_thinker/9'; there are: .*video_thinker/1"):
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
