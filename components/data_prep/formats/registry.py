"""The formats of rows by name, and which of them a row is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...common.registry import Registry
from .format import Format
from .plain import PLAIN
from .video_r1 import VIDEO_R1, VIDEO_THINKER
from .vrbench import VRBENCH
from .vthink import VTHINK

FORMATS: Registry[Format] = Registry(
    "format", Format, {f.name: f for f in (VTHINK, VIDEO_R1, VIDEO_THINKER, VRBENCH, PLAIN)}
)
"""Formats by name, in the order in which they are tried; ``my_module:FORMAT`` names one from outside."""


def recognise(row: Any) -> Format | None:
    """The format that a row is written in; None where none fits."""
    return next((f for _, f in FORMATS.items() if isinstance(row, Mapping) and f.fits(row)), None)
