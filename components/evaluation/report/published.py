"""Figures that papers publish, beside ours and never in place of ours (``published.yaml``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from ...common.config import Section


class PublishedModel(Section):
    """Figures of one model, in per cent."""

    model: str
    frames: int | None = None
    """Frames per video."""
    source: str
    values: dict[str, float]
    """``benchmark.score`` → figure; of abilities: metric → figure."""


class Published(Section):
    """All of them."""

    unverified: dict[str, str]
    """``benchmark.score`` → what could not be checked against the paper's own files."""
    models: tuple[PublishedModel, ...]
    abilities: tuple[PublishedModel, ...]
    """Grounding and captions, of Video-Thinker's own samples."""

    def scores_of(self, key: str) -> set[str]:
        """The scores of a benchmark that a figure is published for."""
        names = (name.split(".") for one in self.models for name in one.values)
        return {score for benchmark, score in names if benchmark == key}


@cache
def published() -> Published:
    """The figures."""
    text = (Path(__file__).parent / "published.yaml").read_text("utf-8")
    return Published.load(yaml.safe_load(text), "published.yaml")
