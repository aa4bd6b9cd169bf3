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

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ...common.model.prompt import BlindInputError
from .attention import ATTENTION, packed_attention
from .pack import AttentionForm, Packed


def install(model: Any) -> None:
    """Prepare a Qwen-VL model, already given TRL's fused head, for `log_probs`. Everything else it does stays as it is.

    Its language model's attention is replaced by one that acts differently only where a `Layout` comes along, and its
    backbone hands on only those hidden states that predict a completion's token: the head, a large part of the work
    when the vocabulary is, then skips the prompts.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    base = _innermost(model)
    base.model.language_model.config._attn_implementation = ATTENTION
    base.model.register_forward_hook(_keep_predicting, with_kwargs=True)


def _innermost(model: Any) -> Any:
    """The Qwen-VL model below DDP or DeepSpeed and LoRA."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def log_probs(model: Any, packed: Packed, form: AttentionForm = "two_call") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (ΣC,) of the completions' tokens, and the entropies (ΣC,) where the fused head computes them.

    Args:
        model: as `install` left it; it may be wrapped (DDP, DeepSpeed).

    Raises:
        BlindInputError: the row holds vision placeholders and the batch no pixels.
    """
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


def _keep_predicting(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
    layout = kwargs.get("shared_prefix")
    if layout is not None:
        hidden = output.last_hidden_state
        if hidden.shape[:2] != (1, layout.num_tokens):
            raise RuntimeError(f"the model saw {tuple(hidden.shape[:2])} tokens, not 1 × {layout.num_tokens}")
        output.last_hidden_state = hidden[:, torch.tensor(layout.predicting(), device=hidden.device)]
    return output
