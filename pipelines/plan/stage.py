"""What a training stage will need, from its configuration alone: FLOPs, memory, storage and hours. No torch.

Exact are visual tokens and parameters (`shapes.py`); the bytes of tensors (`memory.py`) follow from the layers of
transformers' Qwen2.5-VL and Qwen3-VL, and a test counts them on real models. Hours are an estimate, which rests on the
figures below, each with its source.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ...components.common.training.config import TrainingConfig
from ..config import Config
from .memory import (
    GIB,
    GPUS_PER_NODE,
    NETWORK_GB_S,
    Accelerator,
    Memory,
    Zero,
    activation_bytes,
    forward_flops,
    kv_cache_bytes,
    state_bytes,
)
from .shapes import Shape, Tokens

TrainingStage = Literal["sft", "grpo"]
UTILISATION = 0.2
"""Share of an accelerator's peak that training reaches. EasyR1's published baselines: 16 to 23 %, Qwen2.5-VL-7B."""
SECONDS_PER_LAYER = 0.9e-3
"""Least time of one layer for one decoded token under transformers' `generate`: launching kernels, not arithmetic."""
MEAN_LENGTH, LONGEST_LENGTH = 0.5, 0.8
"""Completion of a rollout as a share of ``max_new_tokens``: the mean, and the longest of a group."""
PROMPT_TEXT_TOKENS, RESPONSE_TOKENS = 200, 400  # question with its template, and an SFT target
JPEG_BYTES_PER_PIXEL = 0.5  # a prepared frame, quality 95 without chroma subsampling
LOGIT_CHUNK_TOKENS = 1024
"""TRL computes the loss from the hidden states in pieces, so the logits of a whole sequence never exist."""


@dataclass(frozen=True)
class StagePlan:
    """What one training stage needs with one layout: tokens of a sequence, FLOPs of an optimiser step on all ranks."""

    stage: TrainingStage
    zero: Zero
    ranks: int
    tokens: int
    steps: int
    step_flops: float
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
    stage: TrainingStage,
    shape: Shape,
    sample: Tokens,
    accelerator: Accelerator,
    rows: int,
    zero: Zero | None = None,
    ranks: int | None = None,
) -> StagePlan:
    """What a training stage needs for videos like ``sample``.

    Args:
        rows: training rows of the stage, where the configuration counts in epochs.
        zero: another ZeRO stage than the configuration's.
        ranks: another number of accelerators than the configuration's."""
    section: TrainingConfig = getattr(config, stage)
    zero = zero or section.deepspeed
    ranks = ranks or config.launch.processes * config.launch.nodes
    bf16 = config.model.dtype != "float32"
    element = 2 if bf16 else 4
    total = shape.parameters
    trained = _trained_parameters(section, shape)
    passes = 4 if section.gradient_checkpointing else 3  # forward, backward (twice a forward), and forward again
    if stage == "sft":
        work = _sft_work(config, shape, sample, passes)
    else:
        work = _grpo_work(config, shape, sample, passes, accelerator, zero, ranks)
    kept, recomputed = activation_bytes(
        shape, work.held_tokens, work.held_clips * sample.patches, element, section.gradient_checkpointing
    )
    pixels = work.held_clips * sample.patches * 3 * shape.temporal_patch * shape.patch**2 * 4
    logits = min(LOGIT_CHUNK_TOKENS, work.held_tokens) * shape.vocabulary * (element + 4 + 4)
    logits += work.held_tokens * shape.hidden * element  # what they are computed from
    states = state_bytes(total, zero, ranks, trained, bf16)
    memory = Memory(states, work.reference_bytes, kept + recomputed + pixels, logits, work.rollout_bytes)
    # Weights gathered before forward and backward (ZeRO-3), gradients reduced once a step.
    link = accelerator.link_gb_s if ranks <= GPUS_PER_NODE else min(NETWORK_GB_S, accelerator.link_gb_s)
    moved = 0.0 if ranks == 1 else 4.0 * trained / section.gradient_accumulation
    if zero == "zero3" and ranks > 1:
        moved += 2 * element * total * (passes - 2 + (1 if stage == "grpo" else 0))
    micro_s = work.flops / (accelerator.tflops * 1e12 * UTILISATION) + work.decoding_s + moved / (link * 1e9)
    accumulated = section.gradient_accumulation
    steps = section.max_steps
    if steps <= 0:
        per_step = config.sft.batch_size if stage == "sft" else config.grpo.prompts_per_step
        steps = math.ceil(rows * section.num_epochs / (per_step * ranks * accumulated))
    return StagePlan(
        stage, zero, ranks, work.length, steps, work.flops * ranks * accumulated, micro_s * accumulated, memory,
        work.vllm_fits and memory.total <= accelerator.memory_gib * GIB,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one rank does and holds for one batch, whatever the layout of the optimiser."""

    length: int  # tokens of one sequence
    flops: float
    held_tokens: int
    held_clips: int  # positions and videos of the passes that go backward at the same time
    decoding_s: float = 0.0  # time of rollouts that no arithmetic explains
    rollout_bytes: int = 0
    reference_bytes: int = 0
    vllm_fits: bool = True  # whether vLLM's share has room for its copy of the weights and one completion


def _trained_parameters(section: TrainingConfig, shape: Shape) -> int:
    if section.lora is not None:
        width = shape.hidden * 2 + (shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * shape.intermediate
        return section.lora.rank * shape.layers * (width + 5 * shape.hidden)
    frozen = section.freeze_vision and section.freeze_projector
    return shape.parameters - (shape.vision_parameters if frozen else 0)


def _sft_work(config: Config, shape: Shape, sample: Tokens, passes: int) -> _Work:
    length, batch = PROMPT_TEXT_TOKENS + sample.visual + RESPONSE_TOKENS, config.sft.batch_size
    flops = passes * batch * forward_flops(shape, length, sample.patches, length / 2)
    return _Work(length=length, flops=flops, held_tokens=batch * length, held_clips=batch)


def _grpo_work(
    config: Config, shape: Shape, sample: Tokens, passes: int, accelerator: Accelerator, zero: Zero, ranks: int
) -> _Work:
    grpo, total, element = config.grpo, shape.parameters, 2 if config.model.dtype != "float32" else 4
    prompt, group, response = (
        PROMPT_TEXT_TOKENS + sample.visual, grpo.num_generations, round(grpo.max_new_tokens * MEAN_LENGTH)
    )  # fmt: skip
    temporal = grpo.reward_config.temporal
    shuffled = max(1, int(group * temporal.shuffled_fraction)) if temporal is not None else 0
    kl = 1 if grpo.kl_coefficient else 0
    # With a shared prefix log-probabilities are computed over the prompt once and all of its completions.
    copies = 1 if grpo.shared_prefix != "off" else group
    update = forward_flops(shape, copies * prompt + group * response, copies * sample.patches, prompt)
    prefill = forward_flops(shape, prompt, sample.patches, prompt / 2)
    decode = forward_flops(shape, response, 0, prompt + response / 2)
    flops = (2 if shuffled else 1) * prefill + (group + shuffled) * decode
    flops = grpo.prompts_per_step * (flops + (passes * grpo.num_iterations + kl) * update)
    # A decoded token reads all weights once for the whole batch, and launches every layer's kernels; vLLM launches
    # them all at once, as a CUDA graph, so that its time here is a lower bound (UNVERIFIED: not run).
    launches_s = shape.layers * SECONDS_PER_LAYER if grpo.vllm is None else 0.0
    token_s = max(launches_s, element * total / (accelerator.bandwidth_gb_s * 1e9))
    length = prompt + grpo.max_new_tokens
    # Without adapters the reference is a model of its own.
    copy = math.ceil((element if zero != "none" else 4) * total / (ranks if zero == "zero3" else 1))
    reference = copy if kl and grpo.lora is None else 0
    rollouts = kv_cache_bytes(shape, group * grpo.prompts_per_step, length, element)
    rollouts += element * total if zero == "zero3" else 0
    vllm_fits = True
    if grpo.vllm is not None:
        share = round(grpo.vllm.gpu_memory_utilization * accelerator.memory_gib * GIB)
        rollouts = share if grpo.vllm.mode == "colocate" else 0
        vllm_fits = not rollouts or share >= element * total + kv_cache_bytes(shape, 1, length, element)
        if vllm_fits and not grpo.vllm.sleep:  # then its share is taken while training, too
            rollouts, reference = 0, reference + rollouts
    group_tokens = copies * prompt + group * grpo.max_new_tokens
    budget = grpo.max_tokens_per_pass or group_tokens * grpo.prompts_per_step
    groups = min(grpo.prompts_per_step, max(1, budget // group_tokens))
    return _Work(
        length=length, flops=flops, held_tokens=groups * group_tokens, held_clips=groups * copies,
        decoding_s=(2 if shuffled else 1) * grpo.max_new_tokens * LONGEST_LENGTH * token_s,
        rollout_bytes=rollouts, reference_bytes=reference, vllm_fits=vllm_fits,
    )  # fmt: skip


def fastest(plans: list[StagePlan]) -> StagePlan | None:
    """The layout that ends first of those that fit; of equals the one with the fewest accelerators."""
    fitting = [plan for plan in plans if plan.fits]
    return min(fitting, key=lambda plan: (plan.hours, plan.ranks)) if fitting else None


def layouts(
    config: Config, stage: TrainingStage, shape: Shape, sample: Tokens, accelerator: Accelerator, rows: int, ranks: int
) -> list[StagePlan]:
    """The stage on ``ranks`` accelerators with each ZeRO stage that the configuration admits, its own first."""
    section: TrainingConfig = getattr(config, stage)
    admitted = [z for z in ("none", "zero2", "zero3") if not (z == "zero3" and section.lora is not None)]
    order: list[Any] = sorted(admitted, key=lambda z: z != section.deepspeed)
    return [plan_stage(config, stage, shape, sample, accelerator, rows, zero, ranks) for zero in order]


@dataclass(frozen=True)
class Stored:
    """Bytes in the object store: the frames of all rows, one served model, and training checkpoints."""

    data: int
    model: int
    checkpoint: int  # weights, both moments and, with DeepSpeed, its float32 weights
    checkpoints: int  # those that a stage keeps at a time, the best included


def stored_bytes(config: Config, shape: Shape, sample: Tokens, rows: int) -> Stored:
    """What a run leaves in the store."""
    total, element = shape.parameters, 2 if config.model.dtype != "float32" else 4
    checkpoint = total * 14 if config.grpo.deepspeed != "none" else total * 12
    data = rows * sample.frames * sample.height * sample.width * JPEG_BYTES_PER_PIXEL
    return Stored(round(data), total * element, checkpoint, checkpoint * (config.grpo.keep_checkpoints + 1))
