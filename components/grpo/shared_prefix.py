"""Log-probabilities of a prompt's G completions in one pass over prompt + completions, instead of G passes over both.

The plain way repeats the prompt, thousands of vision tokens of it, for each of its G completions. Here a micro-batch
is one row: prompt, completion 1, …, completion G, then the next prompt with its completions, ragged and without
padding. A completion's tokens see their prompt and themselves, at the positions they would have alone: M-RoPE starts
again after the prompt for each. The vision tower runs once, over every prompt's clip. Log-probabilities and gradients
equal the plain way's; ``tests/unit/components/grpo/test_shared_prefix.py`` holds them equal.

Two forms of attention give the same result. ``mask`` hands a 4-D mask (1, 1, L, L) to the model's own attention: easy
to check, and memory grows with L². ``two_call`` computes each prompt causally, then its completions over prompt and
themselves; it never builds more of a mask than (C, P + C), and fused kernels work (idea: PrefixGrouper, 2506.05433).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..common.model.chat import ChatEncoder
from ..common.model.prompt import BlindInputError, EncodedPrompt

ATTENTION = "vthink_shared_prefix"  # our attention among transformers' implementations
AttentionForm = Literal["two_call", "mask"]


@dataclass(frozen=True)
class Layout:
    """Where prompts and completions lie in the packed row. It travels with the forward pass as a keyword argument."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]  # for each prompt its length P and its completions' lengths

    @property
    def num_tokens(self) -> int:
        """L: tokens of the packed row."""
        return sum(prefix + sum(suffixes) for prefix, suffixes in self.groups)

    def predicting(self) -> list[int]:
        """The positions in the row whose hidden states predict the completions' tokens, in their order."""
        positions: list[int] = []
        offset = 0
        for prefix, suffixes in self.groups:
            offset += prefix
            last_of_prompt = offset - 1
            for length in suffixes:
                positions += [last_of_prompt, *range(offset, offset + length - 1)] if length else []
                offset += length
        return positions

    def mask(self, device: torch.device) -> torch.Tensor:
        """(1, 1, L, L), True where the token of a row may look: its prompt and its own completion, up to itself."""
        owners = [  # of each token its group and its completion, -1 in a prompt
            (group, index)
            for group, (prefix, suffixes) in enumerate(self.groups)
            for index, length in [(-1, prefix), *enumerate(suffixes)]
            for _ in range(length)
        ]
        groups, completions = torch.tensor(owners, device=device).T
        visible = (completions[None] == -1) | (completions[:, None] == completions[None])
        return ((groups[:, None] == groups[None]) & visible).tril()[None, None]


@dataclass(frozen=True)
class Packed:
    """A micro-batch as the model takes it."""

    layout: Layout
    input_ids: torch.Tensor  # (1, L)
    position_ids: torch.Tensor  # (3, 1, L)
    targets: torch.Tensor  # (1, ΣC): the completions' tokens, one after the other
    media: dict[str, torch.Tensor]  # pixels and grids of the prompts' clips, each once


def pack(
    encoder: ChatEncoder, prompts: Sequence[EncodedPrompt], completions: Sequence[Sequence[Sequence[int]]]
) -> Packed:
    """Lay out prompts and their completions in one row.

    Args: ``completions``: for each prompt the token ids of its completions; lengths may differ, and may be 0.

    Raises: `BlindInputError`: a prompt without its pixels."""
    ids, positions, targets, groups = [], [], [], []
    for prompt, group in zip(prompts, completions, strict=True):
        encoder.check_sighted(prompt)
        tokens = [torch.tensor(completion, dtype=torch.long) for completion in group]
        ids += [encoder.model_ids(prompt), *tokens]
        targets += tokens
        positions.append(prompt.position_ids)
        positions += [(prompt.next_position + torch.arange(len(part))).expand(3, -1) for part in tokens]
        groups.append((len(prompt), tuple(map(len, tokens))))
    return Packed(
        layout=Layout(tuple(groups)),
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions, 1)[:, None],
        targets=torch.cat(targets)[None],
        media=encoder.media(prompts),
    )


def install(model: Any) -> None:
    """Prepare a Qwen-VL model, already given TRL's fused head, for `log_probs`. Everything else it does stays as it is.

    Only where a `Layout` comes along its language model's attention acts differently, and its backbone hands on only
    those hidden states that predict a completion's token: the head then skips the prompts, with a large vocabulary a
    large part of the work."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    base = _innermost(model)
    base.model.language_model.config._attn_implementation = ATTENTION
    base.model.register_forward_hook(_keep_predicting, with_kwargs=True)


def _innermost(model: Any) -> Any:
    """The Qwen-VL model below DDP or DeepSpeed and LoRA."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _keep_predicting(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
    layout = kwargs.get("shared_prefix")
    if layout is not None:
        hidden = output.last_hidden_state
        if hidden.shape[:2] != (1, layout.num_tokens):
            raise RuntimeError(f"the model saw {tuple(hidden.shape[:2])} tokens, not 1 × {layout.num_tokens}")
        output.last_hidden_state = hidden[:, torch.tensor(layout.predicting(), device=hidden.device)]
    return output


def log_probs(model: Any, packed: Packed, form: AttentionForm = "two_call") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (ΣC,) of the completions' tokens, and the entropies (ΣC,) where the fused head computes them.

    Args: ``model``: as `install` left it; it may be wrapped (DDP, DeepSpeed).

    Raises: `BlindInputError`: the row holds vision placeholders and the batch no pixels."""
    device = next(model.parameters()).device
    if "pixel_values_videos" not in packed.media:
        raise BlindInputError("a forward pass was asked for without the pixels of its rows")
    # Models swallow keyword arguments that they do not know: were the layout ignored, every figure would be wrong.
    if _innermost(model).model.language_model.config._attn_implementation != ATTENTION:
        raise RuntimeError("the model's attention does not know the packed layout; prepare it by `install`")
    outputs = model(
        input_ids=packed.input_ids.to(device),
        attention_mask=packed.layout.mask(device) if form == "mask" else None,
        position_ids=packed.position_ids.to(device),
        shift_labels=packed.targets.to(device),
        fused_lm_head=True,
        use_cache=False,
        shared_prefix=packed.layout,
        **{name: tensor.to(device) for name, tensor in packed.media.items()},
    )
    return outputs.log_probs[0], outputs.entropy[0] if outputs.entropy is not None else None


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
    """transformers' attention interface: heads (1, H, L, D) in, (1, L, H, D) out. Of a packed row each prompt attends
    over itself, each completion over its prompt and itself (``two_call``)."""
    if shared_prefix is None or attention_mask is not None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    parts = []
    lengths = [prefix + sum(suffixes) for prefix, suffixes in shared_prefix.groups]
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    groups = (tensor.split(lengths, 2) for tensor in (query, key, value))
    for (prefix, suffixes), q, k, v in zip(shared_prefix.groups, *groups, strict=True):
        head_k, head_v = k[:, :, :prefix], v[:, :, :prefix]
        parts.append(F.scaled_dot_product_attention(q[:, :, :prefix], head_k, head_v, is_causal=True, scale=scaling))
        count, longest = len(suffixes), max(suffixes, default=0)
        if longest == 0:
            continue
        # A row per completion, (G, H, C, D), padded at the end.
        split = ([part.transpose(0, 1) for part in tail[0, :, prefix:].split(suffixes, 1)] for tail in (q, k, v))
        tail_q, tail_k, tail_v = (pad_sequence(rows, batch_first=True).transpose(1, 2) for rows in split)
        suffix_k = torch.cat([head_k.expand(count, -1, -1, -1), tail_k], 2)
        suffix_v = torch.cat([head_v.expand(count, -1, -1, -1), tail_v], 2)
        # Aligned at the lower right: query c sees the prompt and the completion up to c, and padding none but itself.
        if query.is_cuda:  # lets the fused kernels in; not run here
            bias: Any = causal_lower_right(longest, prefix + longest)
        else:
            bias = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
        out = F.scaled_dot_product_attention(tail_q, suffix_k, suffix_v, attn_mask=bias, scale=scaling)
        parts += [row[:, :, :length] for row, length in zip(out.split(1), suffixes, strict=True)]
    return torch.cat(parts, 2).transpose(1, 2), None
