"""The windows of a vision tower in a few attention calls, instead of a call for each.

Qwen2.5-VL's tower attends within windows of 8×8 patches and, in some layers, within a temporal patch; Qwen3-VL's within
temporal patches. transformers 5.17 calls the kernel once for each, thousands of times a forward pass. Here those of
equal size are the batch of one call: the same numbers, for nothing in a window depends on another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

ATTENTION = "vthink_windows"  # our attention among transformers' implementations


@dataclass(frozen=True)
class Windows:
    """Windows sorted by size."""

    sizes: list[tuple[int, int]]  # (how many, patches of each), as they come after sorting
    order: torch.Tensor | None  # (N,) where each sorted patch lies; None: they are sorted as they are
    inverse: torch.Tensor | None  # (N,)
    whole: torch.Tensor  # (2,) on the CPU: all patches as if they were one window, for the model's own code

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor) -> Windows:
        """From the windows' ends, (number + 1,) ascending from 0."""
        starts = cu_seqlens[:-1].tolist()
        lengths = cu_seqlens.diff().tolist()
        whole = torch.tensor([0, starts[-1] + lengths[-1]])
        sizes = [(lengths.count(length), length) for length in sorted(set(lengths)) if length]
        if len(sizes) == 1:
            return cls(sizes, None, None, whole)
        pieces = sorted(zip(lengths, starts, strict=True))
        order = torch.cat([torch.arange(start, start + length) for length, start in pieces]).to(cu_seqlens.device)
        return cls(sizes, order, order.argsort(), whole)


def batch_windows(model: Any) -> None:
    """Prepare a Qwen-VL model with ``sdpa`` attention; with other kernels it stays as it is."""
    visual = model.model.visual
    if visual.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, windowed_attention)
    visual.config._attn_implementation = ATTENTION
    # Layers are called with the same few tensors; their content is looked at once.
    seen: Any = WeakIdKeyDictionary()

    def hand_over(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ends = kwargs["cu_seqlens"]
        if ends not in seen:
            seen[ends] = Windows.of(ends)
        return args, kwargs | {"cu_seqlens": seen[ends].whole, "windows": seen[ends]}

    for block in visual.blocks:
        block.attn.register_forward_pre_hook(hand_over, with_kwargs=True)


def windowed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    windows: Windows,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: heads (1, H, N, D) in, (1, N, H, D) out."""
    heads = [tensor[0] if windows.order is None else tensor[0, :, windows.order] for tensor in (query, key, value)]
    parts = []
    split = zip(*(tensor.split([count * size for count, size in windows.sizes], 1) for tensor in heads), strict=True)
    for (count, size), qkv in zip(windows.sizes, split, strict=True):
        q, k, v = (tensor.unflatten(1, (count, size)).transpose(0, 1) for tensor in qkv)  # (count, H, size, D)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    output = torch.cat(parts)
    return (output if windows.inverse is None else output[windows.inverse])[None], None
