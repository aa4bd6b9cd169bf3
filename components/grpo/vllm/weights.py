"""The policy's weights on their way to vLLM."""

from collections.abc import Iterator
from typing import Any

import torch
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration


class PolicyWeights(VLLMGeneration):
    """TRL 1.16's walk over a policy's weights; nothing else of its class is used, and it starts no vLLM. Iterating
    yields each weight under its checkpoint name, whole: gathered under ZeRO-3 and FSDP, with adapters of LoRA merged.
    Gathering is a collective operation, so every process must iterate to the end."""

    def __init__(self, model: Any, accelerator: Any) -> None:
        self.model, self.accelerator = model, accelerator
        self._dist = DistributedBackend(accelerator)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._iter_named_params()
