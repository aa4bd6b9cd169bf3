"""A step's rollouts in MLflow: the page and the table."""

import re
from types import SimpleNamespace
from typing import Any

from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.rollout_table import rollout_table, write_rollouts
from vthink.tests.unit.components.grpo.tiny_training import rollouts_of

ATTACK = "<script>alert('x')</script>\" onmouseover=\"alert(1)"
NAMES = ("accuracy", "format")


def test_a_rollout_row_shows_rewards_advantages_and_both_orders():
    html = rollout_table(rollouts_of(ATTACK), VideoConfig(), NAMES)
    assert "Ordered frames" in html
    assert "Shuffled frames" in html
    assert "+0.87" in html
    assert "-0.87" in html
    heads = re.findall(r"<span[^>]*>(\w+) <b>", html)
    assert heads == [*["advantage", "accuracy", "format", "total"] * 2, "accuracy"]
    assert html.count("<img") == 4


def test_a_rollout_row_without_shuffled_frames_has_one_side():
    assert "Shuffled" not in rollout_table(rollouts_of("q", shuffled=False), VideoConfig(), NAMES)


def test_a_step_is_a_page_and_a_table_with_a_row_per_completion():
    logged: dict[str, Any] = {}
    tracker: Any = SimpleNamespace(log_html=logged.__setitem__, log_table=logged.__setitem__)
    write_rollouts(tracker, VideoConfig(), NAMES, 7, rollouts_of("Which?"))
    assert "Rollouts at step 7" in logged["rollouts/step-000007.html"]
    table = logged["rollouts/step-000007.json"]
    assert table["frames"] == ["ordered", "ordered", "shuffled"]
    assert table["accuracy"] == [1.0, 0.0, 0.0]
    assert table["format"] == [1.0, 0.0, None]
    assert table["advantage"][2] is None
