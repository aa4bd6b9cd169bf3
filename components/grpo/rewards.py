"""What completions are worth: the rewards of the project, each an entry of `REWARDS`, and rewards of your own.

Source: Video-R1 (arXiv 2503.21776), equations 1-3, and the settings of its repository; DAPO (arXiv 2503.14476). No
torch here: the configuration is made of this.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any, Self

from pydantic import Field, FiniteFloat, create_model, field_validator, model_validator

from ..common.answers.formats import follows_format
from ..common.answers.grading import grade
from ..common.answers.responses import parse_response
from ..common.config import Section
from ..common.registry import Registry
from ..common.rows.sample import Sample

_ROUNDING = 1e-6  # means that differ by less are equal: rounding does not decide a tie


@dataclass(frozen=True, kw_only=True)
class Group:
    """One prompt's rollouts: G completions on the frames in order and, for T-GRPO, some on shuffled frames."""

    sample: Sample
    texts: Sequence[str]  # G completions on the frames in order
    token_counts: Sequence[int]  # their lengths in tokens
    shuffled_texts: Sequence[str] = ()  # completions on permuted frames; empty for images and for plain GRPO
    answer_format: str = "video_r1"  # what the prompt asked for
    correct_above: float = 0.1  # `RewardConfig.correct_above`

    @cached_property
    def accuracy(self) -> list[float]:
        """Graded answers in [0, 1], one per completion (problem types: Video-R1 §3.2)."""
        return [_grade(self.sample, text) for text in self.texts]

    @cached_property
    def shuffled_accuracy(self) -> list[float]:
        """The same for the completions on shuffled frames."""
        return [_grade(self.sample, text) for text in self.shuffled_texts]

    @property
    def correct(self) -> list[bool]:
        """Which completions count as correct, for bonuses."""
        return [accuracy > self.correct_above for accuracy in self.accuracy]


def _grade(sample: Sample, text: str) -> float:
    """Only an answer inside ``<answer>`` counts: a guess elsewhere would be paid for ignoring the format."""
    response = parse_response(text)
    return grade(sample, response.answer) if response.tagged else 0.0


RewardFunction = Callable[[Group], Sequence[float]]  # one number for each of a group's completions


@dataclass(frozen=True, slots=True)
class Reward:
    """An entry of `REWARDS`."""

    description: str  # documents its key in ``grpo.rewards``
    function: Callable[..., Sequence[float]]  # a group, and as ``settings`` that key's value, to a number per text
    settings: type[Section] | None = None  # its own, off where they are null; None: the key is a weight, 1 by default


def accuracy(group: Group, settings: float) -> list[float]:
    """The graded answers."""
    return [settings * accuracy for accuracy in group.accuracy]


def well_formed(group: Group, settings: float) -> list[float]:
    """The weight where the whole completion has the shape that the prompt asked for, else 0."""
    return [settings * follows_format(group.sample, text, group.answer_format) for text in group.texts]


class TemporalConfig(Section):
    """T-GRPO (Video-R1, arXiv 2503.21776 §3.1): reward what needs the order of the frames."""

    ratio: float = Field(default=0.8, ge=0)
    """μ: the bonus is given when accuracy(ordered) ≥ μ · accuracy(shuffled). 0.8 in the code, 1 in paper v4."""
    bonus: float = Field(default=0.3, ge=0)
    """α: added to correct ordered rollouts of a video prompt."""
    shuffled_fraction: float = Field(default=0.5, gt=0, le=1)
    """Shuffled rollouts per ordered one (G // 2 in Video-R1)."""


def temporal_bonus(group: Group, settings: TemporalConfig) -> list[float]:
    """α for each correct ordered rollout when mean(ordered) ≥ μ · mean(shuffled) (Video-R1, equations 1 and 2). None
    for an image, which has no order to lose."""
    shuffled = group.shuffled_accuracy
    in_order = bool(shuffled) and fmean(group.accuracy) >= settings.ratio * fmean(shuffled) - _ROUNDING
    return [settings.bonus * (correct and in_order) for correct in group.correct]


class LengthConfig(Section):
    """Length bonus (Video-R1 §3.2): correct answers that reason neither too briefly nor too long."""

    bonus: float = Field(default=0.2, ge=0)
    """ω. 0.2 in the code and paper v4, 0.1 in v1."""
    min_tokens: int = Field(default=320, ge=0)
    """Shortest completion that earns it."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest completion that earns it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        return self


def length_bonus(group: Group, settings: LengthConfig) -> list[float]:
    """ω for each correct rollout within the window, when the group has more than one correct rollout (equation 3)."""
    several = sum(group.correct) > 1
    return [
        settings.bonus * (several and correct and settings.min_tokens <= count <= settings.max_tokens)
        for correct, count in zip(group.correct, group.token_counts, strict=True)
    ]


class OverlongConfig(Section):
    """Soft penalty for completions that run out of room (DAPO, arXiv 2503.14476, equation 13)."""

    start_tokens: int = Field(default=512, ge=0)
    """Length from which the penalty grows, linearly."""
    max_tokens: int = Field(default=768, ge=1)
    """Length at which it is whole."""
    penalty: float = Field(default=1.0, ge=0)
    """What a completion of ``max_tokens`` loses."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_tokens >= self.max_tokens:
            raise ValueError("start_tokens must be below max_tokens")
        return self


def overlong_penalty(group: Group, settings: OverlongConfig) -> list[float]:
    """0 up to ``start_tokens``, then linearly down to −``penalty`` at ``max_tokens`` (DAPO, equation 13)."""
    room = settings.max_tokens - settings.start_tokens
    excess = [(count - settings.start_tokens) / room for count in group.token_counts]
    return [-settings.penalty * min(max(value, 0.0), 1.0) for value in excess]


REWARDS: Registry[Reward] = Registry(
    "reward",
    Reward,
    {
        "accuracy": Reward("Weight of the graded answer in [0, 1].", accuracy),
        "format": Reward("Weight of the format in {0, 1}.", well_formed),
        "temporal": Reward("T-GRPO's bonus; null: plain GRPO.", temporal_bonus, TemporalConfig),
        "length": Reward("Length bonus; null: none.", length_bonus, LengthConfig),
        "overlong": Reward("Penalty for overlong completions; null: none.", overlong_penalty, OverlongConfig),
    },
)
"""Every reward of the project, in the order of its column in tables; a new one is a new entry here."""

_OUTSIDE: Registry[RewardFunction] = Registry("grpo.rewards.extra: reward", Callable)


def _field(reward: Reward) -> tuple[Any, Any]:
    if reward.settings is None:
        return float, Field(default=1.0, ge=0, description=reward.description)
    return reward.settings | None, Field(default=None, description=reward.description)


_FIELDS: dict[str, Any] = {name: _field(reward) for name, reward in REWARDS.items()}
_BuiltInRewards: Any = create_model("_BuiltInRewards", __base__=Section, **_FIELDS)


class RewardConfig(_BuiltInRewards, Section):
    """What a completion is worth: a key for each entry of `REWARDS`, and rewards of your own."""

    correct_above: float = Field(default=0.1, ge=0, lt=1)
    """A rollout counts as correct, for both bonuses, when its graded answer is above this."""
    extra: dict[str, FiniteFloat] = Field(default={})
    """Rewards of your own, as ``package.module:function``, with their weights (see CONTRIBUTING.md)."""

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, float]) -> dict[str, float]:
        for name in extra:
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
                raise ValueError(f"'{name}' is not of the form package.module:function")
        names = [*REWARDS, *(name.partition(":")[2] for name in extra)]
        if len(set(names)) < len(names):
            raise ValueError(f"two rewards have the same name among {', '.join(names)}")
        return extra

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards, in the order of their columns."""
        return (*REWARDS, *(name.partition(":")[2] for name in self.extra))


REWARD_PRESETS: dict[str, RewardConfig] = {
    "video_r1_code": RewardConfig(temporal=TemporalConfig(ratio=0.8), length=LengthConfig(bonus=0.2)),
    "video_r1_v4": RewardConfig(temporal=TemporalConfig(ratio=1.0), length=LengthConfig(bonus=0.2)),
    "video_thinker": RewardConfig(),
}
"""Published reward systems: Video-R1's repository, its last paper version, and Video-Thinker."""


def reward_functions(config: RewardConfig) -> dict[str, RewardFunction]:
    """The functions behind `RewardConfig.names`, weighted; a `UserError` where ``config.extra`` names none."""
    functions: dict[str, RewardFunction] = {}
    for name, reward in REWARDS.items():
        settings = getattr(config, name)
        functions[name] = _nothing if settings is None else partial(reward.function, settings=settings)
    return functions | {path: partial(_weighted, weight, _OUTSIDE.get(path)) for path, weight in config.extra.items()}


def _nothing(group: Group) -> list[float]:
    return [0.0] * len(group.texts)


def _weighted(weight: float, function: RewardFunction, group: Group) -> list[float]:
    return [weight * float(value) for value in function(group)]
