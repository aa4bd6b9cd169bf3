"""Teach a multimodal LLM to reason over video, and serve it, as one Kubeflow pipeline."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


class _TorchvisionBesideCpuTorch:
    """Lets torchvision, whose only wheels are CUDA builds, be imported beside a CPU build of torch.

    The Qwen-VL processors import torchvision for its image transforms. Its import expects two operators that its
    compiled library would bring; where torch has no accelerator build, declaring them is enough, and nothing here
    calls them. As an import hook it works in every process that imports vthink, in whatever order, and costs nothing
    where torchvision is not used.
    """

    library: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def declare_and_execute(module: ModuleType) -> None:
                self.declare()
                execute(module)

            spec.loader.exec_module = declare_and_execute  # type: ignore[method-assign]
        return spec

    def declare(self) -> None:
        """Declare the operators, once, where torch has no accelerator build."""
        import torch

        if self.library is None and torch.version.cuda is None and torch.version.hip is None:
            self.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _TorchvisionBesideCpuTorch())
