"""Settings of the evaluation and of its gate."""

from __future__ import annotations

from pydantic import Field, field_validator

from ..common.config import Section
from .expressions import parse


class EvaluationConfig(Section):
    """How the models are asked, how sure the numbers are, and what a model must reach to go into service."""

    split: str = "test"
    """Split of the prepared data; nothing else in the pipeline reads it."""
    batch_size: int = Field(default=64, ge=1)
    """Questions decoded at once; also what a killed evaluation can lose."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest response in tokens (Video-R1's evaluation: 1,024)."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy, so that numbers can be repeated (Video-R1's code samples at 0.1 with top_p 0.001: nearly
    greedy)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; without effect at temperature 0."""
    shuffled: bool = True
    """Also ask about every video with its frames in random order."""
    other_video_control: bool = True
    """Also ask with the pixels of another video: accuracy must fall to chance, or the questions give answers
    away."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the bootstrap over videos."""
    seed: int = 0
    """Seed of frame orders, exchanged videos, sampling, resampling and of the choice of items to show."""
    max_items: int | None = Field(default=None, ge=1)
    """Ask at most this many items, chosen at random by the seed; null: all."""
    report_items: int = Field(default=24, ge=0)
    """Items shown with frames and responses in the report."""
    gate: tuple[str, ...] = (
        "candidate.ordered.format_rate.value >= 0.9",
        "candidate.ordered.accuracy.low > base.ordered.accuracy.value",
        "candidate.ordered.accuracy.value >= champion.ordered.accuracy.low",
    )
    """Rules that must all hold before a model is registered (language: `evaluation/expressions.py`)."""

    @field_validator("gate")
    @classmethod
    def _check_gate(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse(rule).text for rule in rules)
