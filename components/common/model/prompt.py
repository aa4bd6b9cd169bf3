"""A prompt as the model takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

TEXT, IMAGE, VIDEO = 0, 1, 2
"""Values of ``mm_token_type_ids``, as the Qwen-VL models use them."""


class BlindInputError(ValueError):
    """Placeholders for vision tokens without matching pixels: the model would be asked about a video it cannot see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt as the model takes it."""

    input_ids: torch.Tensor
    """(P,) int64 token ids, vision placeholders included."""
    mm_token_type_ids: torch.Tensor
    """(P,) int64: 0 text, 1 image, 2 video."""
    pixel_values: torch.Tensor
    """(N, D) float32 patches of the one image or video."""
    grid_thw: torch.Tensor
    """(3,) int64 patches along time, height, width; N = t·h·w."""
    position_ids: torch.Tensor
    """(3, P) int64 M-RoPE positions: time, height, width (`rope_positions`)."""
    second_per_grid_s: float
    """Seconds that one temporal patch spans (0 for images)."""
    kind: Literal["video", "image", "text"]
    """What it is about; ``text`` is a question without its video (`ChatEncoder.encode_blind`)."""

    def __len__(self) -> int:
        return int(self.input_ids.numel())

    @property
    def next_position(self) -> int:
        """Position of the first token of a completion, on all three axes."""
        return int(self.position_ids.max()) + 1

    @property
    def vision_end(self) -> int:
        """How many tokens reach to the end of the image or video: what questions about one clip have in common."""
        return int((self.mm_token_type_ids != TEXT).nonzero().max()) + 1 if self.kind != "text" else 0
