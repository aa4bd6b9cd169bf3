"""Settings of the evaluation and of its gate."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..common.config import Section
from ..common.errors import UserError
from .benchmarks.registry import BENCHMARKS
from .conditions import CONDITIONS, DEFAULT_CONDITIONS, ORDERED, add_entries
from .metrics import METRICS
from .rules import DEFAULT_GATE, GateRule, check_evaluated
from .statistics import Resampling


class Protocol(Section):
    """How a paper showed videos and generated when it measured; numbers compare only under the same one."""

    num_frames: int = Field(default=16, ge=1, le=1024)
    """Frames per video, spread uniformly; both papers report 16, Video-R1 also 32 and 64."""
    max_pixels: int = Field(ge=28 * 28)
    """Most pixels per frame."""
    temperature: float = Field(ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.001, gt=0, le=1)
    """Nucleus sampling; 0.001 leaves the likeliest token alone."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest response in tokens."""


PROTOCOLS: Mapping[str, Protocol] = {
    "video_r1": Protocol(max_pixels=256 * 28 * 28, temperature=0.1),  # its eval_bench.py
    "video_thinker": Protocol(max_pixels=128 * 28 * 28, temperature=0.01),  # its paper; the code says 0.1
}
"""Protocols by paper."""


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
    conditions: tuple[str, ...] = DEFAULT_CONDITIONS
    """Conditions that every video is also asked about under, besides frames in order: ``shuffled``, ``other_video``
    (the pixels of another one: accuracy must fall to chance, or the questions give answers away), ``reversed``,
    ``single_frame``, ``blind`` (no video), or ``my_module:CONDITION``."""
    metrics: tuple[str, ...] = ()
    """Further metrics of one's own, ``my_module:METRIC``."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the bootstrap over videos."""
    seed: int = 0
    """Seed of frame orders, exchanged videos, sampling, resampling and of the choice of items to show."""
    max_items: int | None = Field(default=None, ge=1)
    """Ask at most this many items, chosen at random by the seed; null: all."""
    decode_workers: int = Field(default=2, ge=1)
    """Videos of a benchmark decoded at once, each in a process that can be killed."""
    requests: int = Field(default=8, ge=1, le=256)
    """Questions that an endpoint is asked at once."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """An endpoint that says nothing for so long has failed the attempt."""
    request_attempts: int = Field(default=4, ge=1)
    """Attempts per question at an endpoint that is busy, unreachable or answers 5xx; pauses double from 1 s."""
    report_items: int = Field(default=24, ge=0)
    """Items shown with frames in the report."""
    benchmarks: dict[str, str] = Field(default_factory=dict)
    """Public benchmarks that every model of the pipeline is measured on too: name (``video-holmes`` …) → folder or
    ``s3://…/`` prefix with the published files and the videos. Rules name them."""
    gate: tuple[GateRule, ...] = DEFAULT_GATE
    """Rules that must all hold before a model is registered (`evaluation/rules.py`)."""

    @field_validator("conditions", "metrics", "benchmarks")
    @classmethod
    def _check_names(cls, references: Any, info: ValidationInfo) -> Any:
        try:
            if info.field_name == "benchmarks":
                for name in references:
                    BENCHMARKS.get(name)
            else:
                add_entries(CONDITIONS if info.field_name == "conditions" else METRICS, references)
        except UserError as error:
            raise ValueError(str(error)) from None
        return references

    @field_validator("gate", mode="before")
    @classmethod
    def _list_rules(cls, rules: Any) -> Any:
        return [rules] if isinstance(rules, str) else rules  # an expression, which `GateRule` answers

    @model_validator(mode="after")
    def _check_gate(self) -> Self:
        names = [BENCHMARKS.get(reference).name for reference in self.benchmarks]
        check_evaluated(self.gate, conditions=self.condition_names, benchmarks=names)
        return self

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The conditions that are wanted, ``ordered`` first."""
        return tuple(dict.fromkeys((ORDERED, *add_entries(CONDITIONS, self.conditions))))

    @property
    def resampling(self) -> Resampling:
        """How sure numbers are to be."""
        return Resampling(self.confidence, self.bootstrap_resamples, self.seed)
