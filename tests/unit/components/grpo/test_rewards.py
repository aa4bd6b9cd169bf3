"""Rewards and advantages against tables worked out by hand from the papers' definitions."""

from typing import Any

import pytest
import torch
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.grpo.losses import group_advantages
from vthink.components.grpo.rewards import (
    REWARD_PRESETS,
    REWARDS,
    Group,
    LengthConfig,
    OverlongConfig,
    RewardConfig,
    TemporalConfig,
    length_bonus,
    overlong_penalty,
    reward_functions,
    temporal_bonus,
    well_formed,
)
from vthink.components.grpo.rollouts import score_group

VIDEO = Media(kind="video", uri="a.mp4")
CHOICE = Sample(
    id="c", media=VIDEO, question="Which?", options=("left", "right"), problem_type="multiple_choice", answer="A",
    evidence=(Evidence(start_s=0, end_s=4, caption="it moves"),),
)  # fmt: skip


def typed(problem_type: str, answer: str) -> Sample:
    return Sample(id="t", media=VIDEO, question="What?", problem_type=problem_type, answer=answer)  # type: ignore[arg-type]


def texts_of(texts: list[str], **fields: Any) -> Group:
    return Group(**({"sample": CHOICE, "texts": texts, "token_counts": [400] * len(texts)} | fields))


def score(group: Group, config: RewardConfig) -> torch.Tensor:
    return score_group(group, reward_functions(config))


def r1(answer: str) -> str:
    return f"<think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("sample", "answer", "expected"),
    [
        (CHOICE, "A", 1.0),
        (CHOICE, "(A)", 1.0),
        (CHOICE, "B", 0.0),
        (typed("numerical", "1000"), "1,000", 1.0),
        (typed("numerical", "3"), "3.004", 1.0),  # equal at two decimals
        (typed("numerical", "3"), "3.01", 0.0),
        (typed("regression", "2.0"), "1.5", 0.75),  # 1 - |1.5 - 2| / 2
        (typed("regression", "2.0"), "9", 0.0),  # never below 0
        (typed("ocr", "one two three four"), "one two three five", 0.75),  # one of four words wrong
        (typed("free_form", "the red square moves left"), "the red square moves left", 1.0),
    ],
)
def test_accuracy_is_graded_by_problem_type(sample: Sample, answer: str, expected: float) -> None:
    assert texts_of([r1(answer)], sample=sample).accuracy == pytest.approx([expected])


def test_an_answer_outside_its_tags_earns_nothing() -> None:
    assert texts_of(["A", "Final answer: A", r1("A")]).accuracy == [0.0, 0.0, 1.0]


# p̃ = 0.5 throughout; μ · p̃ is 0.4 with the code's μ = 0.8 and 0.5 with the last paper version's μ = 1.
@pytest.mark.parametrize(
    ("correct_of_10", "ratio", "earned"),
    [(3, 0.8, False), (4, 0.8, True), (5, 0.8, True), (4, 1.0, False), (5, 1.0, True), (6, 1.0, True)],
)
def test_the_temporal_bonus_is_earned_at_and_above_the_threshold(
    correct_of_10: int, ratio: float, earned: bool
) -> None:
    bonus = temporal_bonus(group_of(correct_of_10, 10, 1, 2), TemporalConfig(ratio=ratio, bonus=0.3))
    assert bonus == pytest.approx([0.3 * earned] * correct_of_10 + [0.0] * (10 - correct_of_10))


def test_rounding_does_not_decide_whether_the_threshold_is_reached() -> None:
    assert 0.8 * 0.75 > 0.6  # in binary, and 6 of 10 against 3 of 4 is a tie
    assert sum(temporal_bonus(group_of(6, 10, 3, 4), TemporalConfig())) == pytest.approx(6 * 0.3)


def test_an_image_gets_no_temporal_bonus() -> None:
    assert temporal_bonus(group_of(4, 4, 0, 0), TemporalConfig()) == [0.0] * 4


@pytest.mark.parametrize(
    ("relative_errors", "tokens", "expected"),
    [
        ([0, 0, 1, 1], [320, 512, 400, 400], [0.2, 0.2, 0, 0]),  # both ends of the window belong to it
        ([0, 0, 1, 1], [319, 513, 400, 400], [0, 0, 0, 0]),
        ([0, 1, 1, 1], [400, 400, 400, 400], [0, 0, 0, 0]),  # a single correct rollout earns none
        ([0.89, 0.9, 0.5, 1], [400, 400, 400, 400], [0.2, 0, 0.2, 0]),  # correct is above 0.1
    ],
)
def test_the_length_bonus_needs_two_correct_rollouts_in_the_window(
    relative_errors: list[float], tokens: list[int], expected: list[float]
) -> None:
    texts = [r1(str(100 + 100 * error)) for error in relative_errors]
    group = texts_of(texts, sample=typed("regression", "100"), token_counts=tokens)
    assert group.accuracy == pytest.approx([1 - error for error in relative_errors])
    assert length_bonus(group, LengthConfig()) == pytest.approx(expected)


def test_the_overlong_penalty_grows_between_its_two_lengths() -> None:
    group = texts_of(["", "", "", ""], token_counts=[0, 512, 640, 9_999])
    assert overlong_penalty(group, OverlongConfig(penalty=0.5)) == pytest.approx([0, 0, -0.25, -0.5])


def group_of(correct: int, of: int, shuffled_correct: int, shuffled_of: int, tokens: int = 400) -> Group:
    return Group(
        sample=CHOICE,
        texts=[r1("A")] * correct + [r1("B")] * (of - correct),
        token_counts=[tokens] * of,
        shuffled_texts=[r1("A")] * shuffled_correct + [r1("B")] * (shuffled_of - shuffled_correct),
    )


def test_the_two_presets_differ_only_between_their_thresholds() -> None:
    # 3 of 8 ordered and 2 of 4 shuffled are correct: 0.375 < 0.4 = 0.8 · 0.5: no bonus in either.
    # 4 of 8 against 2 of 4: 0.5 >= 0.5: the bonus in both. 4 of 8 against 5 of 8: 0.5 = 0.8 · 0.625: the code's only.
    def totals(preset: str, group: Group) -> list[float]:
        return score(group, REWARD_PRESETS[preset]).sum(-1).tolist()

    for preset in ("video_r1_code", "video_r1_v4"):
        assert totals(preset, group_of(3, 8, 2, 4)) == pytest.approx([2.2] * 3 + [1.0] * 5)
        assert totals(preset, group_of(4, 8, 2, 4)) == pytest.approx([2.5] * 4 + [1.0] * 4)
    assert totals("video_r1_code", group_of(4, 8, 5, 8)) == pytest.approx([2.5] * 4 + [1.0] * 4)
    assert totals("video_r1_v4", group_of(4, 8, 5, 8)) == pytest.approx([2.2] * 4 + [1.0] * 4)


def test_the_components_of_a_group_and_its_advantages_equal_the_table() -> None:
    config = RewardConfig(temporal=TemporalConfig(ratio=1.0, bonus=0.3), length=LengthConfig(bonus=0.2))
    group = Group(
        sample=CHOICE,
        texts=[r1("A"), r1("A"), r1("B"), "A"],
        token_counts=[400, 100, 400, 400],
        shuffled_texts=[r1("A"), r1("B")],
    )
    earned = score(group, config)
    expected = [[1, 1, 0.3, 0.2, 0], [1, 1, 0.3, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]  # p = 2/4 ≥ p̃ = 1/2
    assert torch.allclose(earned, torch.tensor(expected))
    assert group.accuracy == [1.0, 1.0, 0.0, 0.0]
    assert group.shuffled_accuracy == [1.0, 0.0]
    # totals 2.5, 2.3, 1, 0: mean 1.45, unbiased variance (1.1025 + 0.7225 + 0.2025 + 2.1025) / 3 = 1.376667
    advantages = group_advantages(earned.sum(-1))
    deviation = 1.3766667**0.5 + 1e-4
    assert advantages.tolist() == pytest.approx([d / deviation for d in (1.05, 0.85, -0.45, -1.45)], abs=1e-5)


def test_the_format_reward_is_the_prompts_own_format() -> None:
    thinker = "<time>00:00-00:04</time><caption>it moves</caption><think>left</think><answer>A</answer>"
    assert well_formed(texts_of([r1("A"), thinker]), 1.0) == [1.0, 0.0]
    assert well_formed(texts_of([r1("A"), thinker], answer_format="video_thinker"), 0.5) == [0.0, 0.5]


def test_a_reward_is_one_entry_from_which_configuration_and_columns_take_it() -> None:
    fields = RewardConfig.model_fields
    assert RewardConfig().names == tuple(REWARDS)
    for name, reward in REWARDS.items():
        assert fields[name].description == reward.description
    config = RewardConfig.load({"overlong": {"start_tokens": 100, "max_tokens": 200}})
    column = score(texts_of([r1("A")], token_counts=[150]), config)[0, list(REWARDS).index("overlong")]
    assert column.item() == pytest.approx(-0.5)
