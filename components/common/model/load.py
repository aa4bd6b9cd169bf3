"""Model folders to models that answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..compat.torchvision import declare_torchvision_operators
from ..errors import UserError
from ..video.config import VideoConfig
from .chat import ChatEncoder
from .folder import ModelCard, check_folder
from .windows import batch_windows


class PatchEmbedding(torch.nn.Conv3d):
    """The patch embedding of a vision tower as one matrix product: each patch is as large as the kernel.

    Same parameters, names and values (up to the order of additions) as the ``Conv3d`` with which the vision towers of
    Qwen2.5-VL and Qwen3-VL begin, which takes 2.5 times as long for forward and backward of 1,024 patches on a CPU, a
    fifth of a whole log-probability pass. (transformers' ``fusion_config`` renames the parameter for the whole process;
    here names stay those that vLLM, DeepSpeed and checkpoints know.)"""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """``patches``: (N, channels, frames, height, width), of the kernel's size. Returns: (N, features, 1, 1, 1)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


@dataclass(slots=True)
class LoadedModel:
    """A model ready to answer: weights, encoder and the settings it was trained with."""

    model: Any
    encoder: ChatEncoder
    card: ModelCard
    folder: Path

    @property
    def video(self) -> VideoConfig:
        """How the videos that it was trained on became frames."""
        return self.card.video

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.model.parameters()).device)


def best_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the accelerator computes in it, else float32."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def load_model(folder: Path, dtype: str = "auto", attention: str = "sdpa") -> LoadedModel:
    """Load a model folder, onto the accelerator if there is one.

    Raises:
        UserError: as `check_folder`, and for weights that do not fit the configuration."""
    declare_torchvision_operators()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    check_folder(folder)
    card = ModelCard.read(folder)
    device = best_device()
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=pick_dtype(dtype, device),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from error
    missing = [key for key in info.get("missing_keys", ()) if not key.endswith("lm_head.weight")]
    if broken := sorted(str(key) for key in [*missing, *info.get("mismatched_keys", ())]):
        raise UserError(f"{folder}: weights missing or of another shape: {', '.join(broken[:5])}")
    prepare_vision(model)
    encoder = ChatEncoder(processor, card.prompt, card.video, tokens_per_second(model))
    return LoadedModel(model.to(device).eval(), encoder, card, folder)


def prepare_vision(model: Any) -> None:
    """Let a Qwen-VL model's vision tower compute the same in less time: see `PatchEmbedding` and `batch_windows`."""
    embedding = model.model.visual.patch_embed.proj
    if type(embedding) is torch.nn.Conv3d:
        embedding.__class__ = PatchEmbedding
    batch_windows(model)


def tokens_per_second(model: Any) -> float:
    """M-RoPE positions per second of video; 0 for models that write the time as text (Qwen3-VL)."""
    return float(getattr(model.config.vision_config, "tokens_per_second", None) or 0.0)


def iter_linear_names(model: Any) -> Iterator[str]:
    """Names of the language model's linear layers (targets for LoRA)."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "language_model" in name:
            yield name
