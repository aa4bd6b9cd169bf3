"""A prompt's completions, as reward functions see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...common.answers.grading import grade
from ...common.answers.responses import parse_response
from ...common.rows.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Group:
    """One prompt's rollouts: G completions on the frames in order and, for T-GRPO, some on shuffled frames."""

    sample: Sample
    texts: Sequence[str]
    """G completions on the frames in order."""
    token_counts: Sequence[int]
    """Their lengths in tokens."""
    shuffled_texts: Sequence[str] = ()
    """Completions on permuted frames; empty for images and for plain GRPO."""
    answer_format: str = "video_r1"
    """What the prompt asked for."""
    correct_above: float = 0.1
    """`RewardConfig.correct_above`."""

    @cached_property
    def accuracy(self) -> list[float]:
        """Graded answers in [0, 1], one per completion (problem types: Video-R1 §3.2)."""
        return [self._grade(text) for text in self.texts]

    @cached_property
    def shuffled_accuracy(self) -> list[float]:
        """The same for the completions on shuffled frames."""
        return [self._grade(text) for text in self.shuffled_texts]

    @property
    def correct(self) -> list[bool]:
        """Which completions count as correct, for bonuses."""
        return [accuracy > self.correct_above for accuracy in self.accuracy]

    def _grade(self, text: str) -> float:
        # Only an answer inside ``<answer>`` counts: a reward for guesses found elsewhere in the text would be paid for
        # ignoring the format.
        response = parse_response(text)
        return grade(self.sample, response.answer) if response.tagged else 0.0
