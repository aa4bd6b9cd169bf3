"""What accelerators have, and the memory and operations that training takes of them."""

import math
from dataclasses import dataclass
from typing import Literal

from .shapes import Shape

Zero = Literal["none", "zero2", "zero3"]
GIB = 2**30
OVERHEAD_BYTES, FRAGMENTATION = 2 * GIB, 1.1  # the accelerator's context and libraries, and what the allocator loses


@dataclass(frozen=True)
class Accelerator:
    """One GPU model, from its data sheet: 10¹² dense bfloat16 operations a second, usable memory, memory bandwidth, and
    bandwidth to the others of its node, one way."""

    tflops: float
    memory_gib: float
    bandwidth_gb_s: float
    link_gb_s: float


ACCELERATORS = {
    "a100-40gb": Accelerator(312, 39.4, 1555, 300),
    "a100-80gb": Accelerator(312, 79.2, 2039, 300),
    "h100-80gb": Accelerator(989, 79.6, 3350, 450),
    "h200-141gb": Accelerator(989, 139.8, 4800, 450),
    "l40s-48gb": Accelerator(362, 44.4, 864, 32),
}
GPUS_PER_NODE = 8
NETWORK_GB_S = 25.0  # between nodes, per accelerator (200 Gbit/s); less makes several nodes slower than said here


def forward_flops(shape: Shape, tokens: float, patches: float, length: float) -> float:
    """Floating point operations of one forward pass.

    Args:
        tokens: positions of the language model, all sequences together.
        patches: rows of the vision tower.
        length: positions that a position attends to, on average half the sequence."""
    dense = 2 * (shape.language_parameters + shape.vocabulary * shape.hidden)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * length
    return tokens * (dense + attention) + patches * 2 * shape.vision_parameters


def activation_bytes(
    shape: Shape, tokens: int, patches: int, element_bytes: int = 2, checkpointing: bool = True
) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, and what recomputing one layer adds to them at most.

    Args:
        shape: the model; its loss is not included.
        tokens: positions of all sequences of the batch; ``patches``: rows of the vision tower.
        element_bytes: 2 for bfloat16, 4 for float32.
        checkpointing: keep only each layer's input."""
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
    """Bytes of weights, gradients and AdamW's state on each accelerator. Without DeepSpeed weights, gradients and both
    moments are float32. ZeRO computes with bfloat16 weights and gradients, and keeps float32 weights and both moments,
    spread over the ranks (ZeRO-2: and the gradients; ZeRO-3: and the weights)."""
    trained = parameters if trained is None else trained
    if zero == "none" or not bf16:
        return 4 * parameters + 12 * trained
    optimiser, gradients, weights = 12 * trained, 2 * trained, 2 * parameters
    spread = optimiser + gradients + (weights if zero == "zero3" else 0)
    return math.ceil(spread / ranks) + (0 if zero == "zero3" else weights)


def kv_cache_bytes(shape: Shape, sequences: int, length: int, element_bytes: int = 2) -> int:
    """Bytes of the keys and values of sequences that are being decoded."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * sequences * length * element_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on each accelerator at the worst moment, by what they are for."""

    states: int  # weights, gradients, optimiser
    reference: int  # reference model (GRPO with a KL term), and a vLLM that does not sleep while training
    activations: int  # kept for the backward pass, with one recomputed layer
    logits: int  # of one piece of the loss
    rollouts: int
    """Key-value cache and, under ZeRO-3, the gathered weights; or vLLM's share of the accelerator (colocate). Not at
    the same time as activations and logits."""

    @property
    def total(self) -> int:
        """With context and fragmentation."""
        work = max(self.activations + self.logits, self.rollouts)
        return round((self.states + self.reference + work) * FRAGMENTATION) + OVERHEAD_BYTES
