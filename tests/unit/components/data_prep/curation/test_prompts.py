"""The prompts, ours and a user's."""

from __future__ import annotations

import pytest
from vthink.components.common.errors import UserError
from vthink.components.data_prep.curation import replies
from vthink.components.data_prep.curation.prompts import Prompts

from .conftest import CHOICE, SEGMENTS


def test_our_prompts_say_what_the_checks_ask_for():
    prompts = Prompts.read(None)
    segments = replies.numbered_segments(SEGMENTS)
    question = prompts.render("question", segments=segments, min_segments=2, min_options=4, max_options=6)
    assert "1. [00:00-00:04] A man picks up a ball." in question
    assert '{"question": "…", "options"' in question
    told = {"question": replies.with_options(CHOICE), "answer": "B. throws it"}
    text = prompts.render("trace", segments=segments, failed_captions=["a ball"], **told)
    assert "- a ball" in text
    assert "A. keeps it" in text
    assert "- a ball" not in prompts.render("trace", segments=segments, failed_captions=None, **told)
    judge = prompts.render("judge", segments=segments, question=replies.as_asked(CHOICE))
    assert "throws it" in judge
    assert "right answer" not in judge


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trace.jinja", "{{ segmnts }}", "'segmnts' is undefined.*there are: segments, question, answer"),
        ("trace.jinja", "\n{% for %}", r"trace\.jinja:2: "),
        ("traces.jinja", "x", r"no step uses it; prompts are called captions\.jinja, cot\.jinja"),
        ("trace.jinja", "{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_one_line_that_names_it(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Prompts.read(str(tmp_path))
