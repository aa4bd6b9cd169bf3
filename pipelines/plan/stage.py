"""What a run will need, from its configuration alone: tokens, FLOPs, memory, storage, hours and cost. No torch.

Exact are the visual tokens (the arithmetic of `common.video` and `common.chat`) and the numbers of parameters; the
bytes of tensors follow from the layers of transformers' Qwen2.5-VL and Qwen3-VL, and a test counts them on real
models. Hours are an estimate: they rest on the figures under *Assumptions* below, each with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ...components.common.config import Stage
from ...components.common.training.config import TrainingConfig
from ..config import Config
from .accelerators import GPUS_PER_NODE, NETWORK_GB_S, Accelerator
from .memory import GIB, Memory, Zero, activation_bytes, forward_flops, kv_cache_bytes, state_bytes
from .shapes import Shape
from .tokens import Tokens

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


LOGIT_CHUNK_TOKENS = 1024
"""TRL computes the loss from the hidden states in pieces, so the logits of a whole sequence never exist."""


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
