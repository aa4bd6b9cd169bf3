"""The page of a step's rollouts."""

import re

import numpy as np
from vthink.components.common.html import images
from vthink.components.grpo import rollout_page
from vthink.components.grpo.rollout_page import RolloutCompletion, RolloutRow

ATTACK = "<script>alert('x')</script>\" onmouseover=\"alert(1)"


def picture(value: int = 128) -> bytes:
    return images.jpeg(np.full((56, 56, 3), value, np.uint8))


def rollout_row() -> RolloutRow:
    good = RolloutCompletion(
        text=f"{ATTACK} <answer>A</answer>",
        rewards={"total": 2.0, "accuracy": 1.0, "format": 1.0},
        advantage=0.87,
    )
    bad = RolloutCompletion(text="no", rewards={"total": 0.0, "accuracy": 0.0, "format": 0.0}, advantage=-0.87)
    shuffled = RolloutCompletion(text="maybe", rewards={"accuracy": 0.0})
    return RolloutRow(
        prompt=ATTACK,
        truth="A",
        frames_ordered=[picture(0), picture(255)],
        completions_ordered=[good, bad],
        frames_shuffled=[picture(255), picture(0)],
        completions_shuffled=[shuffled],
    )


def test_a_rollout_row_shows_rewards_advantages_and_both_orders():
    html = rollout_page.rollout_table([rollout_row()])
    assert "Ordered frames" in html
    assert "Shuffled frames" in html
    assert "+0.87" in html
    assert "-0.87" in html
    heads = re.findall(r"<span[^>]*>(\w+) <b>", html)
    assert heads[:4] == ["advantage", "accuracy", "format", "total"]
    assert html.count("<img") == 4


def test_a_rollout_row_without_shuffled_frames_has_one_side():
    row = RolloutRow(prompt="q", truth="A", frames_ordered=[picture()], completions_ordered=[])
    assert "Shuffled" not in rollout_page.rollout_table([row])


def test_a_rollout_page_is_a_page():
    assert rollout_page.rollout_page("step 10", [rollout_row()]).startswith("<!doctype html>")
