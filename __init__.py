"""Teach a multimodal LLM to reason over video, and serve it, as one Kubeflow pipeline."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, ClassVar

__version__ = "0.1.0"


class _MendedImports:
    """Import hook for large libraries. It works in every process that imports vthink, in whatever order.

    - **torchvision**, whose only wheels are CUDA builds, can be imported beside a CPU build of torch. The Qwen-VL
      processors import it for its image transforms. Its import expects two operators that its compiled library
      would bring; where torch has no accelerator build, declaring them is enough, and nothing here calls them.
    - **The garbage collector rests** while they are imported: that makes a million objects which live as long as
      the process, and looking for garbage among them took a quarter of a training process's start.
    - **scikit-learn and scipy.stats** are imported once transformers calls one of the few functions that it wants
      from them, for assisted generation and old benchmarks, and not with every model: another sixth.
    """

    LARGE = frozenset({"datasets", "deepspeed", "kfp", "mlflow", "torch", "torchvision", "transformers", "trl"})
    LATE: ClassVar = {
        "transformers.data.metrics": ("sklearn", "sklearn.metrics", "scipy.stats"),
        "transformers.generation.candidate_generator": ("sklearn", "sklearn.metrics"),
    }
    """What each of these modules of transformers imports only to have its functions at hand."""
    library: Any = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.LARGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_at_rest(module: ModuleType) -> None:
                collects = gc.isenabled()
                gc.disable()
                try:
                    if name == "torchvision":
                        self.declare_operators()
                    with self.stand_ins(self.LATE.get(name, ())):
                        execute(module)
                finally:
                    if collects:
                        gc.enable()

            spec.loader.exec_module = execute_at_rest  # type: ignore[method-assign]
        return spec

    def declare_operators(self) -> None:
        """Declare torchvision's operators, once, where torch has no accelerator build."""
        import torch

        if self.library is None and torch.version.cuda is None and torch.version.hip is None:
            self.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    @contextlib.contextmanager
    def stand_ins(self, names: Sequence[str]) -> Iterator[None]:
        """Modules whose functions import the real ones when they are called, for those not imported yet."""
        from importlib.util import find_spec

        missing = [name for name in names if name not in sys.modules and find_spec(name.partition(".")[0])]
        sys.modules.update({name: _LateModule(name) for name in missing})
        try:
            yield
        finally:
            for name in missing:
                del sys.modules[name]


class _LateModule(ModuleType):
    """Stands in for a module while others take functions from it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, function: str) -> Any:
        if function.startswith("__"):
            raise AttributeError(function)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), function)(*arguments, **options)

        return call


sys.meta_path.insert(0, _MendedImports())
