"""Sizes of models that decide what they cost, and what a video becomes for them. Both are exact."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...components.common.config import ConfigError
from ...components.common.storage.names import StorageError, join
from ...components.common.storage.s3 import Storage
from ...components.common.video.clip import DecodeError
from ...components.common.video.config import VideoConfig
from ...components.common.video.frames import frame_indices, target_size
from ..config import Config


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Qwen2.5-VL or Qwen3-VL that decide what it costs."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool  # whether the output layer is the embedding
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    patch: int
    temporal_patch: int = 2
    merge: int = 2
    vision_positions: int = 0  # learned positions of the vision tower (Qwen3-VL)
    deepstack: int = 0  # further mergers, whose output goes into early layers of the language model (Qwen3-VL)

    @property
    def language_parameters(self) -> int:
        """Parameters of the language model, embedding and output layer left out."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv)
        attention += 2 * self.head_dim if self.family == "qwen3_vl" else q + 2 * kv  # norms of q and k; or biases
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding and, unless they are the same, of the output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision tower and its projector."""
        h, i, wide = self.vision_hidden, self.vision_intermediate, self.vision_hidden * self.merge**2
        embedding = 3 * self.temporal_patch * self.patch**2 * h
        attention = 4 * h * h + 4 * h
        projector = wide * wide + wide + wide * self.hidden + self.hidden
        if self.family == "qwen2_5_vl":
            block = attention + 3 * h * i + 2 * i + h + 2 * h
            return embedding + self.vision_layers * block + projector + h
        block = attention + 2 * h * i + i + h + 4 * h
        deepstack = self.deepstack * (projector + 2 * wide)
        return embedding + h + self.vision_positions * h + self.vision_layers * block + projector + 2 * h + deepstack

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.language_parameters + self.embedding_parameters + self.vision_parameters


_QWEN2_5 = Shape(
    family="qwen2_5_vl", hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, intermediate=18944,
    vocabulary=152064, tied=False, vision_hidden=1280, vision_layers=32, vision_heads=16, vision_intermediate=3420,
    patch=14,
)  # fmt: skip
_QWEN3 = Shape(
    family="qwen3_vl", hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=12288,
    vocabulary=151936, tied=False, vision_hidden=1152, vision_layers=27, vision_heads=16, vision_intermediate=4304,
    patch=16, vision_positions=2304, deepstack=3,
)  # fmt: skip
SHAPES = {
    "Qwen/Qwen2.5-VL-7B-Instruct": _QWEN2_5,
    "Qwen/Qwen2.5-VL-3B-Instruct": replace(
        _QWEN2_5, hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vocabulary=151936, tied=True
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _QWEN3,
    "Qwen/Qwen3-VL-4B-Instruct": replace(
        _QWEN3, hidden=2560, intermediate=9728, tied=True, vision_hidden=1024, vision_layers=24,
        vision_intermediate=4096,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": replace(
        _QWEN3, hidden=2048, layers=28, heads=16, intermediate=6144, tied=True, vision_hidden=1024, vision_layers=24,
        vision_intermediate=4096,
    ),
}  # fmt: skip
"""Models that are known by name, from their published ``config.json``."""
TINY_VOCABULARY = 896  # of the tokenizer that comes with ``model.name: tiny``


def shape_of(config: Config) -> Shape:
    """The model's sizes: built in, from the ``tiny`` section, or from the ``config.json`` of its folder or prefix.

    Raises:
        ConfigError: the model is not known here and cannot be read."""
    name, tiny = config.model.name, config.model.tiny
    if name == "tiny":
        width = tiny.hidden_size
        return Shape(
            family=tiny.family, hidden=width, layers=tiny.num_layers, heads=tiny.num_heads, kv_heads=tiny.num_heads,
            head_dim=width // tiny.num_heads, intermediate=3 * width, vocabulary=TINY_VOCABULARY, tied=False,
            vision_hidden=width, vision_layers=tiny.num_vision_layers, vision_heads=tiny.num_heads,
            vision_intermediate=2 * width, patch=config.video.size_multiple // 2,
            vision_positions=64 if tiny.family == "qwen3_vl" else 0, deepstack=1 if tiny.family == "qwen3_vl" else 0,
        )  # fmt: skip
    if name in SHAPES:
        return SHAPES[name]
    try:
        if name.startswith("s3://"):
            return read_shape(Storage(config.storage).read_json(join(name, "config.json")), name)
        if (path := Path(name) / "config.json").is_file():
            return read_shape(json.loads(path.read_text("utf-8")), str(path))
    except (StorageError, OSError, ValueError) as error:
        raise ConfigError(f"model.name={name}: its config.json cannot be read ({error})") from error
    raise ConfigError(f"model.name={name}: not known here; give its folder, or one of: tiny, {', '.join(SHAPES)}")


def read_shape(config: Mapping[str, Any], source: str) -> Shape:
    """The sizes in a Hugging Face ``config.json``.

    Raises:
        ConfigError: another architecture, or a size is missing."""
    family = config.get("model_type")
    if family not in ("qwen2_5_vl", "qwen3_vl"):
        raise ConfigError(f"{source}: model_type {family!r} is not supported; supported: qwen2_5_vl, qwen3_vl")
    text, vision = config.get("text_config", config), config["vision_config"]
    try:
        return Shape(
            family=family, hidden=text["hidden_size"], layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"], kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            intermediate=text["intermediate_size"], vocabulary=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            vision_hidden=vision["hidden_size"], vision_layers=vision["depth"], vision_heads=vision["num_heads"],
            vision_intermediate=vision["intermediate_size"], patch=vision["patch_size"],
            temporal_patch=vision.get("temporal_patch_size", 2), merge=vision.get("spatial_merge_size", 2),
            vision_positions=vision.get("num_position_embeddings", 0) if family == "qwen3_vl" else 0,
            deepstack=len(vision.get("deepstack_visual_indexes", ())) if family == "qwen3_vl" else 0,
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"{source}: {error} is missing") from error


@dataclass(frozen=True)
class Footage:
    """A video as it comes."""

    width: int = 1280
    height: int = 720
    seconds: float = 30.0
    fps: float = 30.0


@dataclass(frozen=True)
class Tokens:
    """What a video becomes: frames, rows that the vision tower reads, and tokens that the language model reads."""

    frames: int
    height: int
    width: int
    patches: int
    visual: int


def visual_tokens(footage: Footage, video: VideoConfig, shape: Shape) -> Tokens:
    """Exactly what preparation and encoding make of a video."""
    try:
        frames = len(frame_indices(max(1, round(footage.seconds * footage.fps)), footage.fps, video))
        height, width = target_size(footage.height, footage.width, video)
    except DecodeError as error:
        raise ConfigError(f"{footage.width}x{footage.height}: {error}") from error
    multiple = shape.patch * shape.merge
    if height % multiple or width % multiple:
        raise ConfigError(f"video.size_multiple={video.size_multiple}: this model needs a multiple of {multiple}")
    grid = math.ceil(frames / shape.temporal_patch) * (height // shape.patch) * (width // shape.patch)
    return Tokens(frames, height, width, grid, grid // shape.merge**2)
