"""Settings of curation that cannot be meant."""

from __future__ import annotations

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.data_prep.config import CurationConfig, TeacherConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"url": "127.0.0.1:8000"}}, "must look like http"),
        ({"teacher": {"url": "file:///etc/passwd"}}, "must look like http"),
        ({"teacher": {"url": "https://me:secret@host/v1"}}, "must not hold a name or password"),
        ({"teacher": {"extra": {"messages": []}}}, "extra cannot set messages"),
        ({"teacher": {"api_key_env": "sk-123"}}, "api_key_env"),
        ({"budget_usd": 5.0}, "needs the prices of the teacher"),
        ({"min_options": 5, "max_options": 4}, "min_options must not exceed"),
        ({"max_kept": 5, "num_traces": 4}, "max_kept must not exceed"),
        ({"teachr": {}}, "did you mean 'teacher'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CurationConfig.load(settings)


def test_a_seed_for_everything_leaves_the_judge_its_own_defaults():
    from vthink.pipelines.config import load

    config = load("laptop", ["seed=7", "curation.judge.model=j"]).curation
    assert config.seed == 7
    assert (config.teacher.temperature, config.judge.temperature) == (0.7, 0.0)


def test_extra_fields_are_sent_and_a_null_removes_one():
    config = TeacherConfig(extra={"max_tokens": None, "max_completion_tokens": 9, "top_p": 0.9})
    sent = {"temperature": 0.7, "max_tokens": None, "max_completion_tokens": 9, "top_p": 0.9}
    assert config.sampling() == sent  # the client leaves out what is None
    assert config.most_output_tokens == 9
