"""Attention of a packed row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from .pack import Layout

ATTENTION = "vthink_shared_prefix"
"""Name of our attention among transformers' implementations."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prefix: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: heads (1, H, L, D) in, (1, L, H, D) out."""
    if shared_prefix is None or attention_mask is not None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return two_call_attention(query, key, value, shared_prefix, scaling).transpose(1, 2), None


def two_call_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None
) -> torch.Tensor:
    """Attention (1, H, L, D) of a packed row: each prompt over itself, each completion over its prompt and itself."""
    parts = []
    lengths = [prefix + sum(suffixes) for prefix, suffixes in layout.groups]
    split = (tensor.split(lengths, 2) for tensor in (query, key, value))
    for (prefix, suffixes), q, k, v in zip(layout.groups, *split, strict=True):
        head_k, head_v = k[:, :, :prefix], v[:, :, :prefix]
        parts.append(F.scaled_dot_product_attention(q[:, :, :prefix], head_k, head_v, is_causal=True, scale=scaling))
        count, longest = len(suffixes), max(suffixes, default=0)
        if longest == 0:
            continue
        tails = [_rows(tensor[0, :, prefix:], suffixes) for tensor in (q, k, v)]
        suffix_k = torch.cat([head_k.expand(count, -1, -1, -1), tails[1]], 2)
        suffix_v = torch.cat([head_v.expand(count, -1, -1, -1), tails[2]], 2)
        # Aligned at the lower right: query c sees the prompt and the completion up to c. Padding comes after every
        # token of its row and is seen by padding alone.
        if query.is_cuda:  # lets the fused kernels in; not run here
            bias: Any = causal_lower_right(longest, prefix + longest)
        else:
            bias = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
        out = F.scaled_dot_product_attention(tails[0], suffix_k, suffix_v, attn_mask=bias, scale=scaling)
        if min(suffixes) == longest:
            parts.append(out.transpose(0, 1).flatten(1, 2)[None])
        else:
            parts += [out[i : i + 1, :, :length] for i, length in enumerate(suffixes)]
    return torch.cat(parts, 2)


def _rows(tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """(H, ΣC, D) → (G, H, C, D), a row per completion, padded at the end where lengths differ."""
    if min(lengths) == max(lengths):
        return tokens.unflatten(1, (len(lengths), -1)).transpose(0, 1)
    return pad_sequence([part.transpose(0, 1) for part in tokens.split(list(lengths), 1)], True).transpose(1, 2)
