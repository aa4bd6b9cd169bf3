"""What a node that trains needs besides its accelerators: the one estimate that `vthink plan`, `vthink doctor` and the
generated TrainJob use. No torch.

Bytes per parameter were measured on what DeepSpeed 0.19.8 and transformers 5.17 write and load: 12 of optimiser
(float32 weights and both moments), 2 of 16-bit weights.
"""

import math

from ..launch.config import LaunchConfig
from ..launch.job import NodeResources
from ..model.shapes import Shape
from .config import TrainingConfig

GIB = 2**30
CPUS_PER_PROCESS = 8  # decoding threads, the process itself, and NCCL's
PROCESS_BYTES = 6 * GIB
"""What a training process holds of host memory besides tensors: libraries, CUDA's context, pinned buffers, clips that
were decoded ahead (UNVERIFIED: our allowance; not measured on a GPU)."""
MARGIN = 1.15


def trained_parameters(config: TrainingConfig, shape: Shape) -> int:
    """Parameters that the optimiser keeps state for."""
    if config.lora is not None:
        # Each of the seven linear layers has a matrix of its inputs and one of its outputs.
        width = 7 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim + 3 * shape.intermediate
        return config.lora.rank * shape.layers * width
    frozen = config.freeze_vision and config.freeze_projector
    return shape.parameters - (shape.vision_parameters if frozen else 0)


def checkpoint_bytes(config: TrainingConfig, shape: Shape) -> int:
    """A checkpoint: a model folder, the optimiser, and with ZeRO-2 DeepSpeed's own copy of the 16-bit weights."""
    trained = trained_parameters(config, shape)
    saved = trained if config.lora is not None else shape.parameters
    if config.deepspeed == "none":
        return 4 * saved + 8 * trained
    return 12 * trained + (4 if config.deepspeed == "zero2" else 2) * saved


def checkpoints_on_disk(config: TrainingConfig, best: bool) -> int:
    """Checkpoints that lie on a node at a time: kept, the best, the new one, and one that is still being sent."""
    return config.keep_checkpoints + best + 2


def node_resources(
    config: TrainingConfig, shape: Shape, launch: LaunchConfig, best: bool, data_bytes: int = 0
) -> NodeResources:
    """What one of the nodes needs.

    Args:
        best: whether the best checkpoint is kept and loaded at the end (GRPO).
        data_bytes: the prepared set, which every node fetches."""
    nodes, ranks = launch.cluster.nodes or launch.nodes, launch.processes
    total, trained = shape.parameters, trained_parameters(config, shape)
    # Resuming: each rank reads its part of the optimiser; with ZeRO-2 each rank reads all 16-bit weights too, and
    # without ZeRO all of everything.
    resumed: float
    if config.deepspeed == "none":
        resumed = ranks * (4 * total + 8 * trained)
    else:
        resumed = 12 * trained / nodes + (ranks * 2 * total if config.deepspeed == "zero2" else 0)
    exported = (4 if config.deepspeed == "none" else 2) * total  # the first rank gathers and writes them
    memory = (ranks * PROCESS_BYTES + max(resumed, exported)) * MARGIN
    # The base model, the start's model, and the result.
    scratch = data_bytes + 3 * 2 * total + checkpoints_on_disk(config, best) * checkpoint_bytes(config, shape)
    return NodeResources(
        cpus=CPUS_PER_PROCESS * ranks, memory_gib=math.ceil(memory / GIB), scratch_gib=math.ceil(scratch * 1.05 / GIB)
    )
