"""The model families there are, by transformers' ``model_type``."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ...registry import Registry
from .family import ModelFamily
from .qwen2_5_vl import QWEN2_5_VL
from .qwen3_vl import QWEN3_VL

FAMILIES = Registry[ModelFamily]("model family", ModelFamily, {"qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL})


def family_of(processor: Any) -> ModelFamily:
    """The family that a processor belongs to.

    Raises:
        UserError: none has such a processor.
    """
    name = type(processor).__name__
    for _, family in FAMILIES.items():
        if family.processor == name:
            return family
    raise UserError(f"a model with a {name} is not supported; families: {', '.join(FAMILIES)}")
