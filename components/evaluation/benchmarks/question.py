"""A question as a published row asks it."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.errors import UserError
from ...common.rows.sample import Sample

MAX_OPTIONS = 26



@dataclass(frozen=True, slots=True)
class Question:
    """A question as a published row asks it, before its video has been looked for."""

    sample: Sample
    """``media.uri`` is the first of ``videos``."""
    videos: tuple[str, ...]
    """Where the published layout may have the video, the likeliest place first."""
