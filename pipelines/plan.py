"""What a run will need, from its configuration alone: tokens, FLOPs, memory, storage, hours and cost. No torch.

Exact are the visual tokens (the arithmetic of `common.video` and `common.chat`) and the numbers of parameters; the
bytes of tensors follow from the layers of transformers' Qwen2.5-VL and Qwen3-VL, and a test counts them on real
models. Hours are an estimate: they rest on the figures under *Assumptions* below, each with its source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..components.common.config import ConfigError, Stage, TrainingConfig, VideoConfig
from ..components.common.storage import Storage, StorageError, join
from ..components.common.video import DecodeError, frame_indices, target_size
from .config import Config

Zero = Literal["none", "zero2", "zero3"]
GIB = 2**30

# --- Assumptions --------------------------------------------------------------------------------------------------

UTILISATION = 0.2
"""Share of an accelerator's peak that training reaches. EasyR1's published baselines: 16 to 23 %, Qwen2.5-VL-7B."""
SECONDS_PER_LAYER = 0.9e-3
"""Least time of one layer for one decoded token under transformers' `generate`: launching kernels, not arithmetic."""
MEAN_LENGTH, LONGEST_LENGTH = 0.5, 0.8
"""Completion of a rollout as a share of ``max_new_tokens``: the mean, and the longest of a group."""
PROMPT_TEXT_TOKENS, RESPONSE_TOKENS = 200, 400
"""Question with its template, and an SFT target."""
JPEG_BYTES_PER_PIXEL = 0.5
"""A prepared frame, quality 95 without chroma subsampling."""
OVERHEAD_BYTES, FRAGMENTATION = 2 * GIB, 1.1
"""The accelerator's context and libraries, and what the allocator loses."""
LOGIT_CHUNK_TOKENS = 1024
"""TRL computes the loss from the hidden states in pieces, so the logits of a whole sequence never exist."""


@dataclass(frozen=True)
class Accelerator:
    """One GPU model, from its data sheet."""

    tflops: float
    """bfloat16, dense, 10¹² operations a second."""
    memory_gib: float
    """Usable memory."""
    bandwidth_gb_s: float
    """Memory bandwidth, 10⁹ bytes a second."""
    link_gb_s: float
    """To the other accelerators of its node, one way, 10⁹ bytes a second."""


ACCELERATORS = {
    "a100-40gb": Accelerator(312, 39.4, 1555, 300),
    "a100-80gb": Accelerator(312, 79.2, 2039, 300),
    "h100-80gb": Accelerator(989, 79.6, 3350, 450),
    "h200-141gb": Accelerator(989, 139.8, 4800, 450),
    "l40s-48gb": Accelerator(362, 44.4, 864, 32),
}
GPUS_PER_NODE = 8
NETWORK_GB_S = 25.0
"""Between nodes, per accelerator (200 Gbit/s); less makes several nodes slower than said here."""


# --- The model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Qwen2.5-VL or Qwen3-VL that decide what it costs."""

    family: Literal["qwen2_5_vl", "qwen3_vl"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    patch: int
    temporal_patch: int = 2
    merge: int = 2
    vision_positions: int = 0
    """Learned positions of the vision tower (Qwen3-VL)."""
    deepstack: int = 0
    """Further mergers, whose output goes into early layers of the language model (Qwen3-VL)."""

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
TINY_VOCABULARY = 896
"""Of the tokenizer that comes with ``model.name: tiny``."""


def shape_of(config: Config) -> Shape:
    """The model's sizes: built in, from the ``tiny`` section, or from the ``config.json`` of its folder or prefix.

    Raises:
        ConfigError: the model is not known here and cannot be read.
    """
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
        ConfigError: another architecture, or a size is missing.
    """
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


# --- One sample ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footage:
    """A video as it comes."""

    width: int = 1280
    height: int = 720
    seconds: float = 30.0
    fps: float = 30.0


@dataclass(frozen=True)
class Tokens:
    """What a video becomes."""

    frames: int
    height: int
    width: int
    patches: int
    """Rows that the vision tower reads."""
    visual: int
    """Tokens that the language model reads for it."""


def visual_tokens(footage: Footage, video: VideoConfig, shape: Shape) -> Tokens:
    """Exactly what preparation and encoding make of a video."""
    try:
        frames = len(frame_indices(max(1, round(footage.seconds * footage.fps)), footage.fps, video))
        height, width = target_size(footage.height, footage.width, video)
    except DecodeError as error:
        raise ConfigError(f"{footage.width}x{footage.height}: {error}") from error
    if height % (shape.patch * shape.merge) or width % (shape.patch * shape.merge):
        multiple = shape.patch * shape.merge
        raise ConfigError(f"video.size_multiple={video.size_multiple}: this model needs a multiple of {multiple}")
    grid = math.ceil(frames / shape.temporal_patch) * (height // shape.patch) * (width // shape.patch)
    return Tokens(frames, height, width, grid, grid // shape.merge**2)


# --- Work and memory ----------------------------------------------------------------------------------------------


def forward_flops(shape: Shape, tokens: float, patches: float, length: float) -> float:
    """Floating point operations of one forward pass.

    Args:
        shape: the model.
        tokens: positions of the language model, all sequences together.
        patches: rows of the vision tower.
        length: positions that a position attends to, on average half the sequence.
    """
    output = shape.vocabulary * shape.hidden
    text = tokens * (
        2 * (shape.language_parameters + output) + 4 * shape.layers * shape.heads * shape.head_dim * length
    )
    return text + patches * 2 * shape.vision_parameters


def activation_bytes(
    shape: Shape, tokens: int, patches: int, element_bytes: int = 2, checkpointing: bool = True
) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, and what recomputing one layer adds to them at most.

    Args:
        shape: the model; its loss is not included.
        tokens: positions of all sequences of the batch.
        patches: rows of the vision tower.
        element_bytes: 2 for bfloat16, 4 for float32.
        checkpointing: keep only each layer's input.
    """
    b, h, vh = element_bytes, shape.hidden, shape.vision_hidden
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = 4 + 2 * b  # RMSNorm: its input in float32, what it scales, and the scaled output
    # Two norms; q, k, v and the attention's output; gate, its activation, up and their product; row statistics.
    layer = 2 * h * norm + b * (2 * q + 2 * kv) + 4 * b * shape.intermediate + 8 + 4 * shape.heads
    if shape.family == "qwen3_vl":
        layer += (4 + b) * (q + kv) + 4 * (shape.heads + shape.kv_heads)  # norms of q and k
        block = 4 * b * vh + 7 * b * vh + 2 * b * shape.vision_intermediate + 16 + 4 * shape.vision_heads
        merger = b * vh * (4 + 3 * shape.deepstack)
    else:
        block = 2 * vh * norm + 7 * b * vh + 4 * b * shape.vision_intermediate + 8 + 4 * shape.vision_heads
        merger = vh * norm + 2 * b * vh
    ends = tokens * h * (4 + b)  # the last norm, whose output belongs to the loss
    ends += patches * (b * 3 * shape.temporal_patch * shape.patch**2 + merger)
    if checkpointing:
        kept = shape.layers * tokens * h * b + shape.vision_layers * patches * vh * b
        return ends + kept, max(tokens * layer, patches * block)
    return ends + shape.layers * tokens * layer + shape.vision_layers * patches * block, 0


def state_bytes(parameters: int, zero: Zero, ranks: int, trained: int | None = None, bf16: bool = True) -> int:
    """Bytes of weights, gradients and AdamW's state on each accelerator.

    Without DeepSpeed weights, gradients and both moments are float32. ZeRO computes with bfloat16 weights and
    gradients, and keeps float32 weights and both moments, spread over the ranks (ZeRO-2: and the gradients; ZeRO-3:
    and the weights).
    """
    trained = parameters if trained is None else trained
    if zero == "none" or not bf16:
        return 4 * parameters + 12 * trained
    optimiser, gradients, weights = 12 * trained, 2 * trained, 2 * parameters
    spread = optimiser + gradients + (weights if zero == "zero3" else 0)
    return math.ceil(spread / ranks) + (0 if zero == "zero3" else weights)


def kv_cache_bytes(shape: Shape, sequences: int, length: int, element_bytes: int = 2) -> int:
    """Bytes of the keys and values of sequences that are being decoded."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * sequences * length * element_bytes


# --- A training stage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes on each accelerator at the worst moment, by what they are for."""

    states: int
    """Weights, gradients, optimiser."""
    reference: int
    """Reference model (GRPO with a KL term), and a vLLM that does not sleep while training."""
    activations: int
    """Kept for the backward pass, with one recomputed layer."""
    logits: int
    """Of one piece of the loss."""
    rollouts: int
    """Key-value cache and, under ZeRO-3, the gathered weights; or vLLM's share of the accelerator (colocate). Not at
    the same time as activations and logits."""

    @property
    def total(self) -> int:
        """With context and fragmentation."""
        work = max(self.activations + self.logits, self.rollouts)
        return round((self.states + self.reference + work) * FRAGMENTATION) + OVERHEAD_BYTES


@dataclass(frozen=True)
class StagePlan:
    """What one training stage needs with one layout."""

    stage: Stage
    zero: Zero
    ranks: int
    tokens: int
    """Of one sequence."""
    steps: int
    step_flops: float
    """Of one optimiser step, all ranks."""
    step_seconds: float
    memory: Memory
    fits: bool

    @property
    def hours(self) -> float:
        """Wall time."""
        return self.steps * self.step_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """Accelerator hours."""
        return self.hours * self.ranks


def plan_stage(
    config: Config,
    stage: Literal["sft", "grpo"],
    shape: Shape,
    sample: Tokens,
    accelerator: Accelerator,
    rows: int,
    zero: Zero | None = None,
    ranks: int | None = None,
) -> StagePlan:
    """What a training stage needs.

    Args:
        config: the run.
        stage: which.
        shape: its model.
        sample: one video of it.
        accelerator: on what.
        rows: training rows of the stage, where the configuration counts in epochs.
        zero: another ZeRO stage than the configuration's.
        ranks: another number of accelerators than the configuration's.
    """
    section: TrainingConfig = getattr(config, stage)
    zero = zero or section.deepspeed
    ranks = ranks or config.launch.processes * config.launch.nodes
    bf16 = config.model.dtype != "float32"
    element = 2 if bf16 else 4
    total = shape.parameters
    trained = total - (shape.vision_parameters if section.freeze_vision and section.freeze_projector else 0)
    if section.lora is not None:
        width = shape.hidden * 2 + (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * shape.intermediate
        trained = section.lora.rank * shape.layers * (width + 5 * shape.hidden)
    prompt = PROMPT_TEXT_TOKENS + sample.visual
    passes = 4 if section.gradient_checkpointing else 3  # forward, backward (twice a forward), and forward again
    peak = accelerator.tflops * 1e12 * UTILISATION
    room = True
    if stage == "sft":
        length, batch = prompt + RESPONSE_TOKENS, config.sft.batch_size
        flops, decoding_s = passes * batch * forward_flops(shape, length, sample.patches, length / 2), 0.0
        rollouts, reference = 0, 0
        held_tokens, clips = batch * length, batch
    else:
        grpo = config.grpo
        group, response = grpo.num_generations, round(grpo.max_new_tokens * MEAN_LENGTH)
        temporal = grpo.reward_config.temporal
        shuffled = max(1, int(group * temporal.shuffled_fraction)) if temporal is not None else 0
        # With a shared prefix log-probabilities are computed over the prompt once and all of its completions.
        copies = 1 if grpo.shared_prefix != "off" else group
        update = forward_flops(shape, copies * prompt + group * response, copies * sample.patches, prompt)
        prefill = forward_flops(shape, prompt, sample.patches, prompt / 2)
        decode = forward_flops(shape, response, 0, prompt + response / 2)
        kl = 1 if grpo.kl_coefficient else 0
        flops = (2 if shuffled else 1) * prefill + (group + shuffled) * decode
        flops = grpo.prompts_per_step * (flops + (passes * grpo.num_iterations + kl) * update)
        # A decoded token reads all weights once for the whole batch, and launches every layer's kernels; vLLM launches
        # them all at once, as a CUDA graph, so that its time here is a lower bound (UNVERIFIED: not run).
        launches_s = shape.layers * SECONDS_PER_LAYER if grpo.vllm is None else 0.0
        token_s = max(launches_s, element * total / (accelerator.bandwidth_gb_s * 1e9))
        decoding_s = (2 if shuffled else 1) * grpo.max_new_tokens * LONGEST_LENGTH * token_s
        length, batch = prompt + grpo.max_new_tokens, group * grpo.prompts_per_step
        rollouts = kv_cache_bytes(shape, batch, length, element) + (element * total if zero == "zero3" else 0)
        awake = 0
        if grpo.vllm is not None:
            rollouts = round(grpo.vllm.gpu_memory_utilization * accelerator.memory_gib * GIB)
            if grpo.vllm.mode == "server":
                rollouts = 0
            elif rollouts < element * total + kv_cache_bytes(shape, 1, length, element):
                room = False  # for its copy of the weights and one completion
            elif not grpo.vllm.sleep:
                rollouts, awake = 0, rollouts
        frozen = section.lora is not None  # then the policy without its adapters is the reference
        spread = ranks if zero == "zero3" else 1
        reference = math.ceil((element if zero != "none" else 4) * total / spread) if kl and not frozen else 0
        reference += awake
        one = copies * prompt + group * grpo.max_new_tokens
        budget = grpo.max_tokens_per_pass or one * grpo.prompts_per_step
        groups = min(grpo.prompts_per_step, max(1, budget // one))
        held_tokens, clips = groups * one, groups * copies
    kept, recomputed = activation_bytes(
        shape, held_tokens, clips * sample.patches, element, section.gradient_checkpointing
    )
    pixels = clips * sample.patches * 3 * shape.temporal_patch * shape.patch**2 * 4
    logits = min(LOGIT_CHUNK_TOKENS, held_tokens) * shape.vocabulary * (element + 4 + 4)
    logits += held_tokens * shape.hidden * element  # what they are computed from
    memory = Memory(
        state_bytes(total, zero, ranks, trained, bf16), reference, kept + recomputed + pixels, logits, rollouts
    )
    # Weights gathered before forward and backward (ZeRO-3), gradients reduced once a step.
    link = accelerator.link_gb_s if ranks <= GPUS_PER_NODE else min(NETWORK_GB_S, accelerator.link_gb_s)
    moved = 0.0 if ranks == 1 else 4.0 * trained / section.gradient_accumulation
    if zero == "zero3" and ranks > 1:
        moved += 2 * element * total * (passes - 2 + (1 if stage == "grpo" else 0))
    micro_s = flops / peak + decoding_s + moved / (link * 1e9)
    if section.max_steps > 0:
        steps = section.max_steps
    else:
        per_step = config.sft.batch_size if stage == "sft" else config.grpo.prompts_per_step
        steps = math.ceil(rows * section.num_epochs / (per_step * ranks * section.gradient_accumulation))
    accumulated = section.gradient_accumulation
    return StagePlan(
        stage, zero, ranks, length, steps, flops * ranks * accumulated, micro_s * accumulated, memory,
        room and memory.total <= accelerator.memory_gib * GIB,
    )  # fmt: skip


def fastest(plans: list[StagePlan]) -> StagePlan | None:
    """The layout that ends first of those that fit; of equals the one with the fewest accelerators."""
    fitting = [plan for plan in plans if plan.fits]
    return min(fitting, key=lambda plan: (plan.hours, plan.ranks)) if fitting else None


def layouts(
    config: Config,
    stage: Literal["sft", "grpo"],
    shape: Shape,
    sample: Tokens,
    accelerator: Accelerator,
    rows: int,
    ranks: int,
) -> list[StagePlan]:
    """The stage on ``ranks`` accelerators with each ZeRO stage that the configuration admits, its own first."""
    section: TrainingConfig = getattr(config, stage)
    admitted = [z for z in ("none", "zero2", "zero3") if not (z == "zero3" and section.lora is not None)]
    order: list[Any] = sorted(admitted, key=lambda z: z != section.deepspeed)
    return [plan_stage(config, stage, shape, sample, accelerator, rows, zero, ranks) for zero in order]


# --- Storage ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Bytes in the object store."""

    data: int
    """Prepared frames of all rows."""
    model: int
    """One served model."""
    checkpoint: int
    """One training checkpoint: weights, both moments and, with DeepSpeed, its float32 weights."""
    checkpoints: int
    """Those that a stage keeps at a time, the best included."""


def stored_bytes(config: Config, shape: Shape, sample: Tokens, rows: int) -> Stored:
    """What a run leaves in the store."""
    total, element = shape.parameters, 2 if config.model.dtype != "float32" else 4
    checkpoint = total * 14 if config.grpo.deepspeed != "none" else total * 12
    data = rows * sample.frames * sample.height * sample.width * JPEG_BYTES_PER_PIXEL
    return Stored(round(data), total * element, checkpoint, checkpoint * (config.grpo.keep_checkpoints + 1))
