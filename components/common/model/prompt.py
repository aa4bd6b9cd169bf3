"""A prompt as the model takes it: its tokens, positions and patches."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

TEXT, IMAGE, VIDEO = 0, 1, 2  # values of ``mm_token_type_ids``, as the Qwen-VL models use them


PromptKind = Literal["video", "image", "text"]


class BlindInputError(ValueError):
    """Placeholders for vision tokens without matching pixels: the model would be asked about a video it cannot see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt as the model takes it."""

    input_ids: torch.Tensor  # (P,) int64 token ids, vision placeholders included
    mm_token_type_ids: torch.Tensor  # (P,) int64: 0 text, 1 image, 2 video
    pixel_values: torch.Tensor  # (N, D) float32 patches of the one image or video
    grid_thw: torch.Tensor  # (3,) int64 patches along time, height, width; N = t·h·w
    position_ids: torch.Tensor  # (3, P) int64 M-RoPE positions: time, height, width (`rope_positions`)
    second_per_grid_s: float  # seconds that one temporal patch spans (0 for images)
    kind: PromptKind  # what it is about; ``text`` is a question without its video (`ChatEncoder.encode_blind`)

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


def rope_positions(
    mm_token_type_ids: torch.Tensor, grid_thw: torch.Tensor, merge: int, time_step: float
) -> torch.Tensor:
    """M-RoPE positions (3, P) of a prompt with one image or video (Qwen2.5-VL, arXiv 2502.13923 §2.1.3).

    Text counts on along all three axes. A vision token's positions are its temporal patch times ``time_step``, its row
    and its column, from where the text stopped; text goes on after the largest of them. So the models were trained, and
    so vLLM computes; transformers 5.17 truncates the time of a temporal patch to whole seconds, and lets the text after
    a long video overlap it.

    Args:
        mm_token_type_ids: (P,); the vision tokens may lie in several runs (Qwen3-VL: one per temporal patch).
        grid_thw: (3,) patches along time, height, width.
        merge: patches per token along height and width.
        time_step: positions from one temporal patch to the next; whole positions are taken after multiplying."""
    h, w = int(grid_thw[1]) // merge, int(grid_thw[2]) // merge
    vision = mm_token_type_ids != TEXT
    positions = torch.empty(3, len(mm_token_type_ids), dtype=torch.long)
    starts = [0, *((vision[1:] != vision[:-1]).nonzero()[:, 0] + 1).tolist(), len(vision)]
    position = 0
    for start, stop in itertools.pairwise(starts):
        if not bool(vision[start]):
            positions[:, start:stop] = position + torch.arange(stop - start)
            position += stop - start
            continue
        patches = (stop - start) // (h * w)
        time = (torch.arange(patches, dtype=torch.float64) * time_step).long()
        grid = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
        positions[:, start:stop] = position + torch.stack([axis.reshape(-1) for axis in grid])
        position = int(positions[:, start:stop].max()) + 1
    return positions


def patchify(
    frames: np.ndarray, mean: Sequence[float], std: Sequence[float], patch: int, merge: int, temporal_patch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise frames and lay them out as the vision tower's patches.

    The order of patches is that of transformers' ``Qwen2VLVideoProcessor.patchify``: time, then blocks of
    ``merge``×``merge`` patches, so that the patches which become one token are neighbours.

    Args:
        frames: (T, H, W, 3) uint8; H and W multiples of ``patch * merge``. A last odd frame is repeated.

    Returns patches (N, 3 · temporal_patch · patch²) float32, and the grid (3,) of int64."""
    frame_count, height, width, channels = frames.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"frames of {height}×{width} pixels are not a multiple of {patch * merge}")
    video = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2).float()
    offset, scale = (torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (mean, std))
    video = (video - offset) / scale
    if pad := -frame_count % temporal_patch:
        video = torch.cat([video, video[-1:].expand(pad, -1, -1, -1)])
    t, h, w = video.shape[0] // temporal_patch, height // patch, width // patch
    video = video.view(t, temporal_patch, channels, h // merge, merge, patch, w // merge, merge, patch)
    patches = video.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
    return patches, torch.tensor([t, h, w])
